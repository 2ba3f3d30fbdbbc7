"""Names, layouts and the errors of conversion, without a single weight file."""

import functools
import re

import jax
import numpy as np
import pytest

from nanodet_jax import config, convert
from nanodet_jax.errors import UserError
from nanodet_jax.models.detector import build_model
from nanodet_jax.state import abstract_variables

MODELS = {
    "shared": config.Model(num_classes=3, width=0.5, channels=32, stacked_convs=1, reg_max=4),
    "separate": config.Model(num_classes=2, width=0.5, channels=40, share_cls_reg=False),
    "wide": config.Model(num_classes=1, width=1.5, channels=24, stacked_convs=3),
}
BINS = 20  # of "shared": four sides of five


@functools.cache
def shapes(name):
    return abstract_variables(build_model(MODELS[name]))


def drawn(like, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), like)


def entries_of(name, seed=0):
    """A state_dict as the original writes it, with all that no forward pass reads."""
    entries = convert.to_entries(drawn(shapes(name), seed))
    entries |= {
        re.sub("running_mean", "num_batches_tracked", key): np.int64(7)
        for key in entries
        if key.endswith("running_mean")
    }
    model = MODELS[name]
    entries["head.distribution_project.project"] = np.arange(model.reg_max + 1.0)
    if model.share_cls_reg:
        for level in range(3):
            bins = 4 * (model.reg_max + 1)
            entries[f"head.gfl_reg.{level}.weight"] = np.ones((bins, model.channels, 1, 1))
            entries[f"head.gfl_reg.{level}.bias"] = np.ones(bins)
    return entries


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(name):
    variables = drawn(shapes(name))
    entries = convert.to_entries(variables)
    assert len(entries) == len(jax.tree.leaves(variables))
    back = convert.convert(entries, shapes(name))
    assert_same(back, variables)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(back))
    assert_same(convert.convert(entries_of(name), shapes(name)), variables)


def test_names_and_layouts_are_the_originals():
    variables = drawn(shapes("separate"))
    leaves, entries = convert.flatten(variables), convert.to_entries(variables)
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
    assert convert.pytorch_name("params/head/output_2/kernel") == "head.gfl_cls.2.weight"
    with pytest.raises(KeyError, match="no rule for params/head/unknown/kernel"):
        convert.pytorch_name("params/head/unknown/kernel")


def fails(entries, *messages, name="shared"):
    with pytest.raises(UserError) as caught:
        convert.convert(entries, shapes(name), "model.pth")
    for message in ("model.pth", *messages):
        assert message in str(caught.value)
    return str(caught.value)


def test_missing_entries_are_named():
    entries = entries_of("shared")
    del entries["backbone.conv1.1.running_var"]
    message = fails(entries, "missing: backbone.conv1.1.running_var")
    assert "left over" not in message and "other shape" not in message
    del entries["head.gfl_cls.2.bias"]
    fails(entries, "missing: ", "backbone.conv1.1.running_var", "head.gfl_cls.2.bias")


def test_entries_left_over_are_named():
    entries = entries_of("shared") | {"other_head.scales.0.scale": np.float32(1)}
    message = fails(entries, "left over: other_head.scales.0.scale")
    assert "missing" not in message
    for i in range(9):
        entries[f"neck.{i}"] = np.zeros(1)
    message = fails(entries, "neck.3 and 5 more")  # the first five are written out
    assert "neck.4" not in message


def test_other_shapes_are_named():
    entries = entries_of("shared")
    # The right number of values is not the right shape.
    entries["fpn.lateral_convs.0.conv.weight"] = np.zeros((48, 32, 1, 1))
    entries["head.gfl_cls.0.bias"] = np.zeros(24)
    fails(
        entries,
        "other shape: ",
        "fpn.lateral_convs.0.conv.weight (1, 1, 32, 48) instead of (1, 1, 48, 32)",
        "head.gfl_cls.0.bias (24,) instead of (23,)",
    )


