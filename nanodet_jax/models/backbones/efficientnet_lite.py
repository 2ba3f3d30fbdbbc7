"""EfficientNet-Lite 0 to 4: EfficientNet without squeeze-and-excitation, with ReLU6.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(https://arxiv.org/abs/1905.11946); the Lite variants are described in
https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html.
Reproduces nanodet/model/backbone/efficientnet_lite.py of https://github.com/RangiLyu/nanodet.
"""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax import config
from nanodet_jax.models.backbones.backbone import (
    Architecture,
    Classifier,
    Layers,
    Stage,
    TorchNames,
)
from nanodet_jax.models.layers import ConvNormAct, LayerFactory, he_normal, round_to_multiple
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv


class Setting(NamedTuple):
    """Stage of EfficientNet-B0 (table 1 of the paper)."""

    blocks: int
    kernel_size: int
    stride: int  # of the first block
    expansion: int  # factor of the number of channels inside a block
    channels: int  # of the output


SETTINGS = (
    Setting(1, 3, 1, 1, 16),
    Setting(2, 3, 2, 6, 24),
    Setting(2, 5, 2, 6, 40),
    Setting(3, 3, 2, 6, 80),
    Setting(3, 5, 1, 6, 112),
    Setting(4, 5, 2, 6, 192),
    Setting(1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
# Multipliers of the numbers of channels and of blocks.
SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}
DROP_RATE = 0.2
TORCH_NAMES: TorchNames = (
    (r"stem/(\w+)", "stem.{}", {"conv": "0", "norm": "1"}),
    (
        r"blocks(\d)_(\d+)/(\w+)",
        r"blocks.\1.\2.{}",
        {
            "expand": "_expand_conv",
            "expand_norm": "_bn0",
            "depthwise": "_depthwise_conv",
            "depthwise_norm": "_bn1",
            "project": "_project_conv",
            "project_norm": "_bn2",
        },
    ),
)
# For the files of https://github.com/RangiLyu/EfficientNet-Lite.
CLASSIFIER = Classifier(dropped=r"(head|fc)\..*")


class MBConv(nn.Module):
    """Inverted residual block: expansion, depthwise convolution, projection, shortcut.

    There is no expansion if `expansion` is 1, and no shortcut if the shapes of input and output
    differ. In training, each image skips a block that has a shortcut with probability `drop_rate`
    (stochastic depth). For the other images, the output of the projection is divided by
    1 - `drop_rate`. [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    kernel_size: int
    stride: int
    expansion: int
    drop_rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers, norm = self.layers, norm_of(self.layers)
        identity, width = x, x.shape[-1] * self.expansion
        conv = partial(Conv, use_bias=False, kernel_init=he_normal)
        if self.expansion != 1:
            x = layers.activation(norm(name="expand_norm")(conv(width, name="expand")(x)))
        x = DepthwiseConv(self.kernel_size, self.stride, kernel_init=he_normal, name="depthwise")(x)
        x = layers.activation(norm(name="depthwise_norm")(x))
        x = norm(name="project_norm")(conv(self.features, name="project")(x))
        if self.stride != 1 or identity.shape != x.shape:
            return x
        if layers.train and self.drop_rate and not self.is_initializing():
            keep = 1 - self.drop_rate
            kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0], 1, 1, 1))
            x = jnp.where(kept, x / keep, jnp.zeros((), x.dtype))
        return x + identity


def norm_of(layers: Layers) -> LayerFactory:
    """Return a factory of batch norms with EfficientNet's epsilon and momentum."""
    return partial(layers.norm, epsilon=1e-3, momentum=0.99)


def architecture(model: config.Model) -> Architecture:
    """Return EfficientNet-Lite `model.backbone`, with stages of strides 2, 4, 8, 16 and 32."""
    width, depth = SCALES[model.backbone]
    last = len(SETTINGS) - 1
    blocks = [
        setting.blocks if index in (0, last) else math.ceil(depth * setting.blocks)
        for index, setting in enumerate(SETTINGS)
    ]

    def stem(x: jax.Array, layers: Layers) -> jax.Array:
        return ConvNormAct(STEM_CHANNELS, norm_of(layers), 3, 2, layers.activation, name="stem")(x)

    def stage(index: int, x: jax.Array, layers: Layers) -> jax.Array:
        setting = SETTINGS[index]
        for block in range(blocks[index]):
            # The original divides the index of the block by the number of stages instead of the
            # number of blocks, so the rate of the last blocks exceeds DROP_RATE.
            drop_rate = DROP_RATE * (sum(blocks[:index]) + block) / len(SETTINGS)
            x = MBConv(
                round_to_multiple(width * setting.channels, 8),
                setting.kernel_size,
                setting.stride if block == 0 else 1,
                setting.expansion,
                drop_rate,
                layers,
                name=f"blocks{index}_{block}",
            )(x)
        return x

    stages, stride = [Stage(stem, 2, "stem")], 2
    for index, setting in enumerate(SETTINGS):
        stride *= setting.stride
        stages.append(Stage(partial(stage, index), stride, rf"blocks{index}_\d+"))
    return Architecture(tuple(stages), activation="relu6", is_random=True, classifier=CLASSIFIER)
