"""Conversion of names and layouts, and its errors, without weight files."""

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import coco
from nanodet_jax import config
from nanodet_jax.errors import UserError
from nanodet_jax.io import torch_names, weights
from nanodet_jax.io.infer_model import infer_model
from nanodet_jax.models.guidance import strip_guidance
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables

MANIFEST = Path(__file__).parents[1] / "reference" / "manifest.json"

MODELS = {
    "shared": config.Model(num_classes=3, width=0.5, channels=32, stacked_convs=1, reg_max=4),
    "separate": config.Model(num_classes=2, width=0.5, channels=40, share_cls_reg=False),
    "wide": config.Model(num_classes=1, width=1.5, channels=24, stacked_convs=3),
    "plus": replace(
        coco.plus_model(0.5, 32),
        num_classes=3,
        stacked_convs=1,
        reg_max=4,
        guidance_channels=32,
        guidance_convs=1,
    ),
    "plus of three levels": replace(
        coco.plus_model(1.0, 16),
        num_classes=2,
        neck_blocks=2,
        extra_level=False,
        kernel_size=3,
        guidance_channels=64,
        guidance_convs=3,
    ),
}
BINS = 20  # of "shared" and "plus": 4 sides with 5 bins


@functools.cache
def shapes(name):
    return abstract_variables(build_model(MODELS[name]), guided=True)


def drawn(like, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), like)


def entries_of(name, seed=0):
    """Return a state_dict as the original writes it, with the entries that are not used."""
    entries = torch_names.to_entries(drawn(shapes(name), seed))
    entries |= {
        re.sub("running_mean", "num_batches_tracked", key): np.int64(7)
        for key in entries
        if key.endswith("running_mean")
    }
    model = MODELS[name]
    entries["head.distribution_project.project"] = np.arange(model.reg_max + 1.0)
    if model.share_cls_reg and model.neck == "pan":
        for level in range(3):
            bins = 4 * (model.reg_max + 1)
            entries[f"head.gfl_reg.{level}.weight"] = np.ones((bins, model.channels, 1, 1))
            entries[f"head.gfl_reg.{level}.bias"] = np.ones(bins)
    return entries


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", MODELS)
def test_convert_is_the_exact_inverse_of_to_entries(name):
    variables = drawn(shapes(name))
    entries = torch_names.to_entries(variables)
    assert len(entries) == len(jax.tree.leaves(variables))
    back = torch_names.convert(entries, shapes(name))
    assert_same(back, variables)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(back))
    assert_same(torch_names.convert(entries_of(name), shapes(name)), variables)


def test_names_and_layouts_of_nanodet_match_the_original():
    variables = drawn(shapes("separate"))
    leaves, entries = torch_names.flatten(variables), torch_names.to_entries(variables)
    for path, name in {
        "params/backbone/stem/kernel": "backbone.conv1.0.weight",
        "params/backbone/stem_norm/scale": "backbone.conv1.1.weight",
        "params/backbone/stage2_0/shortcut/depthwise/kernel": "backbone.stage2.0.branch1.0.weight",
        "batch_stats/backbone/stage3_0/shortcut/pwnorm/var": (
            "backbone.stage3.0.branch1.3.running_var"
        ),
        "params/backbone/stage3_7/main/pointwise_in/kernel": "backbone.stage3.7.branch2.0.weight",
        "params/backbone/stage4_3/main/dwnorm/bias": "backbone.stage4.3.branch2.4.bias",
        "batch_stats/backbone/stage4_3/main/outnorm/mean": (
            "backbone.stage4.3.branch2.6.running_mean"
        ),
        "params/neck/lateral_2/bias": "fpn.lateral_convs.2.conv.bias",
        "params/head/cls_tower_0_1/pwnorm/scale": "head.cls_convs.0.1.pwnorm.weight",
        "params/head/reg_tower_2_0/depthwise/kernel": "head.reg_convs.2.0.depthwise.weight",
        "params/head/cls_output_1/kernel": "head.gfl_cls.1.weight",
        "params/head/reg_output_1/bias": "head.gfl_reg.1.bias",
    }.items():
        here, there = leaves[path], entries[name]
        if here.ndim == 4:  # [row, column, in, out] and [out, in, row, column]
            assert there.shape == (*here.shape[:1:-1], *here.shape[:2])
            for i in np.ndindex(*here.shape[:2]):
                np.testing.assert_array_equal(there[:, :, *i].T, here[i])
        else:
            np.testing.assert_array_equal(there, here)
    assert torch_names.pytorch_name("params/head/output_2/kernel") == "head.gfl_cls.2.weight"
    with pytest.raises(KeyError, match="no rule for params/head/unknown/kernel"):
        torch_names.pytorch_name("params/head/unknown/kernel")


