"""PicoHead, the head of PicoDet: one tower for each level, and a class score that two layers share.

Yu et al., "PP-PicoDet: A Better Real-Time Object Detector on Mobile Devices"
(https://arxiv.org/abs/2111.00902), in its version of 2022, whose classification follows the
task-aligned head of Feng et al. (https://arxiv.org/abs/2108.07755). Reproduces PicoHeadV2 of
ppdet/modeling/heads/pico_head.py of https://github.com/PaddlePaddle/PaddleDetection.
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
    """Scale each channel by a sigmoid gate, computed from the means of all channels by one layer.

    Lee and Park, "CenterMask" (https://arxiv.org/abs/1911.06667). [B, H, W, C] to [B, H, W, C].
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = jnp.mean(at_least_float32(x), axis=(1, 2), keepdims=True).astype(x.dtype)
        return x * nn.sigmoid(Conv(x.shape[-1], kernel_init=normal(0.001), name="gate")(mean))


class PicoHead(nn.Module):
    """Predict class logits and box distributions at every pixel of every level.

    Takes levels [B, H, W, channels], finest first. Returns `Predictions` in the order of
    `NanoDetHead`. The score of a class is the geometric mean of two probabilities: that of the
    class, and one that all classes of a pixel share.

    Attributes:
      num_classes: C.
      channels: width of the towers.
      kernel_size: kernel size of the towers.
      stacked_convs: depth of the towers.
      reg_max: R - 1, the largest distance in units of the stride.
      activation: of all layers.
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
        """Return the logits [B, H, W, 1] that all classes share."""
        # The original's kernel has 5 x 5 pixels, whatever the size of the others.
        x = ConvNormAct(
            1, self.norm, 5, 1, self.activation, paddle_uniform, name=f"align_{level}_0"
        )(x)
        return ConvNormAct(
            1, self.norm, activation=None, kernel_init=paddle_uniform, name=f"align_{level}_1"
        )(x)


def mean_logits(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the logit of sqrt(sigmoid(first) * sigmoid(second)), float32, elementwise.

    Losses and postprocessing take logits. This form neither overflows nor loses digits where a
    probability is close to 0 or 1.
    """
    first, second = at_least_float32(first), at_least_float32(second)
    log_product = nn.log_sigmoid(first) + nn.log_sigmoid(second)
    # 1 - p q = (1 - p) + p (1 - q)
    log_rest = jnp.logaddexp(
        nn.log_sigmoid(-first), nn.log_sigmoid(first) + nn.log_sigmoid(-second)
    )
    # With s = sqrt(p q): s / (1 - s) = s (1 + s) / (1 - p q)
    return log_product / 2 + jnp.log1p(jnp.exp(log_product / 2)) - log_rest
