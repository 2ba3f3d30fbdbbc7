"""A backbone as a sequence of stages, and the module that runs them.

"Add a backbone" in `docs/networks.md` says how to write another one.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax

from nanodet_jax import config
from nanodet_jax.models.layers import ACTIVATIONS, Activation, LayerFactory
from nanodet_jax.models.padding import NO_PADDING, Padding

# Rules, each with a pattern for paths below "backbone", the PyTorch name, and the values that
# replace {} in this name; see `io.torch_names`.
TorchNames = tuple[tuple[str, str, Mapping[str, str]], ...]


class Layers(NamedTuple):
    """Settings and factories from which a stage builds its layers."""

    norm: LayerFactory  # builds a batch norm for training or for inference
    activation: Activation
    train: bool  # whether random layers are active
    fused: bool  # whether to build the deployed form of layers that have one
    padding: Padding  # of the images; cleared before layers that read neighboring pixels


class Stage(NamedTuple):
    """Consecutive layers of a backbone."""

    # Builds the layers in the scope of `Backbone` and applies them to an array [B, H, W, C].
    # Returns an array [B, h, w, D].
    apply: Callable[[jax.Array, Layers], jax.Array]
    stride: int  # of the output, in pixels of the image
    modules: str  # regular expression that fully matches the names of the layers, and no others


class Classifier(NamedTuple):
    """How the array names in a classifier's published PyTorch file differ from `TORCH_NAMES`."""

    dropped: str = ""  # regular expression that fully matches names of arrays the backbone lacks
    # Regular expressions for parts of the names that `TORCH_NAMES` yields, each with its
    # replacement. All of them are applied, in order.
    renamed: tuple[tuple[str, str], ...] = ()

    def name_of(self, name: str) -> str:
        """Return the name of an array in the classifier's file, given the name by `TORCH_NAMES`."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name


class Architecture(NamedTuple):
    """Structure of a backbone.

    Attributes:
      stages: in the order of computation.
      activation: name of the default activation, a key of `ACTIVATIONS`.
      is_random: whether training needs a random key.
      fuse_block: function that takes the parameters and the batch statistics of a layer, and
        returns the parameters of its deployed form. It is applied to every layer of the backbone.
        None if the deployed form is the same as the form in training.
      classifier: how the files of published classifiers with this backbone differ. The default is
        for files that have the names of `TORCH_NAMES` and no other layers.
    """

    stages: tuple[Stage, ...]
    activation: str
    is_random: bool = False
    fuse_block: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None
    classifier: Classifier = Classifier()


def architecture_of(model: config.Model) -> Architecture:
    """Return the structure of the backbone `model.backbone`, a key of `config.BACKBONES`."""
    file = importlib.import_module(f"{__package__}.{config.BACKBONES[model.backbone]}")
    return cast(Architecture, file.architecture(model))


def torch_names_of(file: str) -> TorchNames:
    """Return the rules for PyTorch names of the backbones that a file of this package defines."""
    return cast(TorchNames, importlib.import_module(f"{__package__}.{file}").TORCH_NAMES)


def torch_names_of_backbones() -> TorchNames:
    """Return the rules of all backbones for PyTorch names."""
    files = dict.fromkeys(config.BACKBONES.values())
    return tuple(rule for file in files for rule in torch_names_of(file))


class Backbone(nn.Module):
    """Run the stages of a backbone, and return the features with `model.backbone_strides`.

    The features with a stride are the output of the last stage that has this stride.

    Attributes:
      model: `config.model`, which selects the backbone, its output strides, its activation, and
        what is frozen.
      norm: builds a batch norm for training or for inference.
      train: whether random layers are active.
      fused: whether to build the deployed form of layers that have one.
      padding: which part of the images is padding.
    """

    model: config.Model
    norm: LayerFactory
    train: bool
    fused: bool = False
    padding: Padding = NO_PADDING

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Return features of images [B, H, W, 3], finest first.

        The features with a stride are [B, ceil(H / stride), ceil(W / stride), C].
        """
        model = self.model
        architecture = architecture_of(model)
        activation = ACTIVATIONS[model.backbone_activation or architecture.activation]
        stored = partial(self.norm, use_running_average=True)
        features, x = {}, images
        for stage in architecture.stages:
            frozen = stage.stride <= model.frozen_stride
            norm = stored if frozen or model.norm_eval else self.norm
            random = self.train and not frozen
            x = stage.apply(x, Layers(norm, activation, random, self.fused, self.padding))
            if frozen:
                x = jax.lax.stop_gradient(x)
            features[stage.stride] = x
        return [features[stride] for stride in model.backbone_strides]


def trained_parameters(model: config.Model) -> Callable[[Any], Any] | None:
    """Return a function that maps parameters to a tree with a bool for each parameter.

    The bool is False in frozen stages of the backbone, and True elsewhere. If nothing is frozen,
    return None instead of a function.
    """
    return partial(_trained, model) if model.frozen_stride else None


def _trained(model: config.Model, params: Mapping[str, Any]) -> dict[str, Any]:
    mask = {part: jax.tree.map(lambda _: True, tree) for part, tree in params.items()}
    frozen = "|".join(
        stage.modules
        for stage in architecture_of(model).stages
        if stage.stride <= model.frozen_stride
    )
    for name, layer in params["backbone"].items():
        if re.fullmatch(frozen, name):
            mask["backbone"][name] = jax.tree.map(lambda _: False, layer)
    return mask