def test_names_of_nanodet_plus_match_the_original():
    variables = drawn(shapes("plus of three levels"))
    leaves, entries = torch_names.flatten(variables), torch_names.to_entries(variables)
    for path, name in {
        "neck/lateral_2/conv/kernel": "fpn.reduce_layers.2.conv.weight",
        "neck/lateral_0/norm/bias": "fpn.reduce_layers.0.bn.bias",
        "neck/top_down_0_0/ghost1/primary/kernel": (
            "fpn.top_down_blocks.0.blocks.0.ghost1.primary_conv.0.weight"
        ),
        "neck/top_down_1_1/ghost2/primary_norm/scale": (
            "fpn.top_down_blocks.1.blocks.1.ghost2.primary_conv.1.weight"
        ),
        "neck/bottom_up_1_0/ghost2/cheap/kernel": (
            "fpn.bottom_up_blocks.1.blocks.0.ghost2.cheap_operation.0.weight"
        ),
        "neck/bottom_up_0_1/ghost1/cheap_norm/bias": (
            "fpn.bottom_up_blocks.0.blocks.1.ghost1.cheap_operation.1.bias"
        ),
        "neck/top_down_0_0/shortcut/depthwise/kernel": (
            "fpn.top_down_blocks.0.blocks.0.shortcut.0.weight"
        ),
        "neck/top_down_1_0/shortcut/dwnorm/scale": (
            "fpn.top_down_blocks.1.blocks.0.shortcut.1.weight"
        ),
        "neck/bottom_up_0_0/shortcut/pointwise/kernel": (
            "fpn.bottom_up_blocks.0.blocks.0.shortcut.2.weight"
        ),
        "neck/bottom_up_1_0/shortcut/pwnorm/bias": (
            "fpn.bottom_up_blocks.1.blocks.0.shortcut.3.bias"
        ),
        "neck/downsample_1/pointwise/kernel": "fpn.downsamples.1.pointwise.weight",
        "neck/downsample_0/dwnorm/scale": "fpn.downsamples.0.dwnorm.weight",
        "head/cls_tower_2_1/depthwise/kernel": "head.cls_convs.2.1.depthwise.weight",
        "head/output_2/bias": "head.gfl_cls.2.bias",
        "guidance/neck/lateral_1/norm/scale": "aux_fpn.reduce_layers.1.bn.weight",
        "guidance/neck/downsample_1/pwnorm/bias": "aux_fpn.downsamples.1.pwnorm.bias",
        "guidance/head/cls_tower_2/conv/kernel": "aux_head.cls_convs.2.conv.weight",
        "guidance/head/reg_tower_1/norm/scale": "aux_head.reg_convs.1.gn.weight",
        "guidance/head/cls_output/kernel": "aux_head.gfl_cls.weight",
        "guidance/head/reg_output/bias": "aux_head.gfl_reg.bias",
        "guidance/head/scale_2/factor": "aux_head.scales.2.scale",
    }.items():
        np.testing.assert_array_equal(
            entries.pop(name), torch_names.to_pytorch(leaves[f"params/{path}"]), err_msg=name
        )
    for part, name in (("entry", "in"), ("last", "out")):
        extra = f"params/neck/extra_{part}/depthwise/kernel"
        assert torch_names.pytorch_name(extra) == f"fpn.extra_lvl_{name}_conv.0.depthwise.weight"
    with pytest.raises(KeyError, match="no rule"):
        torch_names.pytorch_name("params/guidance/other/kernel")


