"""ShuffleNetV2, the backbone of NanoDet and NanoDet-Plus.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design"
(https://arxiv.org/abs/1807.11164). This module reproduces nanodet/model/backbone/shufflenetv2.py of
https://github.com/RangiLyu/nanodet, with LeakyReLU in place of the paper's ReLU.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax import config
from nanodet_jax.models.backbones.backbone import (
    Architecture,
    Classifier,
    Layers,
    Stage,
    TorchNames,
)
from nanodet_jax.models.layers import Activation, LayerFactory, inverse_fan_in
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv
from nanodet_jax.ops.max_pool import max_pool_3x3

# Output channels of the stages with strides 8, 16, 32, by width multiplier (table 5 of the paper).
STAGE_CHANNELS = {
    0.5: (48, 96, 192),
    1.0: (116, 232, 464),
    1.5: (176, 352, 704),
    2.0: (244, 488, 976),
}
STAGE_BLOCKS = (4, 8, 4)
STEM_CHANNELS = 24

TORCH_NAMES: TorchNames = (
    ("stem", "conv1.0", {}),
    ("stem_norm", "conv1.1", {}),
    (
        r"stage(\d)_(\d+)/shortcut/(\w+)",
        r"stage\1.\2.branch1.{}",
        {"depthwise": "0", "dwnorm": "1", "pointwise": "2", "pwnorm": "3"},
    ),
    (
        r"stage(\d)_(\d+)/main/(\w+)",
        r"stage\1.\2.branch2.{}",
        {
            "pointwise_in": "0",
            "innorm": "1",
            "depthwise": "3",
            "dwnorm": "4",
            "pointwise_out": "5",
            "outnorm": "6",
        },
    ),
)
CLASSIFIER = Classifier(dropped=r"(conv5|fc)\..*")  # for torchvision's files


def channel_shuffle(x: jax.Array) -> jax.Array:
    """Interleave the first half of the channels with the second: [..., C] to [..., C], C even."""
    *space, channels = x.shape
    return x.reshape(*space, 2, channels // 2).swapaxes(-1, -2).reshape(x.shape)


class ShortcutBranch(nn.Module):
    """Shortcut of a downsampling block: depthwise convolution with stride 2, then pointwise.

    [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), features].
    """

    features: int
    norm: LayerFactory
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = DepthwiseConv(stride=2, kernel_init=inverse_fan_in, name="depthwise")(x)
        x = self.norm(name="dwnorm")(x)
        x = Conv(self.features, use_bias=False, kernel_init=inverse_fan_in, name="pointwise")(x)
        return self.activation(self.norm(name="pwnorm")(x))


class MainBranch(nn.Module):
    """Main branch of every block: pointwise, depthwise (with `stride`), pointwise convolution.

    [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    stride: int
    norm: LayerFactory
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def pointwise(name: str) -> Conv:
            return Conv(self.features, use_bias=False, kernel_init=inverse_fan_in, name=name)

        x = self.activation(self.norm(name="innorm")(pointwise("pointwise_in")(x)))
        x = DepthwiseConv(stride=self.stride, kernel_init=inverse_fan_in, name="depthwise")(x)
        x = self.norm(name="dwnorm")(x)
        return self.activation(self.norm(name="outnorm")(pointwise("pointwise_out")(x)))


class ShuffleBlock(nn.Module):
    """Block of ShuffleNetV2 (figure 3, c and d, of the paper).

    With stride 1, half of the channels go through the main branch, and the others are unchanged.
    With stride 2, all channels go through both branches. The results are concatenated and shuffled:
    [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    stride: int
    norm: LayerFactory
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        half, layers = self.features // 2, (self.norm, self.activation)
        main = MainBranch(half, self.stride, *layers, name="main")
        if self.stride == 1:
            shortcut, x = jnp.split(x, 2, axis=-1)
        else:
            shortcut = ShortcutBranch(half, *layers, name="shortcut")(x)
        return channel_shuffle(jnp.concatenate([shortcut, main(x)], axis=-1))


def architecture(model: config.Model) -> Architecture:
    """Return ShuffleNetV2 of `model.width`, with stages of strides 4, 8, 16 and 32.

    The last 1 x 1 convolution of the paper's network and its classifier are left out.
    """

    def norm_of(layers: Layers) -> LayerFactory:
        return partial(layers.norm, bias_init=nn.initializers.constant(1e-4))

    def stem(x: jax.Array, layers: Layers) -> jax.Array:
        conv = Conv(
            STEM_CHANNELS,
            kernel_size=3,
            stride=2,
            use_bias=False,
            kernel_init=inverse_fan_in,
            name="stem",
        )
        return max_pool_3x3(layers.activation(norm_of(layers)(name="stem_norm")(conv(x))))

    def stage(number: int, channels: int, blocks: int, x: jax.Array, layers: Layers) -> jax.Array:
        for block in range(blocks):
            x = ShuffleBlock(
                channels,
                stride=2 if block == 0 else 1,
                norm=norm_of(layers),
                activation=layers.activation,
                name=f"stage{number}_{block}",
            )(x)
        return x

    return Architecture(
        stages=(
            Stage(stem, 4, "stem|stem_norm"),
            *(
                Stage(partial(stage, number, *size), 2 ** (number + 1), rf"stage{number}_\d+")
                for number, size in enumerate(
                    zip(STAGE_CHANNELS[model.width], STAGE_BLOCKS), start=2
                )
            ),
        ),
        activation="leaky_relu",
        classifier=CLASSIFIER,
    )
