"""The cross-stage-partial backbone of NanoDet-g, made of dense convolutions for accelerators.

After Wang et al., "CSPNet: A New Backbone that can Enhance Learning Capability of CNN"
(https://arxiv.org/abs/1911.11929). Reproduces nanodet/model/backbone/custom_csp.py of
https://github.com/RangiLyu/nanodet with the settings of its nanodet-g.yml.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax import config
from nanodet_jax.models.backbones.backbone import Architecture, Layers, Stage, TorchNames
from nanodet_jax.models.layers import ConvNormAct
from nanodet_jax.ops.max_pool import max_pool_3x3


class Setting(NamedTuple):
    """One CSP block."""

    residuals: int  # number of residual blocks
    stride: int


SETTINGS = (Setting(1, 1), Setting(2, 2), Setting(2, 2), Setting(3, 2))
STEM_CHANNELS = 32
POSITIONS = {"conv": "conv", "norm": "bn"}
TORCH_NAMES: TorchNames = (
    (r"stage0/(\w+)", "stages.0.{}", POSITIONS),
    (r"stage(\d)/entry/(\w+)", r"stages.\1.in_conv.{}", POSITIONS),
    (r"stage(\d)/exit/(\w+)", r"stages.\1.res_out_conv.{}", POSITIONS),
    (r"stage(\d)/residual(\d)_(in|mid)/(\w+)", r"stages.\1.res_blocks.\2.\3_conv.{}", POSITIONS),
)


class CSPBlock(nn.Module):
    """Residual blocks between two convolutions, whose outputs are concatenated.

    All convolutions are 3 x 3. A residual block concatenates the outputs of its two convolutions.
    [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), 2 C], where C is even.
    """

    residuals: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]

        def conv(x: jax.Array, features: int, name: str, stride: int = 1) -> jax.Array:
            norm, activation = self.layers.norm, self.layers.activation
            return ConvNormAct(features, norm, 3, stride, activation, name=name)(x)

        entry = y = conv(x, channels, "entry", self.stride)
        for i in range(self.residuals):
            half = conv(y, channels // 2, f"residual{i}_in")
            y = jnp.concatenate([conv(half, channels // 2, f"residual{i}_mid"), half], axis=-1)
        return jnp.concatenate([conv(y, channels, "exit"), entry], axis=-1)


def architecture(model: config.Model) -> Architecture:
    """Return the backbone of NanoDet-g, with stages of strides 2, 4, 8, 16 and 32."""

    def stem(x: jax.Array, layers: Layers) -> jax.Array:
        return ConvNormAct(STEM_CHANNELS, layers.norm, 3, 2, layers.activation, name="stage0")(x)

    def pool(x: jax.Array, _: Layers) -> jax.Array:
        return max_pool_3x3(x)

    def stage(index: int, x: jax.Array, layers: Layers) -> jax.Array:
        # The stages are numbered as in the original: stages 0 and 1 are the stem and the pooling.
        return CSPBlock(*SETTINGS[index], layers, name=f"stage{index + 2}")(x)

    return Architecture(
        stages=(
            Stage(stem, 2, "stage0"),
            Stage(pool, 4, ""),
            *(
                Stage(partial(stage, index), 4 * 2**index, f"stage{index + 2}")
                for index in range(len(SETTINGS))
            ),
        ),
        activation="leaky_relu",
    )
