"""The guidance: its head, detaching, initialization from the neck, and inference without it."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import coco
from nanodet_jax import config
from nanodet_jax.io.torch_names import flatten
from nanodet_jax.models import nanodet
from nanodet_jax.models.guidance import (
    Guidance,
    copy_neck_to_guidance,
    strip_guidance,
)
from nanodet_jax.models.heads.simple_conv_head import SimpleConvHead
from nanodet_jax.models.layers import ConvNormAct, LayerFactory
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.models.padding import Padding
from nanodet_jax.runtime import backend
from nanodet_jax.state import abstract_variables, init_variables
from nanodet_jax.structures import Predictions
from tests.models.test_nanodet import check_normal

TINY = config.Model(
    num_classes=3, channels=8, stacked_convs=1, guidance_channels=32, guidance_convs=1
)


class TinyBackbone(nn.Module):
    """Stand-in for `Backbone`, which takes most of the compilation time."""

    model: config.Model
    norm: LayerFactory
    train: bool
    fused: bool
    padding: Padding

    @nn.compact
    def __call__(self, x):
        features = []
        for i, channels in enumerate((6, 8, 10)):
            window = (2, 2) if features else (8, 8)
            x = ConvNormAct(channels, self.norm, name=f"stage_{i}")(nn.avg_pool(x, window, window))
            features.append(x)
        return features


def with_tiny_backbone():
    """Patch networks to be built on `TinyBackbone`, until `undo`."""
    patch = pytest.MonkeyPatch()
    patch.setattr(nanodet, "Backbone", TinyBackbone)
    return patch


def drawn(shapes, seed=0):
    """Draw variables that differ from their initial values; kernels roughly keep variances."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        match path[-1].key:
            case "kernel":
                return random.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:3]))
            case "var" | "scale" | "factor":
                return random.uniform(0.5, 2, leaf.shape)
        return random.normal(size=leaf.shape) / 2

    def draw_array(path, leaf):
        return np.asarray(draw(path, leaf), np.float32)

    return jax.tree_util.tree_map_with_path(draw_array, shapes)


class Results(NamedTuple):
    """Results of a tiny network with a guidance."""

    initial: dict
    without_guidance: dict  # shapes
    variables: dict  # different from the initial ones
    called: Predictions
    called_stripped: Predictions  # with variables without the guidance
    evaluated: tuple[Predictions, ...]
    gradients: dict[bool, dict]  # of the guidance's loss, by detach
    trained: dict[bool, tuple[Predictions, ...]]
    updated: dict  # batch statistics
    traces: int  # of the program that computes both gradients


@pytest.fixture(scope="module")
def results():
    patch = with_tiny_backbone()
    model = build_model(TINY)
    initial = init_variables(model, seed=0)
    variables = drawn(initial)
    images = np.random.default_rng(1).normal(size=(2, 64, 96, 3)).astype(np.float32)
    call = backend.jit(model.apply)
    evaluate = backend.jit(partial(model.apply, method="branches", train=False))
    traces = []

    @backend.jit_once
    def train(variables, images, detach):
        traces.append(detach)

        def loss(params):
            given = {**variables, "params": params}
            branches, updated = model.apply(
                given, images, detach, method="branches", mutable=["batch_stats"]
            )
            total = sum(jnp.sum(jnp.square(values)) for values in branches[1])
            return total, (branches, updated["batch_stats"])

        return jax.grad(loss, has_aux=True)(variables["params"])

    trained = {detach: train(variables, images, detach) for detach in (False, True)}
    found = Results(
        initial,
        abstract_variables(model),
        variables,
        call(variables, images),
        call(strip_guidance(variables), images),
        evaluate(variables, images),
        {detach: gradients for detach, (gradients, _) in trained.items()},
        {detach: branches for detach, (_, (branches, _)) in trained.items()},
        trained[True][1][1],
        len(traces),
    )
    patch.undo()
    return found


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# Counted in the original, with batch norm and 80 classes.
@pytest.mark.parametrize(
    ("variant", "infer", "train"),
    [("nanodet-plus-m", 1_197_924, 4_330_904), ("nanodet-plus-m-1.5x", 2_477_792, 7_962_196)],
)
def test_parameter_counts_equal_the_originals(variant, infer, train):
    small, large = (coco.get_config(f"{variant}_{size}").model for size in (320, 416))
    assert small == large
    small.num_classes = 80
    model = build_model(small)
    whole = abstract_variables(model, guided=True)
    sizes = {path: leaf.size for path, leaf in flatten(whole["params"]).items()}
    assert sum(sizes.values()) == train
    assert sum(size for path, size in sizes.items() if "guidance" not in path) == infer