def test_names_of_picodet_follow_paddledetection():
    model = replace(coco.get_config("picodet-s_320").model, num_classes=2)
    paths = torch_names.flatten(abstract_variables(build_model(model)))
    names = {path: torch_names.pytorch_name(path) for path in paths}
    assert len(set(names.values())) == len(names)
    for path, name in {
        "backbone/conv1/conv/kernel": "backbone.conv1.conv.weight",
        "backbone/conv1/norm/scale": "backbone.conv1.bn.weight",
        "backbone/block2_0/depthwise/kernel": "backbone.blocks2.0.dw_conv.conv.weight",
        "backbone/block5_5/dwnorm/bias": "backbone.blocks5.5.dw_conv.bn.bias",
        "backbone/block6_0/squeeze/reduce/kernel": "backbone.blocks6.0.se.conv1.weight",
        "backbone/block6_1/squeeze/expand/bias": "backbone.blocks6.1.se.conv2.bias",
        "backbone/block6_1/pointwise/kernel": "backbone.blocks6.1.pw_conv.conv.weight",
        "backbone/block6_1/pwnorm/scale": "backbone.blocks6.1.pw_conv.bn.weight",
        "neck/bottom_up_1_0/depthwise/kernel": "fpn.bottom_up_blocks.1.0.depthwise.weight",
        "head/excite_3/gate/bias": "head.se.3.fc.bias",
        "head/excite_0_conv/norm/bias": "head.se.0.conv.norm.bias",
        "head/align_1_0/conv/kernel": "head.cls_align.1.dwconv.weight",
        "head/align_1_1/norm/scale": "head.cls_align.1.bn2.weight",
    }.items():
        assert names[f"params/{path}"] == name


def test_every_entry_of_nanodet_plus_is_converted_or_unused():
    manifest = json.loads(MANIFEST.read_text())["nanodet-plus-m"]
    model = coco.get_config("nanodet-plus-m_320").model
    model.num_classes = 80
    like = {name: np.broadcast_to(np.float32(0), shape) for name, shape in manifest.items()}
    assert infer_model(like) == model
    variables = abstract_variables(build_model(model), guided=True)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    actual = {name: list(entry.shape) for name, entry in torch_names.to_entries(zeros).items()}
    unread = {name for name in manifest if name.endswith("num_batches_tracked")}
    unread.add("head.distribution_project.project")
    assert len(manifest) == 887 and len(unread) == 141 + 1
    assert actual == {name: shape for name, shape in manifest.items() if name not in unread}


def test_scalars_keep_their_shape():
    variables, entries = drawn(shapes("plus")), entries_of("plus")
    for level in range(4):
        factor = variables["params"]["guidance"]["head"][f"scale_{level}"]["factor"]
        entry = entries[f"aux_head.scales.{level}.scale"]
        assert entry.shape == () and entry == factor and entry.dtype == np.float32
    back = torch_names.convert(entries, shapes("plus"))
    for level in range(4):
        factor = back["params"]["guidance"]["head"][f"scale_{level}"]["factor"]
        assert isinstance(factor, np.ndarray) and factor.shape == ()
    entries["aux_head.scales.1.scale"] = np.ones(1)
    fails(entries, "wrong shape: aux_head.scales.1.scale (1,) instead of ()", name="plus")


def fails(entries, *messages, name="shared"):
    with pytest.raises(UserError) as caught:
        torch_names.convert(entries, shapes(name), "model.pth")
    for message in ("model.pth", *messages):
        assert message in str(caught.value)
    return str(caught.value)


def test_convert_names_missing_entries():
    entries = entries_of("shared")
    del entries["backbone.conv1.1.running_var"]
    message = fails(entries, "missing: backbone.conv1.1.running_var")
    assert "unexpected" not in message and "wrong shape" not in message
    del entries["head.gfl_cls.2.bias"]
    fails(entries, "missing: ", "backbone.conv1.1.running_var", "head.gfl_cls.2.bias")


def test_convert_names_entries_left_over():
    entries = entries_of("shared") | {"other_head.scales.0.scale": np.float32(1)}
    message = fails(entries, "unexpected: other_head.scales.0.scale")
    assert "missing" not in message
    for i in range(9):
        entries[f"neck.{i}"] = np.zeros(1)
    message = fails(entries, "neck.3 and 5 more")  # the first five are listed
    assert "neck.4" not in message


def test_convert_names_entries_of_another_shape():
    entries = entries_of("shared")
    # The number of values is right, the shape is not.
    entries["fpn.lateral_convs.0.conv.weight"] = np.zeros((48, 32, 1, 1))
    entries["head.gfl_cls.0.bias"] = np.zeros(24)
    fails(
        entries,
        "wrong shape: ",
        "fpn.lateral_convs.0.conv.weight (1, 1, 32, 48) instead of (1, 1, 48, 32)",
        "head.gfl_cls.0.bias (24,) instead of (23,)",
    )


