"""GhostPAN, the neck of NanoDet-Plus: a PAN that fuses levels with ghost bottlenecks.

PAN is from Liu et al. (https://arxiv.org/abs/1803.01534). Ghost modules are from Han et al.,
"GhostNet: More Features from Cheap Operations" (https://arxiv.org/abs/1911.11907). This module
reproduces nanodet/model/fpn/ghost_pan.py and nanodet/model/backbone/ghostnet.py of
https://github.com/RangiLyu/nanodet.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax.models.layers import (
    ConvNormAct,
    DepthwiseSeparableConv,
    LayerFactory,
    he_normal,
    leaky_relu,
    pytorch_uniform,
    upsample_2x,
)
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv


class GhostModule(nn.Module):
    """Compute half of the features with a 1 x 1 convolution, and the rest cheaply from that half.

    The cheap operation is a depthwise 3 x 3 convolution. [B, H, W, C] to [B, H, W, features], where
    `features` is even.
    """

    features: int
    norm: LayerFactory
    activate: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm_act(x: jax.Array, name: str) -> jax.Array:
            x = self.norm(name=name)(x)
            return leaky_relu(x) if self.activate else x

        primary = Conv(
            self.features // 2, use_bias=False, kernel_init=pytorch_uniform, name="primary"
        )(x)
        primary = norm_act(primary, "primary_norm")
        cheap = DepthwiseConv(3, kernel_init=pytorch_uniform, name="cheap")(primary)
        return jnp.concatenate([primary, norm_act(cheap, "cheap_norm")], axis=-1)


class GhostShortcut(nn.Module):
    """Shortcut of a ghost bottleneck that changes the number of channels.

    Depthwise convolution, norm, pointwise convolution, norm, without an activation: [B, H, W, C] to
    [B, H, W, features].
    """

    features: int
    kernel_size: int
    norm: LayerFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = DepthwiseConv(self.kernel_size, kernel_init=pytorch_uniform, name="depthwise")(x)
        x = self.norm(name="dwnorm")(x)
        x = Conv(self.features, use_bias=False, kernel_init=pytorch_uniform, name="pointwise")(x)
        return self.norm(name="pwnorm")(x)


class GhostBottleneck(nn.Module):
    """Two ghost modules in sequence, plus a shortcut, without a final activation.

    [B, H, W, C] to [B, H, W, features].
    """

    features: int
    kernel_size: int
    norm: LayerFactory

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = GhostModule(self.features, self.norm, activate=True, name="ghost1")(x)
        y = GhostModule(self.features, self.norm, activate=False, name="ghost2")(y)
        if x.shape[-1] != self.features:
            x = GhostShortcut(self.features, self.kernel_size, self.norm, name="shortcut")(x)
        return x + y


class GhostPAN(nn.Module):
    """Fuse the backbone's features across levels.

    The neck takes features [B, H, W, C] of strides 8, 16 and 32, finest first. It returns levels
    [B, H, W, channels] of the same strides and, with `extra_level`, also of stride 64.

    Attributes:
      channels: number of channels of every level; must be even.
      kernel_size: kernel size of all depthwise convolutions, except the ghost modules' 3 x 3.
      blocks: number of ghost bottlenecks for each fusion of two levels.
      extra_level: add a level half the size of the coarsest one, rounded up.
      norm: builds a batch norm for training or for inference.
    """

    channels: int
    kernel_size: int
    blocks: int
    extra_level: bool
    norm: LayerFactory

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        def fuse(resized: jax.Array, level: jax.Array, name: str) -> jax.Array:
            x = jnp.concatenate([resized, level], axis=-1)
            for b in range(self.blocks):
                x = GhostBottleneck(self.channels, self.kernel_size, self.norm, name=f"{name}_{b}")(
                    x
                )
            return x

        def reduce_2x(x: jax.Array, name: str) -> jax.Array:
            return DepthwiseSeparableConv(
                self.channels, self.norm, self.kernel_size, 2, he_normal, name=name
            )(x)

        # Lateral: give all levels the same number of channels.
        laterals = [
            ConvNormAct(self.channels, self.norm, name=f"lateral_{i}")(x)
            for i, x in enumerate(features)
        ]
        levels = laterals.copy()
        top = len(levels) - 1
        # Top-down: fuse each level, upsampled, with the next finer one. Modules are numbered in the
        # order in which they are applied.
        for i in range(top, 0, -1):
            levels[i - 1] = fuse(upsample_2x(levels[i]), levels[i - 1], f"top_down_{top - i}")
        # Bottom-up: fuse each level, reduced by a strided convolution, with the next coarser one.
        for i in range(top):
            resized = reduce_2x(levels[i], f"downsample_{i}")
            levels[i + 1] = fuse(resized, levels[i + 1], f"bottom_up_{i}")
        # Extra level: reduce the coarsest lateral and the coarsest fused level, and add them.
        if self.extra_level:
            levels.append(
                reduce_2x(laterals[-1], "extra_entry") + reduce_2x(levels[-1], "extra_last")
            )
        return levels
