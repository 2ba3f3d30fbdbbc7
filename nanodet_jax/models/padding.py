"""Padding that does not change the features of an image.

A convolution reads zeros beyond the border of its input. If a batch is padded further than an image
needs, the features there are not zero after the first layer, and would leak into the image. Layers
that read neighboring pixels therefore clear the padding first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


class Padding:
    """What part of each image in a batch is padding.

    Args:
      canvas: (height, width) of the input of the network.
      sizes: height and width of each image in pixels of the input, which is padding beyond them.
        None: the network treats the whole canvas as the image.
    """

    def __init__(self, canvas: tuple[int, ...], sizes: Int32[Array, "B 2"] | None) -> None:
        self.canvas, self.sizes = canvas, sizes

    def inside(self, x: Float[Array, "B h w C"]) -> Bool[Array, "B h w 1"] | None:
        """Return which pixels of a feature map belong to the image. None: all.

        A feature map has ceil(H / stride) x ceil(W / stride) pixels, where the stride is a power of
        two. A pixel belongs to the image if it covers a part of it.
        """
        if self.sizes is None:
            return None
        height, width = x.shape[1:3]
        stride = 1
        while (-(-self.canvas[0] // stride), -(-self.canvas[1] // stride)) != (height, width):
            stride *= 2
        limits = -(-self.sizes // stride)  # [B, 2]
        rows = jnp.arange(height)[None, :] < limits[:, :1]
        columns = jnp.arange(width)[None, :] < limits[:, 1:]
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    def inside_channels(self, x: Float[Array, "B h w C"]) -> Bool[Array, "B h w C"] | None:
        """Return `inside` for each channel."""
        inside = self.inside(x)
        return None if inside is None else jnp.broadcast_to(inside, x.shape)

    def clear(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Set the features beyond the image to zero."""
        inside = self.inside(x)
        return x if inside is None else jnp.where(inside, x, jnp.zeros((), x.dtype))


NO_PADDING = Padding((0, 0), None)
