"""Network summaries, compared with published figures and traced programs, and `info`."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import coco
from nanodet_jax.cli import main as cli
from nanodet_jax.cli.config_flags import load_config
from nanodet_jax.config import Model
from nanodet_jax.errors import UserError
from nanodet_jax.models.nanodet import build_model, priors_of
from nanodet_jax.state import abstract_variables
from nanodet_jax.summary import PARTS, summarize

REPO = Path(__file__).parents[1]
PAN = Model(num_classes=3, width=0.5, channels=32, stacked_convs=1)
PLUS = replace(
    PAN,
    neck="ghost_pan",
    extra_level=True,
    kernel_size=5,
    share_cls_reg=False,
    guidance_channels=32,
    guidance_convs=2,
)
# GMAC and parameters of the deployed network, and parameters in training. The original counts
# 959,348 parameters in nanodet-m: 9,312 belong to layers that it does not use.
PUBLISHED = {
    "nanodet-m_320": (0.342, 950_036, 950_036),
    "nanodet-m_416": (0.578, 950_036, 950_036),
    "nanodet-m-0.5x": (0.139, 271_056, 271_056),
    "nanodet-m-1.5x": (0.696, 2_065_392, 2_065_392),
    "nanodet-m-1.5x_416": (1.177, 2_065_392, 2_065_392),
    "nanodet-plus-m_320": (0.451, 1_197_924, 4_330_904),
    "nanodet-plus-m_416": (0.762, 1_197_924, 4_330_904),
    "nanodet-plus-m-1.5x_320": (0.879, 2_477_792, 7_962_196),
    "nanodet-plus-m-1.5x_416": (1.486, 2_477_792, 7_962_196),
    # Without 16,512 parameters of a layer that the transformer does not use.
    "nanodet-t_320": (0.464, 1_331_508, 1_331_508),
    "nanodet-g_416": (2.090, 3_788_628, 3_788_628),
    "nanodet-EfficientNet-Lite0_320": (0.821, 3_099_824, 3_099_824),
    "nanodet-EfficientNet-Lite1_416": (1.933, 3_994_740, 3_994_740),
    "nanodet-EfficientNet-Lite2_512": (3.405, 4_689_460, 4_689_460),
    # Training has three convolutions for each deployed one. The original also counts 17,028
    # parameters of `gfl_reg`, three layers of 128 x 44 weights and 44 biases that it does not use.
    "nanodet-RepVGG-A0_416": (5.631, 6_737_556, 7_387_380),
    "gfl-r50_1x": (217.156, 32_440_537, 32_440_537),
    "gfl-r50_2x": (217.156, 32_440_537, 32_440_537),
    "gfl-r101_2x": (296.703, 51_432_665, 51_432_665),
    "picodet-s_320": (0.481, 1_186_492, 1_186_492),
}
# PaddleDetection's figures for PicoDet at 320 x 320: the width of the backbone, the channels that
# its squeeze-and-excitation scales, channels and depth of the head, and millions of parameters and
# GFLOPs, both cut to two decimals.
PICODET = {
    "XS": ("x0_35", (88, 176), 96, 2, 0.70, 0.67),
    "S": ("x0_75", (192, 384), 96, 2, 1.18, 0.97),
    "M": ("x1_5", (384, 768), 128, 4, 3.46, 2.57),
    "L": ("x2_0", (512, 1024), 160, 4, 5.80, 4.20),
}


def test_published_figures_cover_every_variant():
    assert set(PUBLISHED) == set(coco.VARIANTS)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_summary_of_each_variant_matches_the_published_figures(variant):
    config = coco.get_config(variant)
    summary = summarize(replace(config.model, num_classes=80), config.input_size)
    deployed, training = summary.deployed, summary.training
    found = round(deployed.macs / 1e9, 3), deployed.params, training.params
    assert found == PUBLISHED[variant]
    guided = config.model.guidance_channels > 0
    assert tuple(summary.parts) == PARTS[: 4 if guided else 3]
    guidance = summary.parts.get("guidance", (0, 0))
    for i in range(2):
        assert sum(cost[i] for cost in summary.parts.values()) == training[i]
        if summary.fused_backbone is None:
            assert training[i] - guidance[i] == deployed[i]


@pytest.mark.parametrize("size", PICODET)
def test_costs_of_picodet_equal_those_of_paddledetection(size):
    width, squeezed, channels, depth, millions, gflops = PICODET[size]
    model = replace(
        coco.get_config("picodet-s_320").model,
        num_classes=80,
        backbone=f"pplcnet_{width}",
        channels=channels,
        stacked_convs=depth,
    )
    summary = summarize(model, (320, 320))
    cost = summary.deployed
    # The figures agree with two operations for each multiply-add, and two for each output of a
    # norm. Only output layers and squeeze-and-excitation have convolutions without a norm.
    unnormalized = (80 + 32) * summary.class_logits[0] + len(summary.levels) * channels
    unnormalized += sum(scaled + scaled // 4 for scaled in squeezed)
    flops = 2 * cost.macs + 2 * (cost.outputs - unnormalized)
    assert math.floor(cost.params / 1e4) / 100 == millions
    assert math.floor(flops / 1e7) / 100 == gflops


def convolutions(jaxpr):
    """Return the MACs of all convolutions in a jaxpr, nested ones included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # HWIO, the layout of flax
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[:-1])
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                total += convolutions(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize(("model", "size"), [(PAN, (64, 64)), (PLUS, (96, 160))])
def test_macs_equal_those_of_the_traced_program(model, size, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # one operation per convolution
    network = build_model(model)
    variables = abstract_variables(network, guided=True)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

    def forward(variables, images):
        return network.apply(variables, images, train=False, method="branches")

    cost = summarize(model, size).training
    assert cost.macs == convolutions(jax.make_jaxpr(forward)(variables, images).jaxpr)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_costs_of_parts_match_a_calculation_by_hand():
    summary = summarize(PAN, (64, 96))
    assert summary == summarize(PAN, (64, 96))  # the first call leaves no state
    # Convolutions of 1 x 1 from 48, 96 and 192 channels to 32, on maps of 8 x 12, 4 x 6, 2 x 3.
    assert summary.parts["neck"].macs == 32 * (48 * 8 * 12 + 96 * 4 * 6 + 192 * 2 * 3)
    assert summary.parts["neck"].params == 32 * (48 + 96 + 192) + 3 * 32
    # On each map: 3 x 3 on each channel, 1 x 1 from 32 to 32, 1 x 1 to 3 classes and 4 x 8 bins.
    per_pixel = 32 * 9 + 32 * 32 + 32 * (3 + 4 * 8)
    assert summary.parts["head"].macs == per_pixel * (8 * 12 + 4 * 6 + 2 * 3)
    assert summary.parts["head"].params == 3 * (per_pixel + 3 + 4 * 8 + 2 * 2 * 32)


@pytest.mark.parametrize("model", [PAN, PLUS], ids=["pan", "plus"])
def test_levels_and_logit_shapes_match_the_priors(model):
    summary = summarize(model, (96, 160))
    sizes = [(12, 20), (6, 10), (3, 5), (2, 3)][: len(model.strides)]
    assert [level[1:] for level in summary.levels] == sizes
    assert tuple(level.stride for level in summary.levels) == model.strides
    priors = priors_of(model, (96, 160))
    assert tuple(level.priors for level in summary.levels) == priors.level_sizes
    count = len(priors.centers)
    assert (summary.class_logits, summary.box_logits) == ((count, 3), (count, 4, 8))


@pytest.fixture
def info(monkeypatch, capsys):
    """Run `nanodet-jax info` in the repository; return exit code, stdout and stderr."""
    monkeypatch.chdir(REPO)

    def call(*arguments):
        return cli.main(["info", *map(str, arguments)]), *capsys.readouterr()

    return call


def test_info_prints_costs_for_the_classes_of_coco(info):
    code, said, error = info("configs/coco.py:nanodet-plus-m_320")
    assert (code, error) == (0, "")
    assert said.startswith("nanodet-plus-m_320: one image of 320 x 320 pixels, 80 classes\n")
    assert "COCO's is assumed here" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["deployed", "1,197,924", "0.451"] in rows
    assert ["in", "training", "4,330,904", "6.635"] in rows
    assert {row[0] for row in rows if row} >= set(PARTS)
    assert ["64", "5", "x", "5", "25"] in rows
    assert "[2125, 80]" in said and "[2125, 4, 8]" in said


def test_info_with_a_number_of_classes_uses_it(info):
    code, said, _ = info("configs/coco.py", "--classes", 7)
    assert code == 0
    assert said.startswith("nanodet-m_320: one image of 320 x 320 pixels, 7 classes\n")
    assert "COCO" not in said
    assert "guidance" not in said
    assert "[2100, 7]" in said
    code, _, error = info("configs/coco.py", "--classes", 0)
    assert (code, error) == (2, "error: --classes=0: must be positive\n")


def test_info_of_a_config_with_classes_uses_them(info, tmp_path):
    path = tmp_path / "known.py"
    path.write_text(
        "from nanodet_jax.config import Config, Model\n"
        "def get_config():\n"
        "    return Config('known', (64, 96), model=Model(num_classes=5))\n"
    )
    code, said, _ = info(path)
    assert code == 0
    assert said.startswith("known: one image of 64 x 96 pixels, 5 classes\n")
    assert "COCO" not in said


BAD = {
    "no_config": "x = 1\n",
    "no_python": "def get_config(:\n",
    "no_import": "import nothing_of_this_name\n",
    "no_variants": "def get_config():\n    pass\n",
    "no_return": "def get_config():\n    pass\n",
    "misspelt": "from nanodet_jax.config import Config, Training\n"
    "def get_config():\n    return Config(training=Training(epoch=3))\n",
    "key": "def get_config(variant):\n    return {'a': 1}[variant]\n",
    "odd_size": "from nanodet_jax.config import Config\n"
    "def get_config():\n    return Config(input_size=(100, 100))\n",
}
# The argument, and what the error must contain.
FAULTS = {
    "missing": ("configs/nope.py", "no such config"),
    "missing, with a variant": ("configs/nope.py:nanodet-m_320", "no such config"),
    "a folder": ("configs", "no such config"),
    "unknown variant": ("configs/coco.py:nope", "unknown variant 'nope'; use one of "),
    "no variants": ("{}/no_variants.py:nope", "get_config"),
    "a name that it does not have": ("{}/key.py:nope", "KeyError"),
    "a misspelt field": (
        "{}/misspelt.py",
        "config.training.epoch: unknown field; did you mean config.training.epochs?",
    ),
    "no get_config": ("{}/no_config.py", "get_config"),
    "a slip": ("{}/no_python.py", "line 1"),
    "an import": ("{}/no_import.py", "nothing_of_this_name"),
    "nothing returned": ("{}/no_return.py", "NoneType"),
    "impossible values": ("{}/odd_size.py", "config.input_size"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_info_of_a_broken_config_prints_one_line(info, tmp_path, fault):
    for name, text in BAD.items():
        (tmp_path / f"{name}.py").write_text(text)
    given, named = FAULTS[fault]
    given = given.format(tmp_path)
    before = sys.path.copy()
    code, said, error = info(given)
    assert (code, said) == (2, "")
    assert error.startswith(f"error: {given.partition(':')[0]}")
    assert error.count("\n") == 1 and error.endswith("\n")
    assert named in error
    assert sys.path == before


def test_load_config_imports_from_the_folders_of_the_config_and_the_process(monkeypatch, tmp_path):
    for folder, name in (("there/recipes_a", "base"), ("here/recipes_b", "extra")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{name}.py").write_text(f"NAME = {name!r}\n")
    mine = tmp_path / "there" / "recipes_a" / "mine.py"
    mine.write_text(
        "from nanodet_jax.config import Config\n"
        "from recipes_a import base\n"
        "def get_config(variant='a'):\n"
        "    from recipes_b import extra\n"
        "    return Config(f'{base.NAME} {extra.NAME} {variant}')\n"
    )
    before = sys.path.copy()
    with pytest.raises(UserError, match="recipes_b"):
        load_config(str(mine))
    monkeypatch.chdir(tmp_path / "here")
    assert load_config(str(mine)).name == "base extra a"
    assert load_config("../there/recipes_a/mine.py:b").name == "base extra b"
    assert sys.path == before
