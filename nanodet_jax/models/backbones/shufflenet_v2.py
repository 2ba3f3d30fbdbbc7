"""ShuffleNetV2, the backbone.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design"
(https://arxiv.org/abs/1807.11164). This module reproduces nanodet/model/backbone/shufflenetv2.py of
https://github.com/RangiLyu/nanodet, with LeakyReLU in place of the paper's ReLU.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from nanodet_jax.models.layers import LayerFactory, leaky_relu
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


def inverse_fan_in(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draw from N(0, std**2). As in the original, std, not the variance, is 1 / input channels."""
    return jax.random.normal(key, shape, dtype) / shape[-2]


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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = DepthwiseConv(stride=2, kernel_init=inverse_fan_in, name="depthwise")(x)
        x = self.norm(name="dwnorm")(x)
        x = Conv(self.features, use_bias=False, kernel_init=inverse_fan_in, name="pointwise")(x)
        return leaky_relu(self.norm(name="pwnorm")(x))


class MainBranch(nn.Module):
    """Main branch of every block: pointwise, depthwise (with `stride`), pointwise convolution.

    [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    stride: int
    norm: LayerFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def pointwise(name: str) -> Conv:
            return Conv(self.features, use_bias=False, kernel_init=inverse_fan_in, name=name)

        x = leaky_relu(self.norm(name="innorm")(pointwise("pointwise_in")(x)))
        x = DepthwiseConv(stride=self.stride, kernel_init=inverse_fan_in, name="depthwise")(x)
        x = self.norm(name="dwnorm")(x)
        return leaky_relu(self.norm(name="outnorm")(pointwise("pointwise_out")(x)))


class ShuffleBlock(nn.Module):
    """Block of ShuffleNetV2 (figure 3, c and d, of the paper).

    With stride 1, half of the channels go through the main branch, and the others are unchanged.
    With stride 2, all channels go through both branches. The results are concatenated and shuffled:
    [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    stride: int
    norm: LayerFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        main = MainBranch(self.features // 2, self.stride, self.norm, name="main")
        if self.stride == 1:
            shortcut, x = jnp.split(x, 2, axis=-1)
        else:
            shortcut = ShortcutBranch(self.features // 2, self.norm, name="shortcut")(x)
        return channel_shuffle(jnp.concatenate([shortcut, main(x)], axis=-1))


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 without its last 1 x 1 convolution and classifier.

    It takes images [B, H, W, 3], where H and W are multiples of 32. It returns the features of
    strides 8, 16 and 32, finest first: [B, H / 8, W / 8, C8], [B, H / 16, W / 16, C16] and
    [B, H / 32, W / 32, C32].

    Attributes:
      width: width multiplier, a key of STAGE_CHANNELS, which defines C8, C16 and C32.
      norm: builds a batch norm for training or for inference.
    """

    width: float
    norm: LayerFactory

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        # Stem: a convolution and a max pool, to stride 4.
        x = Conv(
            STEM_CHANNELS,
            kernel_size=3,
            stride=2,
            use_bias=False,
            kernel_init=inverse_fan_in,
            name="stem",
        )(images)
        x = max_pool_3x3(leaky_relu(self.norm(name="stem_norm")(x)))
        # Stages 2 to 4: the first block of each halves the resolution.
        features = []
        for stage, (channels, blocks) in enumerate(
            zip(STAGE_CHANNELS[self.width], STAGE_BLOCKS), start=2
        ):
            for block in range(blocks):
                stride = 2 if block == 0 else 1
                x = ShuffleBlock(channels, stride, self.norm, name=f"stage{stage}_{block}")(x)
            features.append(x)
        return features
