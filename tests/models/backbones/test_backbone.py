"""Backbones: shapes of features, frozen stages, stored statistics, dropout, names of layers."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import config
from nanodet_jax.config import BACKBONES
from nanodet_jax.io.torch_names import flatten
from nanodet_jax.models.backbones.backbone import (
    Backbone,
    architecture_of,
    torch_names_of,
    trained_parameters,
)
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_backbone, abstract_variables

SIZE = (64, 96)
# One of each family; sizes of a family differ in numbers alone.
FAMILIES = {file: name for name, file in reversed(BACKBONES.items())}
# Channels of the features of strides 8, 16 and 32.
CHANNELS = {
    "shufflenet_v2": (116, 232, 464),
    "efficientnet_lite0": (40, 112, 320),
    "efficientnet_lite2": (48, 120, 352),
    "efficientnet_lite4": (56, 160, 448),
    "repvgg_a0": (96, 192, 1280),
    "repvgg_b3g4": (384, 768, 2560),
    "custom_csp": (128, 256, 512),
    "mobilenet_v2": (32, 96, 1280),
    "ghostnet": (40, 112, 960),
    "resnet18": (128, 256, 512),
    "resnet50": (512, 1024, 2048),
    "resnet152": (512, 1024, 2048),
    "pplcnet_x0_75": (96, 192, 384),
    "pplcnet_x2_0": (256, 512, 1024),
}
# Parameters of torchvision's classifiers without their last layer.
PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
    "mobilenet_v2": 2_223_872,
}


def build(model: config.Model, train: bool = False) -> Backbone:
    return Backbone(model, partial(BatchNorm, use_running_average=not train), train)


def shapes_of(model: config.Model):
    images = jnp.zeros((1, *SIZE, 3))
    return jax.eval_shape(build(model).init_with_output, jax.random.key(0), images)


@pytest.mark.parametrize("name", CHANNELS)
def test_features_have_the_strides_and_channels_of_the_original(name):
    features, _ = shapes_of(config.Model(backbone=name))
    expected = [
        (1, SIZE[0] // stride, SIZE[1] // stride, channels)
        for stride, channels in zip((8, 16, 32), CHANNELS[name])
    ]
    assert [x.shape for x in features] == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_equal_those_of_torchvision(name):
    _, variables = shapes_of(config.Model(backbone=name))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_name_each_layer_once_and_have_the_strides_4_to_32(name):
    model = config.Model(backbone=name, backbone_strides=(4, 8, 16, 32))
    features, variables = shapes_of(model)
    assert [SIZE[0] // x.shape[1] for x in features] == [4, 8, 16, 32]
    stages = architecture_of(model).stages
    for layer in variables["params"]:
        assert sum(bool(re.fullmatch(stage.modules, layer)) for stage in stages) == 1, layer
    assert [stage.stride for stage in stages] == sorted(stage.stride for stage in stages)


@pytest.mark.parametrize("name", FAMILIES.values())
def test_each_layer_has_a_rule_for_its_name_in_its_own_file_and_in_no_other(name):
    variables = abstract_backbone(config.Model(backbone=name))
    paths = {path.rpartition("/")[0] for path in flatten(variables)}
    layers = {re.sub(r"^(params|batch_stats)/backbone/", "", path) for path in paths}
    assert layers
    for layer in layers:
        matching = set()
        for file in BACKBONES.values():
            for pattern, _, positions in torch_names_of(file):
                match = re.fullmatch(pattern, layer)
                if match and (not positions or match.groups()[-1] in positions):
                    matching.add(file)
        assert matching == {BACKBONES[name]}, layer


def random_variables(model: config.Model):
    """Return random variables of the whole network, without compiling its initialization."""
    random = np.random.default_rng(0)
    leaves = {
        path: jnp.asarray(
            random.uniform(0.5, 1.5, leaf.shape)
            if path.endswith(("var", "scale"))
            else random.normal(0, 0.05, leaf.shape),
            jnp.float32,
        )
        for path, leaf in flatten(abstract_variables(build_model(model))).items()
    }
    from nanodet_jax.io.torch_names import unflatten

    return unflatten(leaves)


FROZEN = config.Model(
    num_classes=2, backbone="resnet18", channels=32, stacked_convs=1, frozen_stride=8
)


@functools.cache
def frozen_pass():
    """Return gradients and new statistics of a network that is frozen up to stride 8."""
    network, variables = build_model(FROZEN), random_variables(FROZEN)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 32, 3)), jnp.float32)

    def loss(params):
        (predictions,), updated = network.apply(
            {**variables, "params": params}, images, method="branches", mutable=["batch_stats"]
        )
        return jnp.sum(jnp.square(predictions.class_logits)), updated["batch_stats"]

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return variables, gradients, stats


def test_frozen_stages_have_no_gradient_and_keep_their_statistics():
    variables, gradients, stats = frozen_pass()
    frozen = {"conv1", "norm1", "layer1_0", "layer1_1", "layer2_0", "layer2_1"}
    for layer, tree in gradients["backbone"].items():
        norm = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))
        assert (norm == 0) == (layer in frozen), layer
    for layer, tree in stats["backbone"].items():
        same = jax.tree.map(
            lambda new, old: bool(jnp.array_equal(new, old)),
            tree,
            variables["batch_stats"]["backbone"][layer],
        )
        assert set(jax.tree.leaves(same)) == {layer in frozen}, layer


def test_frozen_parameters_are_not_trained():
    _, gradients, _ = frozen_pass()
    mask = trained_parameters(FROZEN)(gradients)
    for path, trained in flatten(mask).items():
        frozen = re.match(r"backbone/(conv1|norm1|layer[12]_\d)/", path) is not None
        assert trained != frozen, path
    assert trained_parameters(config.Model()) is None


def test_norm_eval_trains_with_the_stored_statistics():
    model = config.Model(num_classes=2, width=0.5, channels=16, norm_eval=True)
    variables = random_variables(model)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 32, 3)), jnp.float32)
    backbone = {name: tree["backbone"] for name, tree in variables.items()}
    trained, updated = build(model, train=True).apply(backbone, images, mutable=["batch_stats"])
    evaluated = build(model).apply(backbone, images)
    for one, other in zip(trained, evaluated, strict=True):
        np.testing.assert_array_equal(one, other)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], backbone["batch_stats"])


def test_drop_connect_drops_whole_images_by_the_key():
    model = config.Model(backbone="efficientnet_lite0", norm_eval=True)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(8, 32, 32, 3)), jnp.float32)
    variables = random_variables(config.Model(num_classes=2, backbone="efficientnet_lite0"))
    backbone = {name: tree["backbone"] for name, tree in variables.items()}

    @jax.jit
    def run(seed):
        return build(model, train=True).apply(
            backbone, images, mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)}
        )[0][-1]

    first, again, other = run(0), run(0), run(1)
    np.testing.assert_array_equal(first, again)
    changed = jnp.any(first != other, axis=(1, 2, 3))
    assert jnp.any(changed)
