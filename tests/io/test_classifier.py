"""Weights of ImageNet classifiers: every family by its published names, and the errors."""

import re
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from nanodet_jax.config import Config, Model
from nanodet_jax.errors import UserError
from nanodet_jax.io import classifier, pretrained
from nanodet_jax.io.classifier import fit_classifier
from nanodet_jax.io.torch_names import flatten, to_entries
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_backbone, abstract_variables
from nanodet_jax.training import initial_weights
from tests.io.test_pretrained import UNCLOSED, folder, server  # noqa: F401
from tests.io.test_torch_archive import save, tensor, torch  # noqa: F401

# Tests of one backbone share its shapes: tracing it takes a second.
SHAPES: dict[str, Any] = {}

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
FIELD = "config.training.init_backbone"


@pytest.fixture(autouse=True)
def share_shapes(monkeypatch):
    monkeypatch.setattr(classifier, "abstract_backbone", shapes_of)


def shapes_of(model):
    key = f"{model.backbone} {model.width} {model.backbone_last_channels}"
    if key not in SHAPES:
        SHAPES[key] = abstract_backbone(model)
    return SHAPES[key]


def linear(name, features):
    return {f"{name}.weight": (1000, features), f"{name}.bias": (1000,)}


def conv_norm(name, features, inputs):
    norm = {f"{name}.1.{leaf}": (features,) for leaf in BATCH_NORM}
    return {f"{name}.0.weight": (features, inputs, 1, 1), **norm}


# Arrays of the classifiers that the backbones lack.
EXTRA = {
    "resnet18": linear("fc", 512),
    "resnet50": linear("fc", 2048),
    "shufflenet_v2": conv_norm("conv5", 1024, 464) | linear("fc", 1024),
    "mobilenet_v2": linear("classifier.1", 1280),
    "efficientnet_lite0": conv_norm("head", 1280, 320) | linear("fc", 1280),
    "repvgg_a0": linear("linear", 1280),
    "ghostnet": {"conv_head.weight": (1280, 960, 1, 1), "conv_head.bias": (1280,)}
    | linear("classifier", 1280),
}
# Some published names, with the path below "backbone" of the array.
NAMES = {
    "resnet18": {
        "conv1.weight": "conv1/kernel",
        "layer2.0.downsample.1.running_var": "layer2_0/shortcut_norm/var",
        "layer4.1.bn2.bias": "layer4_1/norm2/bias",
    },
    "resnet50": {"layer3.5.conv3.weight": "layer3_5/conv3/kernel"},
    "shufflenet_v2": {
        "conv1.1.running_mean": "stem_norm/mean",
        "stage3.7.branch2.5.weight": "stage3_7/main/pointwise_out/kernel",
    },
    "mobilenet_v2": {
        "features.0.0.weight": "first_layer/conv/kernel",
        "features.1.conv.0.0.weight": "stage0_0/depthwise/kernel",
        "features.1.conv.2.running_var": "stage0_0/project_norm/var",
        "features.2.conv.0.0.weight": "stage1_0/expand/kernel",
        "features.7.conv.1.1.bias": "stage3_0/depthwise_norm/bias",
        "features.13.conv.2.weight": "stage4_2/project/kernel",
        "features.17.conv.3.weight": "stage6_0/project_norm/scale",
        "features.18.0.weight": "last_layer/conv/kernel",
        "features.18.1.running_mean": "last_layer/norm/mean",
    },
    "efficientnet_lite0": {
        "stem.0.weight": "stem/conv/kernel",
        "blocks.5.3._project_conv.weight": "blocks5_3/project/kernel",
        "blocks.6.0._bn0.running_var": "blocks6_0/expand_norm/var",
    },
    "repvgg_a0": {
        "stage0.rbr_dense.conv.weight": "stage0/dense/kernel",
        "stage0.rbr_1x1.bn.running_mean": "stage0/pointwise_norm/mean",
        "stage3.13.rbr_identity.weight": "stage3_13/identity_norm/scale",
        "stage4.0.rbr_1x1.conv.weight": "stage4_0/pointwise/kernel",
    },
    "ghostnet": {
        "conv_stem.weight": "conv_stem/kernel",
        "blocks.3.0.se.conv_expand.bias": "blocks3_0/squeeze/expand/bias",
        "blocks.9.0.conv.weight": "last/kernel",
    },
}
FIRST_OF_STAGE = (1, 2, 4, 7, 11, 14, 17)  # position of the first block of each MobileNetV2 stage


def mobilenet_name(name):
    name = name.replace("first_layer", "features.0").replace("stage6.1", "features.18")
    return re.sub(
        r"stage(\d)\.(\d)",
        lambda match: f"features.{FIRST_OF_STAGE[int(match[1])] + int(match[2])}",
        name,
    )


