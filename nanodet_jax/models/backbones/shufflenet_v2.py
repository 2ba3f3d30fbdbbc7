"""ShuffleNetV2 (Ma et al., 2018), the backbone."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax.models.layers import Module, leaky_relu
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv
from nanodet_jax.ops.max_pool import max_pool_3x3

# Channels of the stages with strides 8, 16, 32, by width (table 5 of the paper).
STAGE_CHANNELS = {
    0.5: (48, 96, 192),
    1.0: (116, 232, 464),
    1.5: (176, 352, 704),
    2.0: (244, 488, 976),
}
STAGE_BLOCKS = (4, 8, 4)
STEM_CHANNELS = 24


def inverse_fan_in(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Normal with a standard deviation (not variance) of one over the channels in, as published."""
    return jax.random.normal(key, shape, dtype) / shape[-2]


def channel_shuffle(x: jax.Array) -> jax.Array:
    """Interleave the first half of the channels with the second."""
    *space, channels = x.shape
    return x.reshape(*space, 2, channels // 2).swapaxes(-1, -2).reshape(x.shape)


class ShortcutBranch(nn.Module):
    """The left path of a down-sampling block."""

    features: int
    norm: Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = DepthwiseConv(stride=2, kernel_init=inverse_fan_in, name="depthwise")(x)
        x = self.norm(name="dwnorm")(x)
        x = Conv(self.features, use_bias=False, kernel_init=inverse_fan_in, name="pointwise")(x)
        return leaky_relu(self.norm(name="pwnorm")(x))


class MainBranch(nn.Module):
    """The right path of every block: pointwise, depthwise, pointwise."""

    features: int
    stride: int
    norm: Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def pointwise(name):
            return Conv(self.features, use_bias=False, kernel_init=inverse_fan_in, name=name)

        x = leaky_relu(self.norm(name="innorm")(pointwise("pointwise_in")(x)))
        x = DepthwiseConv(stride=self.stride, kernel_init=inverse_fan_in, name="depthwise")(x)
        x = self.norm(name="dwnorm")(x)
        return leaky_relu(self.norm(name="outnorm")(pointwise("pointwise_out")(x)))


class ShuffleBlock(nn.Module):
    """A block of ShuffleNetV2: half of the channels pass by, or are down-sampled on a shortcut."""

    features: int
    stride: int
    norm: Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        main = MainBranch(self.features // 2, self.stride, self.norm, name="main")
        if self.stride == 1:
            passed, worked = jnp.split(x, 2, axis=-1)
        else:
            passed = ShortcutBranch(self.features // 2, self.norm, name="shortcut")(x)
            worked = x
        return channel_shuffle(jnp.concatenate([passed, main(worked)], axis=-1))


class ShuffleNetV2(nn.Module):
    """Features of strides 8, 16 and 32 from images [B, H, W, 3]; H and W multiples of 32."""

    width: float
    norm: Module

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        x = Conv(
            STEM_CHANNELS,
            kernel_size=3,
            stride=2,
            use_bias=False,
            kernel_init=inverse_fan_in,
            name="stem",
        )(images)
        x = max_pool_3x3(leaky_relu(self.norm(name="stem_norm")(x)))
        features = []
        for stage, (channels, blocks) in enumerate(
            zip(STAGE_CHANNELS[self.width], STAGE_BLOCKS), start=2
        ):
            for block in range(blocks):
                stride = 2 if block == 0 else 1
                x = ShuffleBlock(channels, stride, self.norm, name=f"stage{stage}_{block}")(x)
            features.append(x)
        return features
