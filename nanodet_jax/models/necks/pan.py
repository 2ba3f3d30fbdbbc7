"""PAN without convolutions (Liu et al., 2018, as NanoDet slims it), the neck."""

import flax.linen as nn
import jax

from nanodet_jax.models.layers import downsample_2x, upsample_2x
from nanodet_jax.ops.convolution import Conv


class PAN(nn.Module):
    """Features of one width from those of the backbone, finest first.

    Each level gets what the coarser ones know, bilinearly enlarged and added, then what the
    finer ones know, bilinearly reduced and added. Only the 1 x 1 convolutions at the entry learn.
    """

    channels: int

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        levels = [
            Conv(self.channels, kernel_init=nn.initializers.xavier_uniform(), name=f"lateral_{i}")(
                x
            )
            for i, x in enumerate(features)
        ]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + upsample_2x(levels[i])
        for i in range(len(levels) - 1):
            levels[i + 1] = levels[i + 1] + downsample_2x(levels[i])
        return levels
