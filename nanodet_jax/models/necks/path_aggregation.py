"""Path aggregation: a top-down path, then a bottom-up path, through the levels of a neck.

Liu et al., "Path Aggregation Network for Instance Segmentation" (https://arxiv.org/abs/1803.01534).
"""

from collections.abc import Callable

import jax

from nanodet_jax.models.layers import Layer


def aggregate(
    laterals: list[jax.Array],
    upsample: Layer,
    fuse: Callable[[jax.Array, jax.Array, str], jax.Array],
    reduce_2x: Callable[[jax.Array, str], jax.Array],
    extra_level: bool,
) -> list[jax.Array]:
    """Return the fused levels [B, H, W, C], of the sizes of the laterals.

    With `extra_level`, one more level follows.

    Args:
      laterals: features [B, H, W, C], finest first, each half the size of the one before.
      upsample: doubles height and width.
      fuse: takes a neighboring level, resized to the size of a level, this level, and a name for
        the layers. It returns the fused level.
      reduce_2x: takes a level and a name for the layers. It returns a level half the size, rounded
        up.
      extra_level: whether to append a level half the size of the coarsest one, rounded up.
    """
    levels = laterals.copy()
    top = len(levels) - 1
    # Top-down: fuse each level, upsampled, with the next finer one. Layers are numbered in the
    # order in which they are applied.
    for i in range(top, 0, -1):
        levels[i - 1] = fuse(upsample(levels[i]), levels[i - 1], f"top_down_{top - i}")
    # Bottom-up: fuse each level, reduced by a strided convolution, with the next coarser one.
    for i in range(top):
        resized = reduce_2x(levels[i], f"downsample_{i}")
        levels[i + 1] = fuse(resized, levels[i + 1], f"bottom_up_{i}")
    # Extra level: reduce the coarsest lateral and the coarsest fused level, and add them.
    if extra_level:
        levels.append(reduce_2x(laterals[-1], "extra_entry") + reduce_2x(levels[-1], "extra_last"))
    return levels
