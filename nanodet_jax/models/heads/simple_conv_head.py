"""SimpleConvHead: the head of GFL, and of the assign guidance module of NanoDet-Plus.

Li et al., "Generalized Focal Loss" (https://arxiv.org/abs/2006.04388). This module reproduces
nanodet/model/head/simple_conv_head.py of https://github.com/RangiLyu/nanodet and, with ReLU, the
network of mmdet/models/dense_heads/gfl_head.py of https://github.com/open-mmlab/mmdetection.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from nanodet_jax.config import NORM_GROUPS
from nanodet_jax.models.heads.nanodet_head import PRIOR_BIAS, split_logits
from nanodet_jax.models.layers import Activation, ConvNormAct, Layer, leaky_relu, normal
from nanodet_jax.models.padding import NO_PADDING, Padding
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.structures import Predictions


class Scale(nn.Module):
    """Multiply by a learned scalar, initially 1."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.param("factor", nn.initializers.ones, (), jnp.float32)
        return x * factor.astype(x.dtype)


class SimpleConvHead(nn.Module):
    """Head of dense 3 x 3 convolutions with group norm. All levels share its weights.

    Only the scale of the box logits differs between levels. The head takes levels
    [B, H, W, channels], finest first. It returns `Predictions`, with the priors in the same order
    as in `NanoDetHead`.

    Attributes:
      num_classes: C.
      channels: number of channels of each of the two towers, a multiple of `NORM_GROUPS`.
      stacked_convs: number of convolutions in each tower.
      reg_max: R - 1, the largest distance in units of the stride.
      activation: of the towers.
      padding: which part of the images is padding. It does not influence the other predictions.
    """

    num_classes: int
    channels: int
    stacked_convs: int
    reg_max: int
    activation: Activation = leaky_relu
    padding: Padding = NO_PADDING

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> Predictions:
        def norm(name: str) -> Layer:
            # Without `dtype`, the float32 parameters would promote the output to float32.
            group_norm = nn.GroupNorm(
                NORM_GROUPS,
                epsilon=1e-5,
                use_fast_variance=False,
                dtype=features[0].dtype,
                name=name,
            )
            return lambda x: group_norm(x, mask=self.padding.inside_channels(x))

        def tower(name: str) -> list[ConvNormAct]:
            return [
                ConvNormAct(
                    self.channels,
                    norm,
                    3,
                    activation=self.activation,
                    kernel_init=normal(0.01),
                    name=f"{name}_tower_{i}",
                )
                for i in range(self.stacked_convs)
            ]

        def output(channels: int, name: str, bias_init: Initializer) -> Conv:
            return Conv(channels, 3, kernel_init=normal(0.01), bias_init=bias_init, name=name)

        # Build modules once and apply them to every level, so that levels share parameters.
        cls_layers = [*tower("cls"), output(self.num_classes, "cls_output", PRIOR_BIAS)]
        reg_layers = [
            *tower("reg"),
            output(4 * (self.reg_max + 1), "reg_output", nn.initializers.zeros),
        ]
        levels = []
        for i, x in enumerate(features):
            cls = reg = x
            for cls_layer, reg_layer in zip(cls_layers, reg_layers):
                cls = cls_layer(self.padding.clear(cls))
                reg = reg_layer(self.padding.clear(reg))
            reg = Scale(name=f"scale_{i}")(reg)
            fused = jnp.concatenate([cls, reg], axis=-1)
            levels.append(fused.reshape(fused.shape[0], -1, fused.shape[-1]))
        return split_logits(jnp.concatenate(levels, axis=1), self.num_classes)
