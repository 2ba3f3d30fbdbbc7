"""Padding of a batch changes neither predictions nor gradients of the networks of GFL."""

from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import boxes, config
from nanodet_jax.losses.assigners.gfl import GFLAssigner
from nanodet_jax.losses.criterion import Criterion
from nanodet_jax.models.backbones import resnet
from nanodet_jax.models.nanodet import build_model, priors_of
from nanodet_jax.models.padding import NO_PADDING, Padding
from nanodet_jax.state import abstract_variables
from nanodet_jax.structures import Batch, GroundTruth
from nanodet_jax.training.step import loss_and_gradients
from tests.models.test_guidance import drawn

MODEL = config.Model(
    num_classes=3,
    backbone="resnet18",
    norm_eval=True,
    frozen_stride=4,
    neck="fpn",
    channels=32,
    activation="relu",
    head="simple_conv",
    stacked_convs=1,
    reg_max=16,
    prior_offset=0.0,
)
SIZE, CANVAS = (64, 96), (128, 160)


def with_padding(images):
    """Return images in the upper left corner of a larger canvas of other values than zero."""
    canvas = np.full((len(images), *CANVAS, 3), 3.0, np.float32)
    canvas[:, : SIZE[0], : SIZE[1]] = images
    return jnp.asarray(canvas)


@pytest.fixture(scope="module")
def network():
    with mock.patch.dict(resnet.BLOCKS, resnet18=(1, 1, 1, 1)):  # compiles in half the time
        yield from make_network()


def make_network():
    model = build_model(MODEL)
    variables = drawn(abstract_variables(model))
    images = np.random.default_rng(0).normal(size=(2, *SIZE, 3)).astype(np.float32)
    yield model, variables, images


def test_inside_covers_the_pixels_that_contain_a_part_of_the_image():
    padding = Padding((128, 160), jnp.asarray([[64, 96], [33, 160]]))
    for stride in (1, 2, 8, 32, 64, 128):
        shape = -(-128 // stride), -(-160 // stride)
        inside = np.asarray(padding.inside(jnp.zeros((2, *shape, 1))))[..., 0]
        for image, (height, width) in enumerate([(64, 96), (33, 160)]):
            for row in range(shape[0]):
                for column in range(shape[1]):
                    expected = row * stride < height and column * stride < width
                    assert inside[image, row, column] == expected
    x = jnp.ones((1, 2, 2, 1))
    assert NO_PADDING.inside(x) is None and NO_PADDING.clear(x) is x


def test_predictions_of_padded_images_equal_those_of_the_images(network):
    model, variables, images = network
    sizes = jnp.asarray([SIZE, SIZE])
    expected = jax.jit(model.apply)(variables, images)
    found = jax.jit(model.apply)(variables, with_padding(images), padded_sizes=sizes)
    inside = np.asarray(boxes.inside(priors_of(MODEL, CANVAS), jnp.asarray(SIZE)))
    assert inside.sum() == expected.class_logits.shape[1]
    for padded, alone in zip(found, expected, strict=True):
        scale = np.abs(alone).max()
        np.testing.assert_allclose(padded[:, inside], alone, atol=1e-5 * scale, rtol=0)
    leaking = jax.jit(model.apply)(variables, with_padding(images))
    difference = np.abs(leaking.class_logits[:, inside] - expected.class_logits).max()
    assert difference > 1e-2 * np.abs(expected.class_logits).max()


def test_loss_and_gradients_of_a_padded_batch_equal_those_of_the_batch(network):
    model, variables, images = network
    truth = GroundTruth(
        boxes=jnp.asarray([[[4, 8, 60, 60]], [[20, 2, 90, 40]]], jnp.float32),
        labels=jnp.asarray([[0], [2]]),
        valid=jnp.ones((2, 1), bool),
        ignore=jnp.zeros((2, 1), bool),
        padded_size=jnp.asarray([SIZE, SIZE]),
        image_size=jnp.asarray([SIZE, SIZE]),
    )
    assigner = GFLAssigner(topk=9, anchor_scale=8.0, ignore_threshold=0.0)
    criterion = Criterion(priors_of(MODEL, SIZE), assigner, config.Loss())
    results = []
    for batch in (Batch(jnp.asarray(images), truth), Batch(with_padding(images), truth)):
        step = jax.jit(lambda v, b: loss_and_gradients(v, b, model=model, criterion=criterion))
        results.append(step(variables, batch))
    (metrics, gradients, _), (padded_metrics, padded_gradients, _) = results
    for name in metrics:
        np.testing.assert_allclose(padded_metrics[name], metrics[name], rtol=1e-5, err_msg=name)

    def compare(path, padded, alone):
        norm = np.linalg.norm(alone)
        assert np.linalg.norm(padded - alone) <= 1e-3 * norm, path

    jax.tree_util.tree_map_with_path(compare, padded_gradients, gradients)


def test_other_networks_refuse_the_resizing_that_needs_it():
    for field, value in (
        ("backbone", "mobilenet_v2"),
        ("backbone_activation", "silu"),
        ("norm_eval", False),
        ("neck", "pan"),
        ("head", "nanodet"),
    ):
        assert not replace(MODEL, **{field: value}).ignores_padding
    assert MODEL.ignores_padding
