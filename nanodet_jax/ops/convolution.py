"""Dense convolution, in the precision of its images and the form each backend differentiates best.

XLA's CPU backend computes the kernel's gradient of a 1 x 1 convolution as a convolution over
transposed images; as a product of matrices it takes a third of the time and compiles faster.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax import lax

from nanodet_jax.runtime import backend


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve, zero-padding k // 2 on each side.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C, D], k odd, of the dtype of `x`.
      stride: in both directions.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), D].
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return backend.choose(cpu=matrix_conv, default=windowed_conv)(x, kernel)
    return windowed_conv(x, kernel, stride)


def windowed_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`conv` as XLA's convolution."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def matrix_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv` with a kernel of 1 x 1, as a product of matrices: every pixel is a row."""
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


def _forward(x, kernel):
    return matrix_conv(x, kernel), (x, kernel)


def _backward(residuals, grad):
    x, kernel = residuals
    rows, grad_rows = (a.reshape(-1, a.shape[-1]) for a in (x, grad))
    return (
        lax.dot_general(grad, kernel[0, 0], (((3,), (1,)), ((), ()))),
        (rows.T @ grad_rows)[None, None],
    )


matrix_conv.defvjp(_forward, _backward)


class Conv(nn.Module):
    """`conv` with a kernel parameter [k, k, C, features] and a bias [features], both float32.

    What is computed has the dtype of the images.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv(x, kernel.astype(x.dtype), self.stride)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y = y + bias.astype(x.dtype)[None, None, None]
        return y
