"""Ghost modules, the layers of GhostNet and of NanoDet-Plus's neck.

Han et al., "GhostNet: More Features from Cheap Operations" (https://arxiv.org/abs/1911.11907).
This module reproduces nanodet/model/backbone/ghostnet.py of https://github.com/RangiLyu/nanodet.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from nanodet_jax.models.layers import Activation, LayerFactory
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv


class GhostModule(nn.Module):
    """Compute half of the features with a 1 x 1 convolution, and the other half from the first.

    The other half is computed with a depthwise 3 x 3 convolution, which costs little. [B, H, W, C]
    to [B, H, W, features], where `features` is even. If `activation` is None, no activation is
    applied.
    """

    features: int
    norm: LayerFactory
    activation: Activation | None
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm_act(x: jax.Array, name: str) -> jax.Array:
            x = self.norm(name=name)(x)
            return x if self.activation is None else self.activation(x)

        primary = Conv(
            self.features // 2, use_bias=False, kernel_init=self.kernel_init, name="primary"
        )(x)
        primary = norm_act(primary, "primary_norm")
        cheap = DepthwiseConv(3, kernel_init=self.kernel_init, name="cheap")(primary)
        return jnp.concatenate([primary, norm_act(cheap, "cheap_norm")], axis=-1)


class GhostShortcut(nn.Module):
    """Shortcut of a ghost bottleneck that changes the number of channels or the resolution.

    It consists of a depthwise convolution, a norm, a pointwise convolution and a norm, without an
    activation. [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    kernel_size: int
    stride: int
    norm: LayerFactory
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = DepthwiseConv(
            self.kernel_size, self.stride, kernel_init=self.kernel_init, name="depthwise"
        )(x)
        x = self.norm(name="dwnorm")(x)
        x = Conv(self.features, use_bias=False, kernel_init=self.kernel_init, name="pointwise")(x)
        return self.norm(name="pwnorm")(x)
