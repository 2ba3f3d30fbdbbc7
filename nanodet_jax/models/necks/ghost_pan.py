"""GhostPAN, the neck of NanoDet-Plus: a PAN that fuses levels with ghost bottlenecks.

Ghost modules are from Han et al., "GhostNet: More Features from Cheap Operations"
(https://arxiv.org/abs/1911.11907). This module reproduces nanodet/model/fpn/ghost_pan.py and
nanodet/model/backbone/ghostnet.py of https://github.com/RangiLyu/nanodet.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax.models.ghost import GhostModule, GhostShortcut
from nanodet_jax.models.layers import (
    Activation,
    ConvNormAct,
    DepthwiseSeparableConv,
    LayerFactory,
    he_normal,
    leaky_relu,
    pytorch_uniform,
    upsample_2x,
)
from nanodet_jax.models.necks.path_aggregation import aggregate


class GhostBottleneck(nn.Module):
    """Two ghost modules in sequence, plus a shortcut, without a final activation.

    [B, H, W, C] to [B, H, W, features].
    """

    features: int
    kernel_size: int
    norm: LayerFactory
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = GhostModule(self.features, self.norm, self.activation, pytorch_uniform, name="ghost1")(
            x
        )
        y = GhostModule(self.features, self.norm, None, pytorch_uniform, name="ghost2")(y)
        if x.shape[-1] != self.features:
            x = GhostShortcut(
                self.features, self.kernel_size, 1, self.norm, pytorch_uniform, name="shortcut"
            )(x)
        return x + y


class GhostPAN(nn.Module):
    """Fuse the backbone's features across levels.

    The neck takes features [B, H, W, C], finest first, each half the size of the one before. It
    returns levels [B, H, W, channels] with the same strides and, with `extra_level`, one with twice
    the coarsest stride.

    Attributes:
      channels: number of channels of every level; must be even.
      kernel_size: kernel size of all depthwise convolutions, except the ghost modules' 3 x 3.
      blocks: number of ghost bottlenecks for each fusion of two levels.
      extra_level: whether to add a level half the size of the coarsest one, rounded up.
      norm: builds a batch norm for training or for inference.
      activation: of all layers.
    """

    channels: int
    kernel_size: int
    blocks: int
    extra_level: bool
    norm: LayerFactory
    activation: Activation = leaky_relu

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        def fuse(resized: jax.Array, level: jax.Array, name: str) -> jax.Array:
            x = jnp.concatenate([resized, level], axis=-1)
            for b in range(self.blocks):
                x = GhostBottleneck(
                    self.channels, self.kernel_size, self.norm, self.activation, name=f"{name}_{b}"
                )(x)
            return x

        def reduce_2x(x: jax.Array, name: str) -> jax.Array:
            return DepthwiseSeparableConv(
                self.channels,
                self.norm,
                self.kernel_size,
                stride=2,
                activation=self.activation,
                kernel_init=he_normal,
                name=name,
            )(x)

        # Lateral: give all levels the same number of channels.
        laterals = [
            ConvNormAct(self.channels, self.norm, activation=self.activation, name=f"lateral_{i}")(
                x
            )
            for i, x in enumerate(features)
        ]
        return aggregate(laterals, upsample_2x, fuse, reduce_2x, self.extra_level)