def test_what_counts_as_unused():
    shared = entries_of("shared")
    for name in ("head.gfl_reg.3.weights", "gfl_reg.0.weight", "head.gfl_reg.0.conv.weight"):
        fails(shared | {name: np.zeros(1)}, f"left over: {name}")
    fails(shared | {"num_batches_tracked": np.zeros(())}, "left over: num_batches_tracked")
    # With a tower of their own, the box outputs are read, and must be there.
    separate = entries_of("separate")
    del separate["head.gfl_reg.1.weight"]
    fails(separate, "missing: head.gfl_reg.1.weight", name="separate")
    surplus = entries_of("separate") | {"head.gfl_reg.3.weight": np.zeros(1)}
    fails(surplus, "left over: head.gfl_reg.3.weight", name="separate")


def test_take_over_keeps_the_box_rows_of_other_classes():
    model = MODELS["shared"]
    more = config.Model(num_classes=5, width=0.5, channels=32, stacked_convs=1, reg_max=4)
    fresh = drawn(abstract_variables(build_model(more)), seed=1)
    entries = entries_of("shared")
    initial = jax.tree.map(np.copy, fresh)
    taken, report = convert.take_over(entries, fresh, num_bins=BINS)
    assert_same(fresh, initial)  # the argument is left as it was
    outputs = [f"head.gfl_cls.{level}.{leaf}" for level in range(3) for leaf in ("bias", "weight")]
    assert sorted(report.cut) == outputs and report.new == []
    everything = convert.to_entries(taken)
    assert sorted([*report.kept, *report.cut]) == sorted(everything)
    before = convert.to_entries(initial)
    for name, value in everything.items():
        if name in outputs:
            np.testing.assert_array_equal(value[: more.num_classes], before[name][:5])
            np.testing.assert_array_equal(value[more.num_classes :], entries[name][3:])
        else:
            np.testing.assert_array_equal(value, entries[name])
    assert f"kept {len(report.kept)} entries" in str(report)
    assert "box rows of 6 (head.gfl_cls.0.bias" in str(report) and str(report).endswith("new 0")
    assert model.num_classes != more.num_classes


def test_take_over_reports_what_is_new():
    entries = entries_of("shared")
    fresh = drawn(shapes("shared"), seed=1)
    same, report = convert.take_over(entries, fresh, num_bins=BINS)
    assert_same(same, drawn(shapes("shared")))
    assert report.cut == report.new == []
    # Another width of the neck: whatever touches it is new, and no row of it is cut to fit.
    wider = config.Model(num_classes=5, width=0.5, channels=36, stacked_convs=1, reg_max=4)
    fresh = drawn(abstract_variables(build_model(wider)), seed=1)
    taken, report = convert.take_over(entries, fresh, num_bins=BINS)
    assert "fpn.lateral_convs.0.conv.weight" in report.new
    assert "head.gfl_cls.0.weight" in report.new
    # An output's bias does not depend on that width.
    assert report.cut == [f"head.gfl_cls.{level}.bias" for level in range(3)]
    assert {name.split(".")[0] for name in report.kept} == {"backbone"}
    for name, value in convert.to_entries(taken).items():
        if name in report.new:
            np.testing.assert_array_equal(value, convert.to_entries(fresh)[name])


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_read_off_its_entries(name):
    assert convert.infer_model(entries_of(name)) == MODELS[name]


@pytest.mark.parametrize("width", [0.5, 1.0, 1.5, 2.0])
def test_every_width_is_recognised(width):
    model = config.Model(num_classes=80, width=width, channels=96)
    variables = abstract_variables(build_model(model))
    like = {
        convert.pytorch_name(path): np.empty(convert.to_pytorch(np.empty(leaf.shape)).shape)
        for path, leaf in convert.flatten(variables).items()
    }
    like |= {f"head.gfl_reg.{level}.weight": np.empty((32, 96, 1, 1)) for level in range(3)}
    assert convert.infer_model(like) == model


def test_other_networks_are_refused():
    entries = entries_of("shared")
    del entries["head.gfl_reg.0.weight"]
    with pytest.raises(UserError, match=r"plus\.pth: not a NanoDet .*head\.gfl_reg\.0\.weight"):
        convert.infer_model(entries, "plus.pth")
    entries = entries_of("shared")
    entries["backbone.stage2.0.branch2.0.weight"] = np.zeros((17, 24, 1, 1))
    with pytest.raises(UserError, match="not a NanoDet "):
        convert.infer_model(entries)