def repvgg_name(name):
    for branch in ("rbr_dense", "rbr_1x1"):
        name = name.replace(f"{branch}.0", f"{branch}.conv").replace(f"{branch}.1", f"{branch}.bn")
    return name


PUBLISHED = {"mobilenet_v2": mobilenet_name, "repvgg_a0": repvgg_name}


def drawn(like, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), like)


def classifier_of(model):
    """Return random variables of a backbone, and the entries of a classifier that has them."""
    variables = drawn(shapes_of(model))
    published = PUBLISHED.get(model.backbone, str)
    entries = {
        published(name.removeprefix("backbone.")): entry
        for name, entry in to_entries(variables).items()
    }
    entries |= {
        name.replace("running_mean", "num_batches_tracked"): np.array(7)
        for name in entries
        if name.endswith("running_mean")
    }
    extra = EXTRA.get(model.backbone, {})
    return flatten(variables), entries | {name: np.ones(shape) for name, shape in extra.items()}


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for path, leaf in actual.items():
        assert leaf.dtype == np.float32, path
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


@pytest.mark.parametrize("backbone", EXTRA)
def test_classifier_gives_every_array_of_the_backbone(backbone):
    leaves, entries = classifier_of(Model(backbone=backbone))
    arrays = fit_classifier(entries, Model(backbone=backbone), "file.pth")
    assert_same(arrays.leaves, leaves)
    assert arrays.new == [] and arrays.unused == list(EXTRA[backbone])
    for name, path in NAMES[backbone].items():
        collection = "batch_stats" if path.endswith(("mean", "var")) else "params"
        array = leaves[f"{collection}/backbone/{path}"]
        there = entries[name].transpose(2, 3, 1, 0) if array.ndim == 4 else entries[name]
        np.testing.assert_array_equal(array, there, err_msg=name)


def test_backbone_without_a_published_classifier_takes_a_file_with_its_own_names():
    model = Model(backbone="custom_csp")
    leaves, entries = classifier_of(model)
    assert_same(fit_classifier(entries, model, "file.pth").leaves, leaves)


def fails(entries, model):
    with pytest.raises(UserError) as caught:
        fit_classifier(entries, model, "field=file.pth")
    return str(caught.value)


def test_missing_left_over_and_misshapen_arrays_are_named_with_their_published_names():
    model = Model(backbone="mobilenet_v2")
    _, entries = classifier_of(model)
    start = "field=file.pth: does not fit config.model.backbone=mobilenet_v2; "
    end = "; use the file of a classifier with this backbone, or another config.model.backbone"
    without = {
        name: entry for name, entry in entries.items() if not name.startswith("features.0.0")
    }
    assert fails(without, model) == f"{start}missing: features.0.0.weight{end}"
    surplus = entries | {"features.19.0.weight\x1b": np.ones(1)}
    assert fails(surplus, model) == f"{start}unexpected: features.19.0.weight\\x1b{end}"
    grayscale = entries | {"features.0.0.weight": np.ones((32, 1, 3, 3))}
    assert fails(grayscale, model) == (
        f"{start}wrong shape: features.0.0.weight (32, 1, 3, 3) instead of (32, 3, 3, 3){end}"
    )
    others = {f"layer.{i}": np.ones(1) for i in range(9)}
    message = fails(others, model)
    assert re.search(r"missing: (\S+, ){4}\S+ and \d+ more; unexpected: layer\.0, ", message)
    assert "layer.4 and 4 more" in message


def test_file_of_another_size_or_backbone_names_the_config_that_fits():
    _, entries = classifier_of(Model(width=0.5))
    message = fails(entries, Model())
    assert " (24,) instead of (58,)" in message and "missing" not in message
    assert message.endswith("; set config.model.width=0.5, which the file fits")
    _, entries = classifier_of(Model(backbone="mobilenet_v2"))
    message = fails(entries, Model(width=0.5))
    assert message.endswith(
        "; set config.model.backbone=mobilenet_v2 and config.model.width=1.0, which the file fits"
    )


@pytest.mark.parametrize(
    ("backbone", "layer"), [("mobilenet_v2", "last_layer"), ("repvgg_a0", "stage4_0")]
)
def test_last_layer_with_other_channels_stays_random(backbone, layer):
    model = Model(backbone=backbone)
    leaves, entries = classifier_of(model)
    arrays = fit_classifier(entries, replace(model, backbone_last_channels=640), "file.pth")
    assert arrays.new == [layer]
    assert_same(
        arrays.leaves,
        {path: leaf for path, leaf in leaves.items() if f"/backbone/{layer}/" not in path},
    )
    same = fit_classifier(entries, replace(model, backbone_last_channels=1280), "file.pth")
    assert same.new == []
    assert_same(same.leaves, leaves)