def test_convert_ignores_only_entries_that_no_forward_pass_uses():
    shared = entries_of("shared")
    for name in ("head.gfl_reg.3.weights", "gfl_reg.0.weight", "head.gfl_reg.0.conv.weight"):
        fails(shared | {name: np.zeros(1)}, f"unexpected: {name}")
    fails(shared | {"num_batches_tracked": np.zeros(())}, "unexpected: num_batches_tracked")
    # With separate towers the box outputs are used, and required.
    separate = entries_of("separate")
    del separate["head.gfl_reg.1.weight"]
    fails(separate, "missing: head.gfl_reg.1.weight", name="separate")
    surplus = entries_of("separate") | {"head.gfl_reg.3.weight": np.zeros(1)}
    fails(surplus, "unexpected: head.gfl_reg.3.weight", name="separate")


def test_deployed_network_ignores_the_guidance(monkeypatch, tmp_path):
    entries, variables = entries_of("plus"), drawn(shapes("plus"))
    like = strip_guidance(shapes("plus"))
    assert_same(torch_names.convert(entries, like), strip_guidance(variables))
    assert_same(torch_names.convert(without_guidance(entries), like), strip_guidance(variables))
    # For a network with guidance, all entries of the guidance are required, and nothing else.
    message = fails(without_guidance(entries), "missing: aux_", name="plus")
    assert "unexpected" not in message and "wrong shape" not in message
    for name in ("aux_head.scales.4.scale", "aux_scales.0.scale", "aux_fpn"):
        fails(entries | {name: np.float32(1)}, f"unexpected: {name}", name="plus")
    surplus = entries | {"auxiliary_head.gfl_cls.weight": np.zeros(1)}
    with pytest.raises(UserError, match=r"unexpected: auxiliary_head\.gfl_cls\.weight"):
        torch_names.convert(surplus, like)
    # load_weights also returns the deployed network.
    monkeypatch.setattr(weights, "read_state_dict", lambda path: entries)
    (tmp_path / "plus.pth").touch()
    loaded = weights.load_weights(tmp_path / "plus.pth")
    assert_same(loaded.variables, strip_guidance(variables))
    assert loaded.config.model == MODELS["plus"] and not loaded.config.data.keep_ratio
    assert set(weights.load_entries(tmp_path / "plus.pth")) == set(entries)


def test_entries_of_nanodet_plus_do_not_fit_nanodet():
    message = fails(entries_of("plus"), "missing: fpn.lateral_convs.0.conv.bias", "unexpected: ")
    assert "aux_" not in message
    fails(entries_of("shared"), "missing: ", "unexpected: fpn.lateral_convs.0.conv", name="plus")


def test_load_matching_loads_the_box_rows_with_other_classes():
    model = MODELS["shared"]
    more = config.Model(num_classes=5, width=0.5, channels=32, stacked_convs=1, reg_max=4)
    fresh = drawn(abstract_variables(build_model(more)), seed=1)
    entries = entries_of("shared")
    initial = jax.tree.map(np.copy, fresh)
    taken, report = torch_names.load_matching(entries, fresh, num_bins=BINS)
    assert_same(fresh, initial)  # the argument is unchanged
    outputs = [f"head.gfl_cls.{level}.{leaf}" for level in range(3) for leaf in ("bias", "weight")]
    assert sorted(report.box_rows) == outputs and report.new == []
    everything = torch_names.to_entries(taken)
    assert sorted([*report.kept, *report.box_rows]) == sorted(everything)
    before = torch_names.to_entries(initial)
    for name, value in everything.items():
        if name in outputs:
            np.testing.assert_array_equal(value[: more.num_classes], before[name][:5])
            np.testing.assert_array_equal(value[more.num_classes :], entries[name][3:])
        else:
            np.testing.assert_array_equal(value, entries[name])
    assert f"loaded {len(report.kept)} arrays" in str(report)
    assert "and from 6 (head.gfl_cls.0.bias" in str(report)
    assert "not loaded" not in str(report)
    assert model.num_classes != more.num_classes