def test_predictions_do_not_need_the_guidance(results):
    shapes = jax.tree.map(np.shape, strip_guidance(results.variables))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, results.without_guidance)
    assert set(results.without_guidance["params"]) == {"backbone", "neck", "head"}
    assert set(results.variables["params"]) == {"backbone", "neck", "head", "guidance"}
    assert_same(results.called_stripped, results.called)
    assert_same(results.evaluated[0], results.called)
    # The guidance predicts other values of the same shapes.
    for own, guidance in zip(results.called, results.evaluated[1], strict=True):
        assert own.shape == guidance.shape
        assert not np.any(own == guidance)


def test_guidance_starts_with_a_copy_of_the_neck(results):
    params = results.initial["params"]
    assert_same(params["guidance"]["neck"], params["neck"])
    assert all(leaf.any() for path, leaf in flatten(params["neck"]).items() if "kernel" in path)
    # Statistics are copied too, if the neck has some. The argument is not changed.
    leaf = np.arange
    before = {
        "params": {
            "neck": leaf(2),
            "head": leaf(3),
            "guidance": {"neck": leaf(4), "head": leaf(5)},
        },
        "batch_stats": {"neck": leaf(6), "guidance": {"neck": leaf(7)}},
    }
    after = copy_neck_to_guidance(before)
    assert_same(
        after,
        {
            "params": {
                "neck": leaf(2),
                "head": leaf(3),
                "guidance": {"neck": leaf(2), "head": leaf(5)},
            },
            "batch_stats": {"neck": leaf(6), "guidance": {"neck": leaf(6)}},
        },
    )
    assert len(before["params"]["guidance"]["neck"]) == 4
    assert_same(copy_neck_to_guidance(strip_guidance(before)), strip_guidance(before))


def test_detach_stops_gradients_to_backbone_and_neck(results):
    cut, joined = results.gradients[True], results.gradients[False]
    for part in ("backbone", "neck"):
        for path, gradient in flatten(cut[part]).items():
            assert not np.any(gradient), path
            assert np.any(flatten(joined[part])[path]), path
    for gradients in (cut, joined):
        assert not any(np.any(gradient) for gradient in jax.tree.leaves(gradients["head"]))
    assert all(np.any(gradient) for gradient in jax.tree.leaves(cut["guidance"]))
    assert_same(cut["guidance"], joined["guidance"])


def test_detach_neither_changes_values_nor_retraces(results):
    assert results.traces == 1
    assert_same(results.trained[True], results.trained[False])


def test_training_updates_all_batch_statistics(results):
    before = flatten(results.variables["batch_stats"])
    for path, leaf in flatten(results.updated).items():
        assert np.all(leaf != before[path]), path


class Twice(nn.Module):
    """Stand-in for a neck."""

    def __call__(self, features):
        return [2 * x for x in features]


class Same(nn.Module):
    """Stand-in for a head."""

    def __call__(self, features):
        return features


def test_head_input_concatenates_the_first_neck_and_the_second():
    features, levels = (
        [jnp.full((1, 2, 3, i), start + i) for i in (1, 2)] for start in (10.0, 20.0)
    )
    seen = Guidance(Twice, Same).apply({}, features, levels, True)
    assert [x[0, 0, 0].tolist() for x in seen] == [[21, 22], [22, 22, 24, 24]]
    assert [x.shape for x in seen] == [(1, 2, 3, 2), (1, 2, 3, 4)]


HEAD = SimpleConvHead(num_classes=3, channels=64, stacked_convs=2, reg_max=2)


def head_features(offset=0.0):
    random = np.random.default_rng(2)
    sizes = [(3, 4), (1, 2)]
    return [(random.normal(size=(2, *size, 6)) + offset).astype(np.float32) for size in sizes]


