"""Effects of `config.precision` on the network."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import config
from nanodet_jax.losses.criterion import Criterion, build_assigner
from nanodet_jax.models.nanodet import build_model, priors_of
from nanodet_jax.runtime import backend
from nanodet_jax.state import abstract_variables, init_variables
from nanodet_jax.structures import Batch, GroundTruth
from nanodet_jax.training.step import loss_and_gradients

pytestmark = pytest.mark.usefixtures("shallow")

PLUS = config.Model(
    num_classes=3,
    width=0.5,
    neck="ghost_pan",
    extra_level=True,
    channels=32,
    kernel_size=5,
    stacked_convs=1,
    guidance_channels=32,
    guidance_convs=1,
)
SMALL = config.Model(num_classes=1, width=0.5, channels=8)
SIZE = (64, 64)
CRITERION = Criterion(
    priors_of(PLUS, SIZE),
    build_assigner(config.Assigner(name="dynamic_soft_label", topk=5), config.Compat()),
    config.Loss(),
)


def batch():
    images = np.random.default_rng(0).normal(size=(2, *SIZE, 3)).astype(np.float32)
    boxes = np.array([[[4, 4, 40, 44]], [[10, 20, 30, 60]]], np.float32)
    on = np.ones((2, 1), bool)
    return Batch(images, GroundTruth(boxes, np.array([[1], [2]], np.int32), on, ~on))


@functools.cache
def random_variables():
    return init_variables(build_model(SMALL), seed=0)


def features(precision):
    """Return outputs of the first stages for noise, normalized by the batch's statistics."""
    model = build_model(SMALL, precision)
    images = np.random.default_rng(1).normal(size=(2, 160, 160, 3)).astype(np.float32)
    run = partial(
        model.apply,
        method="branches",
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: module.name in ("stage2_0", "stage3_0"),
    )
    return backend.jit(run)(random_variables(), images)[1]["intermediates"]


def test_bf16_applies_to_features_only():
    model = build_model(PLUS, "bf16")
    variables = abstract_variables(model, guided=True)
    step = partial(loss_and_gradients, model=model, criterion=CRITERION)
    for leaf in jax.tree.leaves((variables, jax.eval_shape(step, variables, batch()))):
        assert leaf.dtype == jnp.float32
    capture = partial(
        model.apply,
        method="branches",
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: (
            module.path[:1] in (("backbone",), ("neck",)) or module.path[:2] == ("guidance", "neck")
        ),
    )
    predictions, seen = jax.eval_shape(capture, variables, batch().images)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(predictions)} == {"float32"}
    inner = jax.tree.leaves(seen["intermediates"])
    assert len(inner) > 50
    assert {leaf.dtype.name for leaf in inner} == {"bfloat16"}


@pytest.mark.slow
def test_bf16_is_close_to_float32_and_highest_equals_it_on_a_cpu():
    for exact, same, narrow in zip(
        *(jax.tree.leaves(features(p)) for p in ("float32", "highest", "bf16"))
    ):
        np.testing.assert_array_equal(exact, same)
        error = np.sqrt(np.mean(np.square(narrow.astype(np.float32) - exact)))
        assert 1e-3 < error / np.std(exact) < 0.05


@pytest.mark.parametrize("precision", ["float32", "highest"])
def test_highest_applies_to_all_products_of_a_gpu_program(precision, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = build_model(PLUS, precision)
    variables = abstract_variables(model, guided=True)
    step = partial(loss_and_gradients, model=model, criterion=CRITERION)
    text = jax.jit(step).trace(variables, batch()).lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", text)
    exact = [line for line in products if "HIGHEST" in line]
    assert len(products) > 100
    if precision == "highest":
        assert len(exact) == len(products)
    else:
        convolutions = [line for line in products if "stablehlo.convolution" in line]
        assert convolutions and not set(exact) & set(convolutions)


def test_distances_use_highest_precision_in_every_mode(monkeypatch):
    """The mean over a distribution is a matrix product, and losses and boxes depend on it."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = build_model(PLUS)
    branches = jax.eval_shape(
        partial(model.apply, method="branches", train=False),
        abstract_variables(model, guided=True),
        batch().images,
    )
    traced = jax.jit(CRITERION).trace(branches, batch().ground_truth)
    products = re.findall(
        r"stablehlo\.dot_general.*", traced.lower(lowering_platforms=("cuda",)).as_text()
    )
    assert products and all("HIGHEST" in line for line in products)
