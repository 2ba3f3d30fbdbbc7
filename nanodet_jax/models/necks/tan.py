"""TAN, the neck of NanoDet-t: a transformer encoder on the features of all levels.

The encoder is that of Vaswani et al., "Attention Is All You Need"
(https://arxiv.org/abs/1706.03762), but with a norm before each sublayer instead of after it. This
module reproduces nanodet/model/fpn/tan.py and nanodet/model/module/transformer.py of
https://github.com/RangiLyu/nanodet.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax.models.layers import Activation, ConvNormAct, LayerFactory, normal
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.runtime.precision import at_least_float32

HEADS, MLP_RATIO, DROPOUT = 8, 4, 0.1

narrow = normal(0.02)


class SelfAttention(nn.Module):
    """Multi-head self-attention: tokens [B, N, C] to [B, N, C], where C is divisible by HEADS."""

    dropout: bool  # whether dropout is active

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, channels = x.shape
        projected = nn.Dense(
            3 * channels, kernel_init=nn.initializers.xavier_uniform(), name="qkv"
        )(x)
        split = projected.reshape(batch, tokens, 3, HEADS, channels // HEADS)
        query, key, value = jnp.moveaxis(split, 2, 0)  # [B, N, heads, C / heads]
        scores = jnp.einsum("bnhc,bmhc->bhnm", query * (channels // HEADS) ** -0.5, key)
        weights = nn.softmax(at_least_float32(scores)).astype(x.dtype)
        weights = nn.Dropout(DROPOUT, deterministic=not self.dropout)(weights)
        mixed = jnp.einsum("bhnm,bmhc->bnhc", weights, value).reshape(x.shape)
        return nn.Dense(channels, kernel_init=narrow, name="out")(mixed)


class EncoderLayer(nn.Module):
    """Self-attention and a perceptron, each added to its input: tokens [B, N, C] to [B, N, C]."""

    activation: Activation  # of the perceptron
    dropout: bool  # whether dropout is active

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
        dense = partial(nn.Dense, kernel_init=narrow)
        drop = nn.Dropout(DROPOUT, deterministic=not self.dropout)
        x = x + SelfAttention(self.dropout, name="attention")(norm(name="norm1")(x))
        y = dense(MLP_RATIO * x.shape[-1], name="mlp1")(norm(name="norm2")(x))
        return x + drop(dense(x.shape[-1], name="mlp2")(drop(self.activation(y))))


class TAN(nn.Module):
    """Encode all levels together with a transformer, and add the result to each level.

    The neck takes features [B, H, W, C] with three strides, finest first. It returns levels
    [B, H, W, channels] with the same strides. The transformer works at the size of the middle
    level: all levels are resized to it, and the result is resized to the size of each level.

    Attributes:
      channels: number of channels of every level; must be divisible by HEADS.
      grid: rows and columns of the learned position embeddings. They are interpolated bilinearly to
        the size of the middle level. The original accepts only middle levels of the size `grid`.
      norm: builds a batch norm for training or for inference.
      activation: of the first convolutions and of the perceptron.
      dropout: whether dropout is active.
    """

    channels: int
    grid: tuple[int, int]
    norm: LayerFactory
    activation: Activation
    dropout: bool

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        fine, middle, coarse = (
            ConvNormAct(
                self.channels,
                self.norm,
                activation=self.activation,
                kernel_init=normal(0.01),
                name=f"lateral_conv_{i}",
            )(x)
            for i, x in enumerate(features)
        )
        batch, height, width, channels = middle.shape
        joined = jnp.concatenate(
            [resize_like(fine, middle), middle, resize_like(coarse, middle)], -1
        )
        joined = nn.relu(Conv(channels, kernel_init=normal(0.01), name="reduce")(joined))
        # One token per pixel, row by row.
        rows, columns = self.grid
        positions = self.param("positions", narrow, (rows * columns, 1, channels), jnp.float32)
        positions = jax.image.resize(
            positions.reshape(rows, columns, channels),
            middle.shape[1:],
            "bilinear",
            antialias=False,
        )
        tokens = joined.reshape(batch, height * width, channels)
        tokens = tokens + positions.reshape(1, *tokens.shape[1:]).astype(tokens.dtype)
        tokens = EncoderLayer(self.activation, self.dropout, name="encoder")(tokens)
        mixed = tokens.reshape(middle.shape)
        return [
            fine + resize_like(mixed, fine),
            middle + mixed,
            coarse + resize_like(mixed, coarse),
        ]


def resize_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """Resize bilinearly, without antialiasing: [B, H, W, C] to [B, h, w, C].

    h and w are the height and width of `other`, [B, h, w, D].
    """
    shape = (x.shape[0], *other.shape[1:3], x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=False)
