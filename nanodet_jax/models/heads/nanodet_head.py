"""NanoDetHead: towers of convolutions, with separate weights for each level.

The outputs follow Generalized Focal Loss (Li et al., https://arxiv.org/abs/2006.04388): class
logits, and a distribution over distances for each side of the box. The head reproduces
nanodet/model/head/nanodet_head.py of https://github.com/RangiLyu/nanodet. With 5 x 5 kernels and
one tower for both tasks, it reproduces nanodet/model/head/nanodet_plus_head.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from nanodet_jax.models.layers import (
    Activation,
    ConvNormAct,
    DepthwiseSeparableConv,
    LayerFactory,
    leaky_relu,
    normal,
)
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.structures import Predictions

# sigmoid(-4.595) = 0.01: at initialization every class is improbable.
PRIOR_BIAS = nn.initializers.constant(-4.595)


class NanoDetHead(nn.Module):
    """Predict class logits and box distributions at every pixel of every level.

    The head takes levels [B, H, W, channels], finest first. It returns `Predictions` for P priors,
    one for each pixel: finest level first, row by row. `class_logits` is [B, P, C], `box_logits` is
    [B, P, 4, R].

    Attributes:
      num_classes: C.
      channels: number of channels of each tower.
      kernel_size: kernel size of the towers.
      stacked_convs: number of convolutions in each tower.
      share_cls_reg: use one tower with one output layer (classes, then boxes) instead of two.
      reg_max: R - 1, the largest distance in units of the stride.
      depthwise: whether the convolutions of the towers are depthwise separable instead of dense.
      activation: of the towers.
      norm: builds a batch norm for training or for inference.
    """

    num_classes: int
    channels: int
    kernel_size: int
    stacked_convs: int
    share_cls_reg: bool
    reg_max: int
    norm: LayerFactory
    depthwise: bool = True
    activation: Activation = leaky_relu

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> Predictions:
        def tower(x: jax.Array, name: str) -> jax.Array:
            conv = DepthwiseSeparableConv if self.depthwise else ConvNormAct
            for i in range(self.stacked_convs):
                x = conv(
                    self.channels,
                    self.norm,
                    self.kernel_size,
                    activation=self.activation,
                    kernel_init=normal(0.01),
                    name=f"{name}_{i}",
                )(x)
            return x

        def output(x: jax.Array, channels: int, name: str, bias_init: Initializer) -> jax.Array:
            x = Conv(channels, kernel_init=normal(0.01), bias_init=bias_init, name=name)(x)
            return x.reshape(x.shape[0], -1, channels)  # [B, H * W, channels]

        box_channels = 4 * (self.reg_max + 1)
        levels = []
        for level, x in enumerate(features):
            cls = tower(x, f"cls_tower_{level}")
            if self.share_cls_reg:
                fused = output(cls, self.num_classes + box_channels, f"output_{level}", PRIOR_BIAS)
            else:
                reg = tower(x, f"reg_tower_{level}")
                fused = jnp.concatenate(
                    [
                        output(cls, self.num_classes, f"cls_output_{level}", PRIOR_BIAS),
                        output(reg, box_channels, f"reg_output_{level}", nn.initializers.zeros),
                    ],
                    axis=-1,
                )
            levels.append(fused)
        return split_logits(jnp.concatenate(levels, axis=1), self.num_classes)


def split_logits(logits: jax.Array, num_classes: int) -> Predictions:
    """Split [..., P, C + 4 * R] into class logits and the logits of left, top, right, bottom."""
    class_logits, box_logits = jnp.split(logits, [num_classes], axis=-1)
    return Predictions(class_logits, box_logits.reshape(*box_logits.shape[:-1], 4, -1))
