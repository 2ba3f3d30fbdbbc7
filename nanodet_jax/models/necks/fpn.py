"""FPN: a top-down path that adds coarse features to finer ones.

Lin et al., "Feature Pyramid Networks for Object Detection" (https://arxiv.org/abs/1612.03144).
"""

import flax.linen as nn
import jax

from nanodet_jax.models.layers import upsample_2x, upsample_nearest_2x
from nanodet_jax.models.padding import NO_PADDING, Padding
from nanodet_jax.ops.convolution import Conv

xavier = nn.initializers.xavier_uniform()


class NanoDetFPN(nn.Module):
    """The original's FPN, with bilinear interpolation and without 3 x 3 convolutions.

    The neck takes features [B, H, W, C], finest first, each half the size of the one before. It
    returns levels [B, H, W, channels] with the same strides. This class reproduces
    nanodet/model/fpn/fpn.py of https://github.com/RangiLyu/nanodet.
    """

    channels: int

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        levels = _laterals(self.channels, features)
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + upsample_2x(levels[i])
        return levels


class FPN(nn.Module):
    """The FPN of GFL in mmdetection, with 3 x 3 convolutions after the sums, and coarser levels.

    The neck takes features [B, H, W, C], finest first, each half the size of the one before,
    rounded up. It returns levels [B, H, W, channels] with the same strides, followed by
    `extra_levels` coarser levels, each half the size of the one before, rounded up. It has no norms
    and no activations. This class reproduces mmdet/models/necks/fpn.py of
    https://github.com/open-mmlab/mmdetection with add_extra_convs="on_output".

    Attributes:
      channels: number of channels of every level.
      extra_levels: number of coarser levels.
      padding: which part of the images is padding. It does not influence the rest of the levels.
    """

    channels: int
    extra_levels: int
    padding: Padding = NO_PADDING

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        levels = _laterals(self.channels, features)
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + _nearest(levels[i], *levels[i - 1].shape[1:3])
        outputs = [
            Conv(self.channels, 3, kernel_init=xavier, name=f"output_{i}")(self.padding.clear(x))
            for i, x in enumerate(levels)
        ]
        for _ in range(self.extra_levels):
            name = f"output_{len(outputs)}"
            conv = Conv(self.channels, 3, stride=2, kernel_init=xavier, name=name)
            outputs.append(conv(self.padding.clear(outputs[-1])))
        return outputs


def _laterals(channels: int, features: list[jax.Array]) -> list[jax.Array]:
    """Apply a 1 x 1 convolution to each feature map, which gives all of them `channels`."""
    return [
        Conv(channels, kernel_init=xavier, name=f"lateral_{i}")(x) for i, x in enumerate(features)
    ]


def _nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """Double height and width by repeating pixels, and cut the result to the given size."""
    return upsample_nearest_2x(x)[:, :height, :width]