def convolved(x, params):
    """Convolve with a 3 x 3 kernel and zero padding."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1:3]
    return params.get("bias", 0) + sum(
        padded[:, i : i + rows, j : j + columns] @ params["kernel"][i, j]
        for i, j in np.ndindex(3, 3)
    )


def normalized(x, params):
    """Normalize each of 32 groups of adjacent channels, and each image, separately."""
    output = np.empty_like(x)
    for image, group in np.ndindex(len(x), 32):
        channels = slice(2 * group, 2 * group + 2)
        values = x[image, ..., channels]
        deviations = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        output[image, ..., channels] = deviations
    return output * params["scale"] + params["bias"]


def plain_head(params, features):
    """Return class logits and box logits of SimpleConvHead, in numpy."""
    params = jax.tree.map(np.float64, params)
    logits = []
    for kind in ("cls", "reg"):
        levels = []
        for i, x in enumerate(features):
            x = x.astype(np.float64)
            for depth in range(2):
                tower = params[f"{kind}_tower_{depth}"]
                x = normalized(convolved(x, tower["conv"]), tower["norm"])
                x = np.where(x > 0, x, 0.1 * x)
            x = convolved(x, params[f"{kind}_output"])
            if kind == "reg":
                x = x * params[f"scale_{i}"]["factor"]
            levels.append(x.reshape(len(x), -1, x.shape[-1]))
        logits.append(np.concatenate(levels, axis=1))
    return logits[0], logits[1].reshape(2, -1, 4, 3)


def test_simple_conv_head_equals_numpy():
    shapes = jax.eval_shape(HEAD.init, jax.random.key(0), head_features())
    variables = drawn(shapes)
    params = variables["params"]
    # All levels share their parameters, except one scalar each.
    assert params["scale_0"]["factor"].shape == params["scale_1"]["factor"].shape == ()
    assert params["scale_0"]["factor"] != params["scale_1"]["factor"]
    assert set(params) == {
        *(f"{kind}_{part}" for kind in ("cls", "reg") for part in ("tower_0", "tower_1", "output")),
        *("scale_0", "scale_1"),
    }
    params["cls_tower_0"]["conv"]["kernel"][..., 10:20] *= 1e-3  # so that epsilon matters
    apply = backend.jit_once(HEAD.apply)

    def check(features, tolerance):
        actual, expected = apply(variables, features), plain_head(params, features)
        for logits, exact in zip(actual, expected, strict=True):
            assert logits.shape == exact.shape and exact.std() > 0.3
            np.testing.assert_allclose(logits, exact, rtol=tolerance, atol=tolerance)
        return actual

    before = check(head_features(), 1e-5)
    # A scale multiplies only the box logits of its level.
    params["scale_1"]["factor"] *= np.float32(2)
    after = check(head_features(), 1e-5)
    np.testing.assert_array_equal(after.class_logits, before.class_logits)
    assert np.all((after.box_logits == before.box_logits)[:, :12])
    assert np.all((after.box_logits == 2 * before.box_logits)[:, 12:])
    # The variance stays accurate if the mean is hundreds of standard deviations.
    random = np.random.default_rng(3)
    for kind in ("cls", "reg"):
        kernel = np.zeros((3, 3, 6, 64), np.float32)
        kernel[1, 1] = np.repeat(random.uniform(0.5, 1, (6, 32)), 2, axis=1)
        params[f"{kind}_tower_0"]["conv"]["kernel"] = kernel
    check(head_features(offset=300), 2e-3)


def test_simple_conv_head_initialization():
    variables = backend.jit_once(HEAD.init)(jax.random.key(0), head_features())
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(variables["params"]).items()}
    for path, leaf in leaves.items():
        if path.endswith("kernel"):
            check_normal(path, leaf, 0.01)
        else:
            start = np.float32(-4.595 if path == "cls_output/bias" else not path.endswith("bias"))
            assert np.all(leaf == start), path
    assert sum(path.endswith("kernel") for path in leaves) == 2 * 3
    assert sum(path.endswith("norm/scale") for path in leaves) == 2 * 2
    assert leaves["scale_0/factor"].shape == leaves["scale_1/factor"].shape == ()
