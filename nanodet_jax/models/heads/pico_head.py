"""PicoHead, the head of PicoDet: one tower for each level, and class scores from two outputs.

Yu et al., "PP-PicoDet: A Better Real-Time Object Detector on Mobile Devices"
(https://arxiv.org/abs/2111.00902). This is the version of 2022, whose classification follows the
task-aligned head of Feng et al. (https://arxiv.org/abs/2108.07755). This module reproduces
`PicoHeadV2` in ppdet/modeling/heads/pico_head.py of
https://github.com/PaddlePaddle/PaddleDetection.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax.models.heads.nanodet_head import PRIOR_BIAS, split_logits
from nanodet_jax.models.layers import (
    Activation,
    ConvNormAct,
    DepthwiseSeparableConv,
    LayerFactory,
    normal,
    paddle_uniform,
)
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.runtime.precision import at_least_float32
from nanodet_jax.structures import Predictions


class EffectiveSqueezeExcite(nn.Module):
    """Scale each channel by a sigmoid gate. One layer computes it from the means of all channels.

    Lee and Park, "CenterMask" (https://arxiv.org/abs/1911.06667). [B, H, W, C] to [B, H, W, C].
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = jnp.mean(at_least_float32(x), axis=(1, 2), keepdims=True).astype(x.dtype)
        return x * nn.sigmoid(Conv(x.shape[-1], kernel_init=normal(0.001), name="gate")(mean))


class PicoHead(nn.Module):
    """Predict class logits and box distributions at every pixel of every level.

    The head takes levels [B, H, W, channels], finest first. It returns `Predictions`, with the
    priors in the same order as in `NanoDetHead`. The score of a class is the geometric mean of two
    probabilities: one for this class, and one that is the same for all classes of a pixel.

    Attributes:
      num_classes: C.
      channels: number of channels of each tower.
      kernel_size: kernel size of the towers.
      stacked_convs: number of depthwise separable convolutions in each tower.
      reg_max: R - 1, the largest distance in units of the stride.
      activation: of all layers but the outputs.
      norm: builds a batch norm for training or for inference.
    """

    num_classes: int
    channels: int
    kernel_size: int
    stacked_convs: int
    reg_max: int
    activation: Activation
    norm: LayerFactory

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> Predictions:
        levels = []
        for level, x in enumerate(features):
            for i in range(self.stacked_convs):
                x = DepthwiseSeparableConv(
                    self.channels,
                    self.norm,
                    self.kernel_size,
                    activation=self.activation,
                    kernel_init=normal(0.01),
                    name=f"cls_tower_{level}_{i}",
                )(x)
            gated = EffectiveSqueezeExcite(name=f"excite_{level}")(x)
            gated = ConvNormAct(
                self.channels,
                self.norm,
                activation=self.activation,
                kernel_init=normal(0.01),
                name=f"excite_{level}_conv",
            )(gated)
            classes = Conv(
                self.num_classes,
                kernel_init=normal(0.01),
                bias_init=PRIOR_BIAS,
                name=f"cls_output_{level}",
            )(gated)
            boxes = Conv(
                4 * (self.reg_max + 1), kernel_init=normal(0.01), name=f"reg_output_{level}"
            )(gated)
            fused = jnp.concatenate([mean_logits(classes, self._shared(x, level)), boxes], axis=-1)
            levels.append(fused.reshape(fused.shape[0], -1, fused.shape[-1]))
        return split_logits(jnp.concatenate(levels, axis=1), self.num_classes)

    def _shared(self, x: jax.Array, level: int) -> jax.Array:
        """Return the logits [B, H, W, 1] of the probability that is the same for all classes."""
        # As in PaddleDetection, this kernel is 5 x 5, even if `kernel_size` is not 5.
        x = ConvNormAct(
            1, self.norm, 5, 1, self.activation, paddle_uniform, name=f"align_{level}_0"
        )(x)
        return ConvNormAct(
            1, self.norm, activation=None, kernel_init=paddle_uniform, name=f"align_{level}_1"
        )(x)


def mean_logits(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the logits of sqrt(sigmoid(first) * sigmoid(second)), in float32.

    The two arrays broadcast. The logits are returned because losses and postprocessing take logits.
    They are computed so that no value overflows or loses precision if a probability is close to 0
    or 1.
    """
    first, second = at_least_float32(first), at_least_float32(second)
    log_product = nn.log_sigmoid(first) + nn.log_sigmoid(second)
    # 1 - p q = (1 - p) + p (1 - q)
    log_rest = jnp.logaddexp(
        nn.log_sigmoid(-first), nn.log_sigmoid(first) + nn.log_sigmoid(-second)
    )
    # With s = sqrt(p q): s / (1 - s) = s (1 + s) / (1 - p q)
    return log_product / 2 + jnp.log1p(jnp.exp(log_product / 2)) - log_rest
