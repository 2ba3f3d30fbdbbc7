"""MobileNetV2: inverted residual blocks with linear bottlenecks.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
(https://arxiv.org/abs/1801.04381). Reproduces nanodet/model/backbone/mobilenetv2.py of
https://github.com/RangiLyu/nanodet.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from nanodet_jax import config
from nanodet_jax.models.backbones.backbone import (
    Architecture,
    Classifier,
    Layers,
    Stage,
    TorchNames,
)
from nanodet_jax.models.layers import ConvNormAct, normal
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv


class Setting(NamedTuple):
    """Stage of the network (table 2 of the paper)."""

    expansion: int  # factor of the number of channels inside a block
    channels: int  # of the output
    blocks: int
    stride: int  # of the first block


SETTINGS = (
    Setting(1, 16, 1, 1),
    Setting(6, 24, 2, 2),
    Setting(6, 32, 3, 2),
    Setting(6, 64, 4, 2),
    Setting(6, 96, 3, 1),
    Setting(6, 160, 3, 2),
    Setting(6, 320, 1, 1),
)
STEM_CHANNELS = 32
LAST_CHANNELS = 1280
POSITIONS = {"expand": "0.0", "expand_norm": "0.1", "depthwise": "1.0", "depthwise_norm": "1.1",
             "project": "2", "project_norm": "3"}  # fmt: skip
# The first block has no expansion, so its positions are one lower.
FIRST_POSITIONS = {"depthwise": "0.0", "depthwise_norm": "0.1", "project": "1", "project_norm": "2"}
TORCH_NAMES: TorchNames = (
    (r"first_layer/(\w+)", "first_layer.{}", {"conv": "0", "norm": "1"}),
    (r"stage0_0/(\w+)", r"stage0.0.conv.{}", FIRST_POSITIONS),
    (r"stage(\d)_(\d+)/(\w+)", r"stage\1.\2.conv.{}", POSITIONS),
    (r"last_layer/(\w+)", "stage6.1.{}", {"conv": "0", "norm": "1"}),
)
# All blocks, each as (stage, block within the stage), in the order of computation.
BLOCKS = [
    (stage, block) for stage, setting in enumerate(SETTINGS) for block in range(setting.blocks)
]
# torchvision numbers the first layer, the blocks and the last layer consecutively, from 0.
CLASSIFIER = Classifier(
    dropped=r"classifier\..*",
    renamed=(
        (r"^first_layer\.", "features.0."),
        *(
            (rf"^stage{stage}\.{block}\.conv\.", f"features.{number}.conv.")
            for number, (stage, block) in enumerate(BLOCKS, start=1)
        ),
        (r"^stage6\.1\.", f"features.{len(BLOCKS) + 1}."),
    ),
)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection without an activation, shortcut.

    There is no expansion if `expansion` is 1, and no shortcut if the shapes of input and output
    differ. [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    stride: int
    expansion: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm, activation = self.layers.norm, self.layers.activation
        identity, width = x, x.shape[-1] * self.expansion
        conv = partial(Conv, use_bias=False, kernel_init=normal(0.001))
        if self.expansion != 1:
            x = activation(norm(name="expand_norm")(conv(width, name="expand")(x)))
        x = DepthwiseConv(3, self.stride, kernel_init=normal(0.001), name="depthwise")(x)
        x = activation(norm(name="depthwise_norm")(x))
        x = norm(name="project_norm")(conv(self.features, name="project")(x))
        return x + identity if self.stride == 1 and identity.shape == x.shape else x


def architecture(model: config.Model) -> Architecture:
    """Return MobileNetV2 of `model.width`, with stages of strides 2, 4, 8, 16 and 32.

    The last stage is a 1 x 1 convolution with `model.backbone_last_channels` output channels, or
    1280 if that is 0.
    """
    last_channels = model.backbone_last_channels or LAST_CHANNELS

    def conv(layers: Layers, channels: int, size: int, stride: int, name: str) -> ConvNormAct:
        return ConvNormAct(
            channels, layers.norm, size, stride, layers.activation, normal(0.001), name=name
        )

    def stem(x: jax.Array, layers: Layers) -> jax.Array:
        return conv(layers, int(STEM_CHANNELS * model.width), 3, 2, "first_layer")(x)

    def stage(index: int, x: jax.Array, layers: Layers) -> jax.Array:
        setting = SETTINGS[index]
        for block in range(setting.blocks):
            x = InvertedResidual(
                int(setting.channels * model.width),
                setting.stride if block == 0 else 1,
                setting.expansion,
                layers,
                name=f"stage{index}_{block}",
            )(x)
        return x

    def last(x: jax.Array, layers: Layers) -> jax.Array:
        return conv(layers, last_channels, 1, 1, "last_layer")(x)

    stages, stride = [Stage(stem, 2, "first_layer")], 2
    for index, setting in enumerate(SETTINGS):
        stride *= setting.stride
        stages.append(Stage(partial(stage, index), stride, rf"stage{index}_\d+"))
    stages.append(Stage(last, stride, "last_layer"))
    return Architecture(tuple(stages), activation="relu", classifier=CLASSIFIER)
