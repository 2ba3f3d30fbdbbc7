"""NanoDetHead: towers of depthwise separable convolutions, not shared between levels.

With kernels of 5 x 5 and one tower for both tasks it is NanoDetPlusHead.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax.models.layers import DepthwiseSeparableConv, Module, normal
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.structures import Predictions

# sigmoid(-4.595) = 0.01: at the start every class is unlikely.
PRIOR_BIAS = nn.initializers.constant(-4.595)


class NanoDetHead(nn.Module):
    """Predictions for every pixel of every level, finest level first, rows top to bottom.

    Attributes:
      num_classes: C.
      channels: width of the towers.
      kernel_size: of the towers.
      stacked_convs: depth of the towers.
      share_cls_reg: one tower with one output layer (classes, then boxes), or two of each.
      reg_max: R - 1.
      norm: batch norm, with its train flag set.
    """

    num_classes: int
    channels: int
    kernel_size: int
    stacked_convs: int
    share_cls_reg: bool
    reg_max: int
    norm: Module

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> Predictions:
        def tower(x, name):
            for i in range(self.stacked_convs):
                x = DepthwiseSeparableConv(
                    self.channels, self.norm, self.kernel_size, name=f"{name}_{i}"
                )(x)
            return x

        def output(x, channels, name, bias_init):
            x = Conv(channels, kernel_init=normal(0.01), bias_init=bias_init, name=name)(x)
            return x.reshape(x.shape[0], -1, channels)

        num_bins = 4 * (self.reg_max + 1)
        levels = []
        for level, x in enumerate(features):
            cls = tower(x, f"cls_tower_{level}")
            if self.share_cls_reg:
                fused = output(cls, self.num_classes + num_bins, f"output_{level}", PRIOR_BIAS)
            else:
                reg = tower(x, f"reg_tower_{level}")
                fused = jnp.concatenate(
                    [
                        output(cls, self.num_classes, f"cls_output_{level}", PRIOR_BIAS),
                        output(reg, num_bins, f"reg_output_{level}", nn.initializers.zeros),
                    ],
                    axis=-1,
                )
            levels.append(fused)
        return split_logits(jnp.concatenate(levels, axis=1), self.num_classes)


def split_logits(logits: jax.Array, num_classes: int) -> Predictions:
    """Predictions from [..., P, C + 4 * R]: class logits first, then sides left to bottom."""
    class_logits, bins = jnp.split(logits, [num_classes], axis=-1)
    return Predictions(class_logits, bins.reshape(*bins.shape[:-1], 4, -1))
