"""What backbone, neck and head are made of. Images are [B, H, W, C]; padding is explicit."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv
from nanodet_jax.runtime.precision import at_least_float32

Module = Any  # a linen module class, or functools.partial of one

# The original's slope, not PyTorch's 0.01.
leaky_relu = partial(nn.leaky_relu, negative_slope=0.1)


# The original's default where it names an activation (He et al., 2015), and PyTorch's where not.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
pytorch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def normal(stddev: float) -> Initializer:
    """Initialiser N(0, stddev**2)."""
    return nn.initializers.normal(stddev)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's conventions, statistics in float32.

    `flax.linen.BatchNorm` keeps the biased variance as its running average; PyTorch keeps the
    unbiased one, and the published numbers depend on it.

    Attributes:
      use_running_average: normalise by the running statistics instead of the batch's.
      momentum: share of the old running value that is kept at each step.
      epsilon: added to the variance.
      bias_init: initial bias; the initial scale is 1.
      axis_name: mapped axis over which the batch is split in equal parts, to normalise by the
        statistics of the whole; None: each part by its own. Micro-batches are no axis: where
        gradients are accumulated, each normalises by its own statistics.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    bias_init: Initializer = nn.initializers.zeros
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            # Initialisation looks at no statistics, and is traced under no axis.
            axis_name = None if self.is_initializing() else self.axis_name
            values = at_least_float32(x)
            mean = _mean_over(axis_name, values)
            var = _mean_over(axis_name, jnp.square(values - mean[None, None, None]))
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                if axis_name is not None:
                    count *= jax.lax.axis_size(axis_name)
                unbiased = var * (count / max(count - 1, 1))
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        return (x * factor[None, None, None] + shift[None, None, None]).astype(x.dtype)


def _mean_over(axis_name: str | None, values: jax.Array) -> jax.Array:
    """Mean [C] of values [B, H, W, C], and of those of all parts if there is an axis."""
    mean = jnp.mean(values, axis=(0, 1, 2))
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


class ConvNormAct(nn.Module):
    """Convolution, norm, activation."""

    features: int
    norm: Module
    kernel_size: int = 1
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(
            self.features,
            self.kernel_size,
            use_bias=False,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        return leaky_relu(self.norm(name="norm")(x))


class DepthwiseSeparableConv(nn.Module):
    """Depthwise, norm, activation, pointwise, norm, activation."""

    features: int
    norm: Module
    kernel_size: int = 3
    stride: int = 1
    kernel_init: Initializer = normal(0.01)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = DepthwiseConv(
            self.kernel_size, self.stride, kernel_init=self.kernel_init, name="depthwise"
        )(x)
        x = leaky_relu(self.norm(name="dwnorm")(x))
        x = Conv(self.features, use_bias=False, kernel_init=self.kernel_init, name="pointwise")(x)
        return leaky_relu(self.norm(name="pwnorm")(x))


def upsample_2x(x: jax.Array) -> jax.Array:
    """Twice the size, bilinear between pixel centres (PyTorch's align_corners=False)."""
    batch, height, width, channels = x.shape
    shape = (batch, 2 * height, 2 * width, channels)
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def downsample_2x(x: jax.Array) -> jax.Array:
    """Half the size: bilinear without antialiasing is there the mean of 2 x 2 pixels."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))
