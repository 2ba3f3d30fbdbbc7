"""The whole network: parameter counts, initialization, order of predictions, batch statistics."""

import functools
from functools import partial

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import config
from nanodet_jax.io.torch_names import flatten
from nanodet_jax.models.heads.nanodet_head import NanoDetHead
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.nanodet import build_model, priors_of
from nanodet_jax.runtime import backend
from nanodet_jax.state import abstract_variables, init_variables

TINY = config.Model(num_classes=3, width=0.5, channels=32, stacked_convs=1, reg_max=4)
SEPARATE = config.Model(num_classes=3, width=0.5, channels=32, share_cls_reg=False)
SIZE = (64, 96)  # not square, so that swapped axes are detected
OUTPUTS = ("output_0", "output_1", "output_2")


@functools.cache
def initial():
    return init_variables(build_model(TINY), seed=0)


@functools.cache
def trained():
    """Run TINY in training; return predictions, intermediate outputs and new statistics."""
    images = np.random.default_rng(0).normal(size=(2, *SIZE, 3)).astype(np.float32)
    apply = partial(
        build_model(TINY).apply,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: module.name in ("neck", *OUTPUTS),
    )
    return backend.jit(apply)(initial(), images)


def leaves(start, end, collection="params"):
    """Return initial values by path, for paths with this start and end."""
    return {
        path: leaf
        for path, leaf in flatten(initial()[collection]).items()
        if path.startswith(start) and path.endswith(end)
    }


