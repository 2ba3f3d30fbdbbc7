"""GhostPAN, the neck of NanoDet-Plus: PAN whose levels meet in ghost bottlenecks.

Ghost modules are those of GhostNet (Han et al., 2020).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax.models.layers import (
    ConvNormAct,
    DepthwiseSeparableConv,
    Module,
    he_normal,
    leaky_relu,
    pytorch_uniform,
    upsample_2x,
)
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv


class GhostModule(nn.Module):
    """Half of the features from a 1 x 1 convolution, the other half cheaply from the first."""

    features: int
    norm: Module
    activate: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def finish(x, name):
            x = self.norm(name=name)(x)
            return leaky_relu(x) if self.activate else x

        primary = Conv(
            self.features // 2, use_bias=False, kernel_init=pytorch_uniform, name="primary"
        )(x)
        primary = finish(primary, "primary_norm")
        cheap = DepthwiseConv(3, kernel_init=pytorch_uniform, name="cheap")(primary)
        return jnp.concatenate([primary, finish(cheap, "cheap_norm")], axis=-1)


class GhostShortcut(nn.Module):
    """The path around two ghost modules where the number of channels changes."""

    features: int
    kernel_size: int
    norm: Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = DepthwiseConv(self.kernel_size, kernel_init=pytorch_uniform, name="depthwise")(x)
        x = self.norm(name="dwnorm")(x)
        x = Conv(self.features, use_bias=False, kernel_init=pytorch_uniform, name="pointwise")(x)
        return self.norm(name="pwnorm")(x)


class GhostBottleneck(nn.Module):
    """Two ghost modules beside a shortcut; there is no activation at the end."""

    features: int
    kernel_size: int
    norm: Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = GhostModule(self.features, self.norm, activate=True, name="ghost1")(x)
        y = GhostModule(self.features, self.norm, activate=False, name="ghost2")(y)
        if x.shape[-1] != self.features:
            x = GhostShortcut(self.features, self.kernel_size, self.norm, name="shortcut")(x)
        return x + y


class GhostPAN(nn.Module):
    """Features of one width from those of the backbone, finest first.

    Each level meets the coarser one, bilinearly enlarged, then the finer one, reduced by a
    convolution. An extra level is reduced from the last one and from the backbone's coarsest.

    Attributes:
      channels: width of every level, even.
      kernel_size: of all depthwise convolutions but the ghost modules' own 3 x 3.
      blocks: ghost bottlenecks where two levels meet.
      extra_level: whether to add one of half the size of the coarsest, rounded up.
      norm: batch norm, with its train flag set.
    """

    channels: int
    kernel_size: int
    blocks: int
    extra_level: bool
    norm: Module

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        def meet(moved, level, name):
            x = jnp.concatenate([moved, level], axis=-1)
            for b in range(self.blocks):
                x = GhostBottleneck(self.channels, self.kernel_size, self.norm, name=f"{name}_{b}")(
                    x
                )
            return x

        def reduce_2x(x, name):
            return DepthwiseSeparableConv(
                self.channels, self.norm, self.kernel_size, 2, he_normal, name=name
            )(x)

        entry = [
            ConvNormAct(self.channels, self.norm, name=f"lateral_{i}")(x)
            for i, x in enumerate(features)
        ]
        levels = entry.copy()
        top = len(levels) - 1
        for i in range(top, 0, -1):  # numbered in the order in which they act
            levels[i - 1] = meet(upsample_2x(levels[i]), levels[i - 1], f"top_down_{top - i}")
        for i in range(top):
            moved = reduce_2x(levels[i], f"downsample_{i}")
            levels[i + 1] = meet(moved, levels[i + 1], f"bottom_up_{i}")
        if self.extra_level:
            levels.append(reduce_2x(entry[-1], "extra_entry") + reduce_2x(levels[-1], "extra_last"))
        return levels
