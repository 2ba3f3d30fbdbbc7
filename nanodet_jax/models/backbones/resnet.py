"""ResNet-18 to ResNet-152. A bottleneck has its stride in the 3 x 3 convolution.

He et al., "Deep Residual Learning for Image Recognition" (https://arxiv.org/abs/1512.03385).
Reproduces nanodet/model/backbone/resnet.py of https://github.com/RangiLyu/nanodet, torchvision's
networks, and the "pytorch" style of https://github.com/open-mmlab/mmdetection.
"""

from functools import partial

import flax.linen as nn
import jax

from nanodet_jax import config
from nanodet_jax.models.backbones.backbone import (
    Architecture,
    Classifier,
    Layers,
    Stage,
    TorchNames,
)
from nanodet_jax.models.layers import he_normal
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.max_pool import max_pool_3x3

# Number of blocks in each stage (table 1 of the paper).
BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BASIC = ("resnet18", "resnet34")  # networks whose blocks have two 3 x 3 convolutions
CHANNELS = (64, 128, 256, 512)
EXPANSION = 4  # factor from the inner channels of a bottleneck to its output channels
TORCH_NAMES: TorchNames = (
    ("conv1", "conv1", {}),
    ("norm1", "bn1", {}),
    (
        r"layer(\d)_(\d+)/(\w+)",
        r"layer\1.\2.{}",
        {
            **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
            **{f"norm{i}": f"bn{i}" for i in (1, 2, 3)},
            "shortcut": "downsample.0",
            "shortcut_norm": "downsample.1",
        },
    ),
)
CLASSIFIER = Classifier(dropped=r"fc\..*")  # for torchvision's files


class ResidualBlock(nn.Module):
    """Sum of a residual and a shortcut, followed by an activation.

    The residual is computed by two 3 x 3 convolutions or, with `bottleneck`, by a 1 x 1, a 3 x 3
    and a 1 x 1 convolution. The shortcut is the input, or a 1 x 1 convolution of it if the shapes
    of input and output differ. [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), D], where D
    is `channels`, or four times `channels` with `bottleneck`.
    """

    channels: int
    stride: int
    bottleneck: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm, activation, shortcut = self.layers.norm, self.layers.activation, x
        clear = self.layers.padding.clear
        conv = partial(Conv, use_bias=False, kernel_init=he_normal)
        if self.bottleneck:
            features = EXPANSION * self.channels
            x = activation(norm(name="norm1")(conv(self.channels, name="conv1")(x)))
            x = conv(self.channels, 3, self.stride, name="conv2")(clear(x))
            x = conv(features, name="conv3")(activation(norm(name="norm2")(x)))
            x = norm(name="norm3")(x)
        else:
            features = self.channels
            x = conv(features, 3, self.stride, name="conv1")(clear(x))
            x = activation(norm(name="norm1")(x))
            x = conv(features, 3, name="conv2")(clear(x))
            x = norm(name="norm2")(x)
        if self.stride != 1 or shortcut.shape[-1] != features:
            shortcut = conv(features, stride=self.stride, name="shortcut")(shortcut)
            shortcut = norm(name="shortcut_norm")(shortcut)
        return activation(x + shortcut)


def architecture(model: config.Model) -> Architecture:
    """Return the ResNet `model.backbone`, with stages of strides 4, 8, 16 and 32.

    The stem also has stride 4, so the features with stride 4 are the output of the stage after it.
    """
    blocks, bottleneck = BLOCKS[model.backbone], model.backbone not in BASIC

    def stem(x: jax.Array, layers: Layers) -> jax.Array:
        conv = Conv(CHANNELS[0], 7, 2, use_bias=False, kernel_init=he_normal, name="conv1")
        x = layers.activation(layers.norm(name="norm1")(conv(layers.padding.clear(x))))
        return max_pool_3x3(layers.padding.clear(x))  # zeros change no maximum after ReLU

    def stage(index: int, x: jax.Array, layers: Layers) -> jax.Array:
        for block in range(blocks[index]):
            stride = 2 if block == 0 and index > 0 else 1
            x = ResidualBlock(
                CHANNELS[index], stride, bottleneck, layers, name=f"layer{index + 1}_{block}"
            )(x)
        return x

    return Architecture(
        stages=(
            Stage(stem, 4, "conv1|norm1"),
            *(
                Stage(partial(stage, index), 4 * 2**index, rf"layer{index + 1}_\d+")
                for index in range(len(blocks))
            ),
        ),
        activation="relu",
        classifier=CLASSIFIER,
    )