def test_load_matching_loads_the_box_outputs_of_the_guidance():
    more = replace(MODELS["plus"], num_classes=5)
    fresh = drawn(abstract_variables(build_model(more), guided=True), seed=1)
    entries, before = entries_of("plus"), torch_names.to_entries(fresh)
    taken, report = torch_names.load_matching(entries, fresh, num_bins=BINS)
    outputs = [f"head.gfl_cls.{level}.{leaf}" for level in range(4) for leaf in ("bias", "weight")]
    classes = ["aux_head.gfl_cls.bias", "aux_head.gfl_cls.weight"]
    assert sorted(report.box_rows) == outputs and sorted(report.new) == classes
    assert {"aux_head.gfl_reg.weight", "aux_head.gfl_reg.bias"} < set(report.kept)
    after = torch_names.to_entries(taken)
    for name, value in after.items():
        if name in outputs:
            np.testing.assert_array_equal(value[:5], before[name][:5])
            np.testing.assert_array_equal(value[5:], entries[name][3:])
        else:
            kept = before if name in classes else entries
            np.testing.assert_array_equal(value, kept[name], err_msg=name)
            assert value.shape == before[name].shape
    # With a deployed network the whole guidance is new.
    taken, report = torch_names.load_matching(without_guidance(entries), fresh, num_bins=BINS)
    assert sorted(report.new) == sorted(name for name in before if name.startswith("aux_"))
    assert_same(taken["params"]["guidance"], fresh["params"]["guidance"])


def test_load_matching_reports_new_variables():
    entries = entries_of("shared")
    fresh = drawn(shapes("shared"), seed=1)
    same, report = torch_names.load_matching(entries, fresh, num_bins=BINS)
    assert_same(same, drawn(shapes("shared")))
    assert report.box_rows == report.new == []
    # With a neck of a different width, every layer of that width is new; no rows are loaded.
    wider = config.Model(num_classes=5, width=0.5, channels=36, stacked_convs=1, reg_max=4)
    fresh = drawn(abstract_variables(build_model(wider)), seed=1)
    taken, report = torch_names.load_matching(entries, fresh, num_bins=BINS)
    assert "fpn.lateral_convs.0.conv.weight" in report.new
    assert "head.gfl_cls.0.weight" in report.new
    # The bias of an output does not depend on the width.
    assert report.box_rows == [f"head.gfl_cls.{level}.bias" for level in range(3)]
    assert {name.split(".")[0] for name in report.kept} == {"backbone"}
    for name, value in torch_names.to_entries(taken).items():
        if name in report.new:
            np.testing.assert_array_equal(value, torch_names.to_entries(fresh)[name])


@pytest.mark.parametrize("name", MODELS)
def test_infer_model_returns_the_model_of_complete_entries(name):
    assert infer_model(entries_of(name)) == MODELS[name]


def without_guidance(entries):
    return {name: entry for name, entry in entries.items() if not name.startswith("aux_")}


def test_infer_model_returns_the_model_of_deployed_entries():
    whole, model = entries_of("plus"), MODELS["plus"]
    alone = replace(model, guidance_channels=0, guidance_convs=config.Model().guidance_convs)
    assert infer_model(without_guidance(whole)) == alone
    del whole["head.distribution_project.project"]
    assert infer_model(whole) == model  # the outputs of the guidance separate boxes from classes
    # Without it, the 32 box outputs of published weights are assumed.
    deployed = without_guidance(whole)
    with pytest.raises(
        UserError, match=r"plus\.pth: its output layer predicts boxes but no classes"
    ):
        infer_model(deployed, "plus.pth")
    for level in range(4):
        bias, weight = (f"head.gfl_cls.{level}.{leaf}" for leaf in ("bias", "weight"))
        deployed[bias], deployed[weight] = np.zeros(80 + 32), np.zeros((80 + 32, 32, 1, 1))
    assert infer_model(deployed) == replace(alone, num_classes=80, reg_max=7)


@pytest.mark.parametrize("width", [0.5, 1.0, 1.5, 2.0])
def test_infer_model_recognises_every_width(width):
    model = config.Model(num_classes=80, width=width, channels=96)
    variables = abstract_variables(build_model(model))
    like = {
        torch_names.pytorch_name(path): np.empty(torch_names.to_pytorch(np.empty(leaf.shape)).shape)
        for path, leaf in torch_names.flatten(variables).items()
    }
    like |= {f"head.gfl_reg.{level}.weight": np.empty((32, 96, 1, 1)) for level in range(3)}
    assert infer_model(like) == model


def test_infer_model_refuses_other_networks():
    entries = entries_of("shared")
    del entries["head.gfl_reg.0.weight"]
    with pytest.raises(UserError, match=r"plus\.pth: not a NanoDet .*head\.gfl_reg\.0\.weight"):
        infer_model(entries, "plus.pth")
    entries = entries_of("shared")
    entries["backbone.stage2.0.branch2.0.weight"] = np.zeros((17, 24, 1, 1))
    with pytest.raises(UserError, match="not a NanoDet "):
        infer_model(entries)
