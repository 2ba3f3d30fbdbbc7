"""GhostNet, a backbone of ghost bottlenecks.

Han et al., "GhostNet: More Features from Cheap Operations" (https://arxiv.org/abs/1911.11907).
Reproduces nanodet/model/backbone/ghostnet.py of https://github.com/RangiLyu/nanodet.
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
from nanodet_jax.models.ghost import GhostModule, GhostShortcut
from nanodet_jax.models.layers import (
    LayerFactory,
    SqueezeExcite,
    inverse_fan_in,
    normal,
    round_to_multiple,
)
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv


class Setting(NamedTuple):
    """One ghost bottleneck (table 1 of the paper)."""

    kernel_size: int
    expanded: int  # channels inside the bottleneck
    channels: int  # of the output
    squeeze: bool  # whether it has a squeeze-and-excitation layer
    stride: int


# The bottlenecks of each stage.
SETTINGS = (
    (Setting(3, 16, 16, False, 1),),
    (Setting(3, 48, 24, False, 2),),
    (Setting(3, 72, 24, False, 1),),
    (Setting(5, 72, 40, True, 2),),
    (Setting(5, 120, 40, True, 1),),
    (Setting(3, 240, 80, False, 2),),
    (
        Setting(3, 200, 80, False, 1),
        Setting(3, 184, 80, False, 1),
        Setting(3, 184, 80, False, 1),
        Setting(3, 480, 112, True, 1),
        Setting(3, 672, 112, True, 1),
    ),
    (Setting(5, 672, 160, True, 2),),
    (
        Setting(5, 960, 160, False, 1),
        Setting(5, 960, 160, True, 1),
        Setting(5, 960, 160, False, 1),
        Setting(5, 960, 160, True, 1),
    ),
)
STEM_CHANNELS, LAST_CHANNELS = 16, 960
TORCH_NAMES: TorchNames = (
    ("conv_stem", "conv_stem", {}),
    ("conv_stem_norm", "bn1", {}),
    (
        r"blocks(\d)_(\d)/(ghost\d)/(\w+)",
        r"blocks.\1.\2.\3.{}",
        {
            "primary": "primary_conv.0",
            "primary_norm": "primary_conv.1",
            "cheap": "cheap_operation.0",
            "cheap_norm": "cheap_operation.1",
        },
    ),
    (
        r"blocks(\d)_(\d)/shortcut/(\w+)",
        r"blocks.\1.\2.shortcut.{}",
        {"depthwise": "0", "dwnorm": "1", "pointwise": "2", "pwnorm": "3"},
    ),
    (
        r"blocks(\d)_(\d)/squeeze/(\w+)",
        r"blocks.\1.\2.se.{}",
        {"reduce": "conv_reduce", "expand": "conv_expand"},
    ),
    (r"blocks(\d)_(\d)/(\w+)", r"blocks.\1.\2.{}", {"conv_dw": "conv_dw", "conv_dw_norm": "bn_dw"}),
    ("last", "blocks.9.0.conv", {}),
    ("last_norm", "blocks.9.0.bn1", {}),
)
# For the files of https://github.com/huawei-noah/Efficient-AI-Backbones.
CLASSIFIER = Classifier(dropped=r"(conv_head|classifier)\..*")


class GhostBottleneck(nn.Module):
    """Ghost module, depthwise convolution, squeeze-and-excitation, ghost module, plus a shortcut.

    There is no depthwise convolution if the stride is 1, and no squeeze-and-excitation unless
    `setting.squeeze`. The shortcut is the input, or a `GhostShortcut` of it if the shapes of input
    and output differ. [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), channels].
    """

    expanded: int
    channels: int
    setting: Setting
    layers: Layers
    norm: LayerFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, _, _, squeeze, stride = self.setting
        size, norm, init = self.setting.kernel_size, self.norm, inverse_fan_in
        y = GhostModule(self.expanded, norm, self.layers.activation, init, name="ghost1")(x)
        if stride > 1:
            y = DepthwiseConv(size, stride, kernel_init=init, name="conv_dw")(y)
            y = norm(name="conv_dw_norm")(y)
        if squeeze:
            reduced = round_to_multiple(self.expanded / 4, 4)
            y = SqueezeExcite(reduced, kernel_init=init, name="squeeze")(y)
        y = GhostModule(self.channels, norm, None, init, name="ghost2")(y)
        if stride > 1 or x.shape[-1] != self.channels:
            x = GhostShortcut(self.channels, size, stride, norm, init, name="shortcut")(x)
        return x + y


def architecture(model: config.Model) -> Architecture:
    """Return GhostNet of `model.width`, with stages of strides 2, 4, 8, 16 and 32.

    The last stage is a 1 x 1 convolution.
    """

    def scaled(channels: int) -> int:
        return round_to_multiple(channels * model.width, 4)

    def norm_of(layers: Layers) -> LayerFactory:
        return partial(layers.norm, bias_init=nn.initializers.constant(1e-4))

    def conv_norm_act(x: jax.Array, layers: Layers, name: str, conv: Conv) -> jax.Array:
        return layers.activation(norm_of(layers)(name=f"{name}_norm")(conv(x)))

    def stem(x: jax.Array, layers: Layers) -> jax.Array:
        channels = scaled(STEM_CHANNELS)
        conv = Conv(channels, 3, 2, use_bias=False, kernel_init=normal(0.01), name="conv_stem")
        return conv_norm_act(x, layers, "conv_stem", conv)

    def stage(index: int, x: jax.Array, layers: Layers) -> jax.Array:
        for block, setting in enumerate(SETTINGS[index]):
            x = GhostBottleneck(
                scaled(setting.expanded),
                scaled(setting.channels),
                setting,
                layers,
                norm_of(layers),
                name=f"blocks{index}_{block}",
            )(x)
        return x

    def last(x: jax.Array, layers: Layers) -> jax.Array:
        channels = scaled(LAST_CHANNELS)
        conv = Conv(channels, use_bias=False, kernel_init=inverse_fan_in, name="last")
        return conv_norm_act(x, layers, "last", conv)

    stages, stride = [Stage(stem, 2, "conv_stem|conv_stem_norm")], 2
    for index, settings in enumerate(SETTINGS):
        stride *= settings[0].stride
        stages.append(Stage(partial(stage, index), stride, rf"blocks{index}_\d"))
    stages.append(Stage(last, stride, "last|last_norm"))
    return Architecture(tuple(stages), activation="relu", classifier=CLASSIFIER)
