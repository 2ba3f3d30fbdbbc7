"""PAN without 3 x 3 convolutions, the neck of NanoDet.

Based on Liu et al., "Path Aggregation Network for Instance Segmentation"
(https://arxiv.org/abs/1803.01534). This module reproduces nanodet/model/fpn/pan.py of
https://github.com/RangiLyu/nanodet, which replaces the convolutions between levels with
interpolation.
"""

import flax.linen as nn
import jax

from nanodet_jax.models.layers import downsample_2x, upsample_2x
from nanodet_jax.ops.convolution import Conv


class PAN(nn.Module):
    """Fuse the backbone's features across levels.

    The neck takes features [B, H, W, C], finest first, each half the size of the one before. It
    returns levels [B, H, W, channels] with the same strides. Only the 1 x 1 convolutions have
    parameters.
    """

    channels: int

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        # Lateral: give all levels the same number of channels.
        levels = [
            Conv(self.channels, kernel_init=nn.initializers.xavier_uniform(), name=f"lateral_{i}")(
                x
            )
            for i, x in enumerate(features)
        ]
        # Top-down: add each level, upsampled, to the next finer one.
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + upsample_2x(levels[i])
        # Bottom-up: add each level, downsampled, to the next coarser one.
        for i in range(len(levels) - 1):
            levels[i + 1] = levels[i + 1] + downsample_2x(levels[i])
        return levels
