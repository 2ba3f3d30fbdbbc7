"""LC-PAN, the neck of PicoDet: a PAN that fuses levels with depthwise separable convolutions.

Yu et al., "PP-PicoDet: A Better Real-Time Object Detector on Mobile Devices"
(https://arxiv.org/abs/2111.00902), in its version of 2022. This module reproduces
ppdet/modeling/necks/lc_pan.py of https://github.com/PaddlePaddle/PaddleDetection.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax.models.layers import (
    Activation,
    ConvNormAct,
    DepthwiseSeparableConv,
    LayerFactory,
    paddle_normal,
    paddle_uniform,
    upsample_nearest_2x,
)
from nanodet_jax.models.necks.path_aggregation import aggregate


class LCPAN(nn.Module):
    """Fuse the backbone's features across levels.

    The neck takes features [B, H, W, C], finest first, each half the size of the one before. It
    returns levels [B, H, W, channels] with the same strides and, with `extra_level`, one with twice
    the coarsest stride.

    Attributes:
      channels: number of channels of every level.
      kernel_size: kernel size of all depthwise convolutions.
      extra_level: whether to add a level half the size of the coarsest one, rounded up.
      norm: builds a batch norm for training or for inference.
      activation: of all layers.
    """

    channels: int
    kernel_size: int
    extra_level: bool
    norm: LayerFactory
    activation: Activation

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        def fuse(resized: jax.Array, level: jax.Array, name: str) -> jax.Array:
            x = jnp.concatenate([resized, level], axis=-1)
            for i, width in enumerate((2 * self.channels, self.channels)):
                x = DepthwiseSeparableConv(
                    width,
                    self.norm,
                    self.kernel_size,
                    activation=self.activation,
                    kernel_init=paddle_normal,
                    name=f"{name}_{i}",
                )(x)
            return x

        def reduce_2x(x: jax.Array, name: str) -> jax.Array:
            return DepthwiseSeparableConv(
                self.channels,
                self.norm,
                self.kernel_size,
                stride=2,
                activation=self.activation,
                kernel_init=paddle_uniform,
                name=name,
            )(x)

        laterals = [
            ConvNormAct(
                self.channels,
                self.norm,
                activation=self.activation,
                kernel_init=paddle_uniform,
                name=f"lateral_{i}",
            )(x)
            for i, x in enumerate(features)
        ]
        return aggregate(laterals, upsample_nearest_2x, fuse, reduce_2x, self.extra_level)
