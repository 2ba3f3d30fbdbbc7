"""PP-LCNet: depthwise separable convolutions without shortcuts, for CPUs.

Cui et al., "PP-LCNet: A Lightweight CPU Convolutional Neural Network"
(https://arxiv.org/abs/2109.15099). Reproduces ppdet/modeling/backbones/lcnet.py of
https://github.com/PaddlePaddle/PaddleDetection.
"""

from functools import partial
from typing import NamedTuple

import jax

from nanodet_jax import config
from nanodet_jax.models.backbones.backbone import Architecture, Layers, Stage, TorchNames
from nanodet_jax.models.layers import (
    ConvNormAct,
    DepthwiseSeparableConv,
    paddle_normal,
    round_to_multiple,
)


class Setting(NamedTuple):
    """One depthwise separable convolution (table 1 of the paper)."""

    kernel_size: int
    channels: int
    stride: int
    squeeze_excite: bool = False


# The depthwise separable convolutions of each stage.
SETTINGS = (
    (Setting(3, 32, 1),),
    (Setting(3, 64, 2), Setting(3, 64, 1)),
    (Setting(3, 128, 2), Setting(3, 128, 1)),
    (Setting(3, 256, 2), *(5 * (Setting(5, 256, 1),))),
    (Setting(5, 512, 2, squeeze_excite=True), Setting(5, 512, 1, squeeze_excite=True)),
)
STEM_CHANNELS = 16
# Multipliers of all numbers of channels.
WIDTHS = {
    "pplcnet_x0_35": 0.35,
    "pplcnet_x0_75": 0.75,
    "pplcnet_x1_0": 1.0,
    "pplcnet_x1_5": 1.5,
    "pplcnet_x2_0": 2.0,
}
# PaddleDetection's names. As in PaddleDetection, the stem is stage 1.
TORCH_NAMES: TorchNames = (
    (r"conv1/(\w+)", "conv1.{}", {"conv": "conv", "norm": "bn"}),
    (
        r"block(\d)_(\d)/(\w+)",
        r"blocks\1.\2.{}",
        {
            "depthwise": "dw_conv.conv",
            "dwnorm": "dw_conv.bn",
            "pointwise": "pw_conv.conv",
            "pwnorm": "pw_conv.bn",
        },
    ),
    (
        r"block(\d)_(\d)/squeeze/(\w+)",
        r"blocks\1.\2.se.{}",
        {"reduce": "conv1", "expand": "conv2"},
    ),
)


def architecture(model: config.Model) -> Architecture:
    """Return PP-LCNet `model.backbone` with stages of strides 2, 4, 8, 16 and 32.

    The layers of its classifier are left out.
    """
    width = WIDTHS[model.backbone]

    def scaled(channels: int) -> int:
        return round_to_multiple(channels * width, 8)

    def stem(x: jax.Array, layers: Layers) -> jax.Array:
        return ConvNormAct(
            scaled(STEM_CHANNELS), layers.norm, 3, 2, layers.activation, paddle_normal, name="conv1"
        )(x)

    def stage(index: int, x: jax.Array, layers: Layers) -> jax.Array:
        for block, setting in enumerate(SETTINGS[index]):
            x = DepthwiseSeparableConv(
                scaled(setting.channels),
                layers.norm,
                setting.kernel_size,
                setting.stride,
                layers.activation,
                paddle_normal,
                setting.squeeze_excite,
                name=f"block{index + 2}_{block}",
            )(x)
        return x

    return Architecture(
        stages=(
            Stage(stem, 2, "conv1"),
            *(
                Stage(partial(stage, index), 2 * 2**index, rf"block{index + 2}_\d")
                for index in range(len(SETTINGS))
            ),
        ),
        activation="hard_swish",
    )