def test_other_layers_must_fit_with_other_last_channels():
    _, entries = classifier_of(Model(backbone="mobilenet_v2"))
    message = fails(
        entries | {"features.17.conv.2.weight": np.ones(1)},
        Model(backbone="mobilenet_v2", backbone_last_channels=640),
    )
    assert "wrong shape: features.17.conv.2.weight (1,) instead of " in message
    assert message.count(" instead of ") == 1


def config_of(path, **fields):
    config = Config(model=Model(num_classes=2, **{"width": 0.5, "channels": 32} | fields))
    config.training.init_backbone = str(path)
    return config


@pytest.fixture
def half(torch):  # noqa: F811
    """Variables of ShuffleNetV2 0.5, and a classifier to save as a file."""
    leaves, entries = classifier_of(Model(width=0.5))
    entries["fc.bias"] = np.ones(10)
    state = {name: tensor(str(i), entry) for i, (name, entry) in enumerate(entries.items())}
    return leaves, state


def test_run_starts_from_the_backbone_of_a_file_and_a_random_neck_and_head(
    half, tmp_path, monkeypatch
):
    leaves, state = half
    wrapped = {"state_dict": {f"module.{name}": entry for name, entry in state.items()}}
    path = save(tmp_path / "half.pth", wrapped)
    config = config_of(path)
    model = build_model(config.model)
    random = drawn(abstract_variables(model), seed=1)
    monkeypatch.setattr(initial_weights, "init_variables", lambda model, seed: random)
    arrays = initial_weights.read_initial_weights(config)
    variables, origin = initial_weights.initial_variables(config, model, arrays)
    assert jax.tree.structure(variables) == jax.tree.structure(random)
    expected = {path: leaf for path, leaf in flatten(random).items() if "/backbone/" not in path}
    assert len(expected) > 50
    assert_same(flatten(variables), expected | leaves)
    assert origin == (
        f"backbone from {path}: {len(leaves)} arrays; neck and head start from random weights; "
        "not used: conv5.0.weight, conv5.1.weight, conv5.1.bias, conv5.1.running_mean, "
        "conv5.1.running_var and 2 more"
    )


def test_log_names_the_layers_that_stay_random(monkeypatch):
    config = config_of("mobilenet_v2")
    config.model = Model(num_classes=2, backbone="mobilenet_v2", backbone_last_channels=64)
    _, entries = classifier_of(Model(backbone="mobilenet_v2"))
    monkeypatch.setattr(initial_weights, "load_classifier", lambda path: entries)
    monkeypatch.setattr(
        initial_weights, "init_variables", lambda model, seed: drawn(abstract_variables(model))
    )
    arrays = initial_weights.read_initial_weights(config)
    _, origin = initial_weights.initial_variables(config, build_model(config.model), arrays)
    assert origin == (
        "backbone from mobilenet_v2: 255 arrays; last_layer, neck and head start from random "
        "weights; not used: classifier.1.weight, classifier.1.bias"
    )


@pytest.mark.filterwarnings(f"ignore:{UNCLOSED}:ResourceWarning")
def test_published_name_is_downloaded(half, tmp_path, monkeypatch, server, folder):  # noqa: F811
    leaves, state = half
    server.files["/half.pth"] = save(tmp_path / "half.pth", state).read_bytes()
    name = "shufflenet_v2_x0_5"
    monkeypatch.setitem(pretrained.ADDRESSES, name, f"{server.address}/half.pth")
    for _ in range(2):
        arrays = initial_weights.read_initial_weights(config_of(name))
        assert_same(arrays.leaves, leaves)
    assert server.requests["/half.pth"] == 1 and (folder / "half.pth").exists()


def refused(config):
    with pytest.raises(UserError) as caught:
        initial_weights.read_initial_weights(config)
    return str(caught.value)


def test_other_weights_are_refused_with_the_field_to_use(half, torch, tmp_path):  # noqa: F811
    _, state = half
    fix = "; use the .pth file or the name of a classifier, or set config.training.init_weights"
    detector = save(tmp_path / "detector.ckpt", {"backbone.a": tensor("0", np.ones(1))})
    (tmp_path / "weights.npz").touch()
    for path, reason in {
        "nanodet-plus-m_320": "is the name of a detector",
        tmp_path: "is not a PyTorch file",
        tmp_path / "weights.npz": "is not a PyTorch file",
        detector: "contains a detector",
    }.items():
        assert refused(config_of(path)) == f"{FIELD}: {path}: {reason}{fix}"
    assert refused(config_of("resnet19")).startswith(f"{FIELD}: resnet19: no such weights; ")
    path = save(tmp_path / "half.pth", state)
    message = refused(config_of(path, backbone_strides=(8, 16, 32), backbone="resnet18"))
    assert message.startswith(f"{FIELD}={path}: does not fit config.model.backbone=resnet18; ")
