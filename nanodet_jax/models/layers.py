"""Layers shared by the backbones, necks and heads.

Feature maps are [B, H, W, C]. Padding is explicit: k // 2 on each side for a k x k kernel.
"""

from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike

from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv
from nanodet_jax.runtime.precision import at_least_float32

Layer = Callable[[jax.Array], jax.Array]

# Builds a layer, given its `name`: a module class, or a `functools.partial` of one.
LayerFactory = Callable[..., Layer]

Activation = Callable[[jax.Array], jax.Array]

# The original's slope; PyTorch's default is 0.01.
leaky_relu = partial(nn.leaky_relu, negative_slope=0.1)
ACTIVATIONS: Mapping[str, Activation] = {
    "leaky_relu": leaky_relu,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "hard_swish": nn.hard_swish,
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "elu": nn.elu,
    "selu": nn.selu,
}

# He initialization (https://arxiv.org/abs/1502.01852): the default of the original's `ConvModule`
# and `DepthwiseConvModule`. The original's other convolutions use PyTorch's default unless it
# initializes them explicitly.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
pytorch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# He initialization with the number of inputs of a convolution (fan-in), as in PaddleDetection.
paddle_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
paddle_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


def normal(stddev: float) -> Initializer:
    """Return an initializer that draws from N(0, stddev**2)."""
    return nn.initializers.normal(stddev)


def inverse_fan_in(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draw a kernel [k, k, C, D] from N(0, (1 / C)**2), as in the original."""
    return jax.random.normal(key, shape, dtype) / shape[-2]


def round_to_multiple(channels: float, multiple: int) -> int:
    """Round a number of channels to the nearest positive multiple of `multiple`.

    If that is more than 10 % below `channels`, return the next multiple above.
    """
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded if rounded >= 0.9 * channels else rounded + multiple


NORM_EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Batch normalization with PyTorch's conventions and float32 statistics.

    `flax.linen.BatchNorm` keeps the biased variance as its running average. PyTorch keeps the
    unbiased one, and the published numbers depend on it.

    Input and output are [B, H, W, C] of the same dtype.

    Attributes:
      use_running_average: normalize by the running statistics instead of the batch's.
      momentum: fraction of the running value that each step keeps.
      epsilon: added to the variance.
      bias_init: initial bias; the initial scale is 1.
      axis_name: mapped axis over which the batch is split into equal parts. All parts are then
        normalized by the statistics of the whole batch. With None, each part uses its own
        statistics. Micro-batches of gradient accumulation always use their own statistics.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = NORM_EPSILON
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
            # Initialization does not use the statistics, and has no mapped axis.
            axis_name = None if self.is_initializing() else self.axis_name
            values = at_least_float32(x)
            mean = _channel_mean(values, axis_name)
            var = _channel_mean(jnp.square(values - mean[None, None, None]), axis_name)
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
        widened = at_least_float32(x)
        return (widened * factor[None, None, None] + shift[None, None, None]).astype(x.dtype)


def _channel_mean(values: jax.Array, axis_name: str | None) -> jax.Array:
    """Return the mean [C] of values [B, H, W, C], over all parts of the mapped axis if given."""
    mean = jnp.mean(values, axis=(0, 1, 2))
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


class ConvNormAct(nn.Module):
    """Convolution, norm, activation.

    [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]. If `activation` is None, no
    activation is applied.
    """

    features: int
    norm: LayerFactory
    kernel_size: int = 1
    stride: int = 1
    activation: Activation | None = leaky_relu
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            use_bias=False,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        x = self.norm(name="norm")(x)
        return x if self.activation is None else self.activation(x)


class DepthwiseSeparableConv(nn.Module):
    """Depthwise convolution, norm, activation, pointwise convolution, norm, activation.

    [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]. This layer reproduces
    `DepthwiseConvModule` of https://github.com/RangiLyu/nanodet (nanodet/model/module/conv.py).
    With `squeeze_excite`, a `SqueezeExcite` layer with C // 4 features comes before the pointwise
    convolution.
    """

    features: int
    norm: LayerFactory
    kernel_size: int = 3
    stride: int = 1
    activation: Activation = leaky_relu
    kernel_init: Initializer = normal(0.01)
    squeeze_excite: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = DepthwiseConv(
            self.kernel_size, self.stride, kernel_init=self.kernel_init, name="depthwise"
        )(x)
        x = self.activation(self.norm(name="dwnorm")(x))
        if self.squeeze_excite:
            x = SqueezeExcite(x.shape[-1] // 4, self.kernel_init, name="squeeze")(x)
        x = Conv(self.features, use_bias=False, kernel_init=self.kernel_init, name="pointwise")(x)
        return self.activation(self.norm(name="pwnorm")(x))


class SqueezeExcite(nn.Module):
    """Scale each channel of [B, H, W, C] by a gate that is computed from the means of all channels.

    Hu et al., "Squeeze-and-Excitation Networks" (https://arxiv.org/abs/1709.01507), with a hard
    sigmoid as the gate.

    Attributes:
      features: number of features between the two layers that compute the gates.
      kernel_init: initializer of the kernels of these layers.
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = jnp.mean(at_least_float32(x), axis=(1, 2), keepdims=True).astype(x.dtype)
        reduced = nn.relu(Conv(self.features, kernel_init=self.kernel_init, name="reduce")(mean))
        gate = Conv(x.shape[-1], kernel_init=self.kernel_init, name="expand")(reduced)
        return x * nn.hard_sigmoid(gate)


def upsample_2x(x: jax.Array) -> jax.Array:
    """Double height and width by bilinear interpolation: [B, H, W, C] to [B, 2 H, 2 W, C].

    The result equals that of PyTorch with align_corners=False.
    """
    batch, height, width, channels = x.shape
    shape = (batch, 2 * height, 2 * width, channels)
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def upsample_nearest_2x(x: jax.Array) -> jax.Array:
    """Double height and width by repeating pixels: [B, H, W, C] to [B, 2 H, 2 W, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample_2x(x: jax.Array) -> jax.Array:
    """Halve height and width, which must be even: [B, H, W, C] to [B, H / 2, W / 2, C].

    The result is the mean of each 2 x 2 pixels, as in bilinear interpolation without antialiasing.
    """
    return nn.avg_pool(x, (2, 2), strides=(2, 2))
