"""RepVGG: blocks of parallel convolutions in training, of one 3 x 3 convolution in deployment.

Ding et al., "RepVGG: Making VGG-style ConvNets Great Again" (https://arxiv.org/abs/2101.03697).
Reproduces nanodet/model/backbone/repvgg.py and `RepVGGConvModule` of
https://github.com/RangiLyu/nanodet.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from nanodet_jax import config
from nanodet_jax.models.backbones.backbone import (
    Architecture,
    Classifier,
    Layers,
    Stage,
    TorchNames,
)
from nanodet_jax.models.layers import NORM_EPSILON, pytorch_uniform
from nanodet_jax.ops.convolution import Conv


class Size(NamedTuple):
    """Size of a RepVGG (table 2 of the paper)."""

    blocks: tuple[int, int, int, int]  # of stages 1 to 4
    width: tuple[float, float, float, float]  # multipliers of BASE_CHANNELS for stages 1 to 4
    groups: int = 1  # of the convolutions in every second block


A_BLOCKS, B_BLOCKS = (2, 4, 14, 1), (4, 6, 16, 1)
SIZES = {
    "repvgg_a0": Size(A_BLOCKS, (0.75, 0.75, 0.75, 2.5)),
    "repvgg_a1": Size(A_BLOCKS, (1, 1, 1, 2.5)),
    "repvgg_a2": Size(A_BLOCKS, (1.5, 1.5, 1.5, 2.75)),
    "repvgg_b0": Size(B_BLOCKS, (1, 1, 1, 2.5)),
    "repvgg_b1": Size(B_BLOCKS, (2, 2, 2, 4)),
    "repvgg_b1g2": Size(B_BLOCKS, (2, 2, 2, 4), groups=2),
    "repvgg_b1g4": Size(B_BLOCKS, (2, 2, 2, 4), groups=4),
    "repvgg_b2": Size(B_BLOCKS, (2.5, 2.5, 2.5, 5)),
    "repvgg_b2g2": Size(B_BLOCKS, (2.5, 2.5, 2.5, 5), groups=2),
    "repvgg_b2g4": Size(B_BLOCKS, (2.5, 2.5, 2.5, 5), groups=4),
    "repvgg_b3": Size(B_BLOCKS, (3, 3, 3, 5)),
    "repvgg_b3g2": Size(B_BLOCKS, (3, 3, 3, 5), groups=2),
    "repvgg_b3g4": Size(B_BLOCKS, (3, 3, 3, 5), groups=4),
}
BASE_CHANNELS = (64, 128, 256, 512)
TORCH_NAMES: TorchNames = (
    (
        r"stage(\d)_(\d+)/(\w+)",
        r"stage\1.\2.rbr_{}",
        {
            "dense": "dense.0",
            "dense_norm": "dense.1",
            "pointwise": "1x1.0",
            "pointwise_norm": "1x1.1",
            "identity_norm": "identity",
            "fused": "reparam",
        },
    ),
    (
        r"stage0/(\w+)",
        r"stage0.rbr_{}",
        {
            "dense": "dense.0",
            "dense_norm": "dense.1",
            "pointwise": "1x1.0",
            "pointwise_norm": "1x1.1",
            "fused": "reparam",
        },
    ),
)
# For the files of https://github.com/DingXiaoH/RepVGG with the training form.
CLASSIFIER = Classifier(
    dropped=r"linear\..*",
    renamed=(
        (r"(rbr_dense|rbr_1x1)\.0", r"\1.conv"),
        (r"(rbr_dense|rbr_1x1)\.1", r"\1.bn"),
    ),
)


class RepVGGBlock(nn.Module):
    """Sum of a 3 x 3 convolution, a 1 x 1 convolution and a shortcut, followed by an activation.

    There is no shortcut if the shapes of input and output differ. Each term of the sum has its own
    batch norm. If `layers.fused` is set, one 3 x 3 convolution with a bias replaces the sum.
    [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    stride: int
    groups: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = self.layers
        conv = partial(
            Conv,
            self.features,
            stride=self.stride,
            groups=self.groups,
            kernel_init=pytorch_uniform,
        )
        if layers.fused:
            return layers.activation(conv(kernel_size=3, name="fused")(x))
        dense = conv(kernel_size=3, use_bias=False, name="dense")(x)
        total = layers.norm(name="dense_norm")(dense)
        pointwise = conv(use_bias=False, name="pointwise")(x)
        total = total + layers.norm(name="pointwise_norm")(pointwise)
        if self.stride == 1 and x.shape[-1] == self.features:
            total = total + layers.norm(name="identity_norm")(x)
        return layers.activation(total)


def fuse_block(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a fused block, in float64.

    Each term of the sum, including its norm, is equivalent to a 3 x 3 convolution with a bias. So
    their kernels and biases are added. The 1 x 1 kernel is added to the center of the 3 x 3 kernel.
    The shortcut is a 1 x 1 convolution whose kernel is an identity matrix.

    Args:
      params: parameters of the block in its training form.
      stats: running statistics of its norms.

    Returns:
      `fused`, with `kernel` [3, 3, C / groups, features] and `bias` [features].
    """

    def scaled(kernel: Any, norm: str) -> tuple[np.ndarray, np.ndarray]:
        scale, bias = (np.asarray(params[norm][leaf], np.float64) for leaf in ("scale", "bias"))
        mean, var = (np.asarray(stats[norm][leaf], np.float64) for leaf in ("mean", "var"))
        factor = scale / np.sqrt(var + NORM_EPSILON)
        return np.asarray(kernel, np.float64) * factor, bias - mean * factor

    kernel, bias = scaled(params["dense"]["kernel"], "dense_norm")
    center, more = scaled(params["pointwise"]["kernel"], "pointwise_norm")
    kernel[1, 1] += center[0, 0]
    bias += more
    if "identity_norm" in params:
        per_group, channels = kernel.shape[2:]
        identity = np.zeros((per_group, channels))
        identity[np.arange(channels) % per_group, np.arange(channels)] = 1
        center, more = scaled(identity, "identity_norm")
        kernel[1, 1] += center
        bias += more
    return {"fused": {"kernel": kernel, "bias": bias}}


def architecture(model: config.Model) -> Architecture:
    """Return RepVGG `model.backbone`, with stages of strides 2, 4, 8, 16 and 32.

    The last stage has `model.backbone_last_channels` channels, or as many as in the paper if that
    is 0.
    """
    size = SIZES[model.backbone]
    channels = [int(base * width) for base, width in zip(BASE_CHANNELS, size.width)]
    stem_channels = min(BASE_CHANNELS[0], channels[0])
    channels[-1] = model.backbone_last_channels or channels[-1]
    # Number of the first block of each stage, counted from the stem, which is block 0.
    first = [1 + sum(size.blocks[:stage]) for stage in range(len(size.blocks))]

    def stem(x: jax.Array, layers: Layers) -> jax.Array:
        return RepVGGBlock(stem_channels, 2, 1, layers, name="stage0")(x)

    def stage(index: int, x: jax.Array, layers: Layers) -> jax.Array:
        for block in range(size.blocks[index]):
            groups = 1 if (first[index] + block) % 2 else size.groups
            stride = 2 if block == 0 else 1
            name = f"stage{index + 1}_{block}"
            x = RepVGGBlock(channels[index], stride, groups, layers, name=name)(x)
        return x

    return Architecture(
        stages=(
            Stage(stem, 2, "stage0"),
            *(
                Stage(partial(stage, index), 4 * 2**index, rf"stage{index + 1}_\d+")
                for index in range(len(channels))
            ),
        ),
        activation="relu",
        fuse_block=fuse_block,
        classifier=CLASSIFIER,
    )
