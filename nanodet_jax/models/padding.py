"""Padding that does not change the features of an image.

A convolution reads zeros beyond the border of its input. If an image in a batch is padded, the
features in the padding are not zero after the first layer. Later layers would read them in place of
zeros, which would change the features of the image. Therefore, layers that read neighboring pixels
first set the features in the padding to zero.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


class Padding:
    """Which part of each input in a batch is padding.

    Args:
      canvas: (height, width) of the network's input, in pixels.
      sizes: height and width [B, 2] of each image, in pixels of the input. The image is in the
        upper left corner of the input, and the rest is padding. If None, the network treats the
        whole input as the image.
    """

    def __init__(self, canvas: tuple[int, ...], sizes: Int32[Array, "B 2"] | None) -> None:
        self.canvas, self.sizes = canvas, sizes

    def inside(self, x: Float[Array, "B h w C"]) -> Bool[Array, "B h w 1"] | None:
        """Return whether each pixel of a feature map belongs to its image, or None if all do.

        A pixel belongs to the image if it covers a part of the image. For an input of H x W pixels,
        `x` must have ceil(H / stride) x ceil(W / stride) pixels, where `stride` is a power of two.
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
        """Return the result of `inside`, repeated for each channel of `x`."""
        inside = self.inside(x)
        return None if inside is None else jnp.broadcast_to(inside, x.shape)

    def clear(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Return `x` with zeros in the padding."""
        inside = self.inside(x)
        return x if inside is None else jnp.where(inside, x, jnp.zeros((), x.dtype))


NO_PADDING = Padding((0, 0), None)