# The original's counts, without the box output that its shared head allocates but does not use.
@pytest.mark.parametrize(
    ("width", "channels", "original"),
    [(1.0, 96, 959_348), (0.5, 96, 280_368), (1.5, 128, 2_077_776)],
)
def test_parameter_counts_equal_the_originals(width, channels, original):
    model = config.Model(num_classes=80, width=width, channels=channels)
    shapes = abstract_variables(build_model(model))["params"]
    unused = 3 * 32 * (channels + 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == original - unused


def check_normal(path, values, std):
    """Check that mean and standard deviation are within five of their standard errors."""
    assert abs(values.mean()) < 5 * std / np.sqrt(values.size), path
    assert abs(values.std() / std - 1) < 5 / np.sqrt(2 * values.size), path


def test_backbone_kernels_start_with_std_one_over_input_channels():
    kernels = leaves("backbone", "kernel")
    assert len(kernels) == 1 + 3 * 5 + 13 * 3  # stem, downsampling blocks, other blocks
    for path, kernel in kernels.items():
        check_normal(path, kernel, 1 / kernel.shape[2])
    assert kernels["backbone/stem/kernel"].shape == (3, 3, 3, 24)
    assert kernels["backbone/stage2_1/main/depthwise/kernel"].shape == (3, 3, 1, 24)
    first = [kernel.ravel()[0] * kernel.shape[2] for kernel in kernels.values()]
    assert len(np.unique(first)) == len(first)  # all from different keys


def test_neck_kernels_start_xavier_uniform():
    kernels = leaves("neck", "kernel")
    assert len(kernels) == 3
    for path, kernel in kernels.items():
        _, _, channels_in, channels_out = kernel.shape
        bound = np.sqrt(6 / (channels_in + channels_out))
        assert 0.99 * bound < np.abs(kernel).max() <= bound, path
        check_normal(path, kernel, bound / np.sqrt(3))


def test_head_starts_with_small_kernels_and_low_class_scores():
    kernels = leaves("head", "kernel")
    assert len(kernels) == 3 * (2 * TINY.stacked_convs + 1)
    for path, kernel in kernels.items():
        check_normal(path, kernel, 0.01)
    for level in OUTPUTS:
        assert np.all(initial()["params"]["head"][level]["bias"] == np.float32(-4.595))


def test_norms_and_lateral_biases_have_their_initial_values():
    scales = leaves("", "scale")
    assert len(scales) == 1 + 3 * 5 + 13 * 3 + 3 * 2 * TINY.stacked_convs
    assert all(np.all(scale == 1) for scale in scales.values())
    for path, bias in leaves("", "norm/bias").items():
        assert np.all(bias == np.float32(1e-4 if path.startswith("backbone") else 0)), path
    laterals = leaves("neck", "bias")
    assert len(laterals) == 3 and not any(bias.any() for bias in laterals.values())
    stats = leaves("", "", collection="batch_stats")
    assert len(stats) == 2 * len(scales)
    assert all(np.all(leaf == path.endswith("var")) for path, leaf in stats.items())


def test_seeds_give_different_variables():
    other = init_variables(build_model(TINY), seed=1)["params"]["head"]["output_0"]["kernel"]
    assert not np.any(initial()["params"]["head"]["output_0"]["kernel"] == other)


def test_predictions_have_the_order_of_the_priors():
    predictions, seen = trained()
    priors = priors_of(TINY, SIZE)
    bins = 4 * (TINY.reg_max + 1)
    assert predictions.class_logits.shape == (2, len(priors.strides), TINY.num_classes)
    assert predictions.box_logits.shape == (2, len(priors.strides), 4, TINY.reg_max + 1)
    head, neck = seen["intermediates"]["head"], seen["intermediates"]["neck"]["__call__"][0]
    for prior, (x, y) in enumerate(priors.centers):
        level = int(np.log2(priors.strides[prior])) - 3
        row, column = int(y // priors.strides[prior]), int(x // priors.strides[prior])
        assert neck[level].shape[1:3] == (SIZE[0] // 8 >> level, SIZE[1] // 8 >> level)
        output = np.asarray(head[OUTPUTS[level]]["__call__"][0])[:, row, column]
        np.testing.assert_array_equal(predictions.class_logits[:, prior], output[:, :-bins])
        sides = output[:, -bins:].reshape(2, 4, -1)
        np.testing.assert_array_equal(predictions.box_logits[:, prior], sides)


def test_only_training_updates_batch_statistics():
    _, seen = trained()
    changed = flatten(seen["batch_stats"])
    for path, old in flatten(initial()["batch_stats"]).items():
        assert np.all(changed[path] != old), path
    # Nine tenths of the old variance, 1, remain.
    assert all(np.all(leaf > 0.9) for path, leaf in changed.items() if path.endswith("var"))
    # Updating a collection that is not mutable raises an error.
    images = jax.ShapeDtypeStruct((2, *SIZE, 3), np.float32)
    model = build_model(TINY)
    jax.eval_shape(model.apply, initial(), images)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        jax.eval_shape(partial(model.apply, train=True), initial(), images)


def test_head_without_share_cls_reg_has_separate_towers():
    head = NanoDetHead(3, 32, 3, 1, False, 7, norm=partial(BatchNorm, use_running_average=True))
    random = np.random.default_rng(1)
    features = [random.normal(size=(2, 3, 2, 32)).astype(np.float32)]
    variables = backend.jit(head.init)(jax.random.key(0), features)
    params = variables["params"]
    for name in ("cls_tower_0_0", "reg_tower_0_0"):
        check_normal(name, np.asarray(params[name]["pointwise"]["kernel"]), 0.01)
    for name, start in (("cls_output_0", -4.595), ("reg_output_0", 0)):
        check_normal(name, np.asarray(params[name]["kernel"]), 0.01)
        assert np.all(params[name]["bias"] == np.float32(start))
    # Zeroing the tower of the boxes does not change the classes.
    apply = backend.jit(head.apply)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    both = apply(variables, features)
    kernel = variables["params"]["reg_tower_0_0"]["pointwise"]
    kernel["kernel"] = jnp.zeros_like(kernel["kernel"])
    classes_only = apply(variables, features)
    np.testing.assert_array_equal(classes_only.class_logits, both.class_logits)
    assert np.all(np.any(classes_only.box_logits != both.box_logits, axis=(2, 3)))
    # The config's share_cls_reg reaches the head.
    model = build_model(SEPARATE)
    images = jax.ShapeDtypeStruct((1, 32, 64, 3), np.float32)
    shapes = abstract_variables(model)
    assert {"reg_tower_2_1", "reg_output_2"} <= set(shapes["params"]["head"])
    predictions = jax.eval_shape(model.apply, shapes, images)
    count = len(priors_of(SEPARATE, (32, 64)).strides)
    assert predictions.class_logits.shape == (1, count, 3)
    assert predictions.box_logits.shape == (1, count, 4, 8)
