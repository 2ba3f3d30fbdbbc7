"""A backbone as a sequence of stages, and the module that runs them.

To add a backbone, write a file like the others of this package: `architecture` describes it, and
`TORCH_NAMES` has the rules of `io.torch_names` for the names of its layers, below "backbone". Then
add its name to `config.BACKBONES`. If a classifier with this backbone is published under other
names, or with layers that the backbone lacks, describe it with a `Classifier`.
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

# Pattern of paths below "backbone", PyTorch name, and what replaces {} in it; see `io.torch_names`.
TorchNames = tuple[tuple[str, str, Mapping[str, str]], ...]


class Layers(NamedTuple):
    """What a stage builds its layers with."""

    norm: LayerFactory  # builds a batch norm for training or for inference
    activation: Activation
    train: bool  # whether random layers are active
    fused: bool  # build the deployed form of layers that have one
    padding: Padding  # to clear before convolutions of more than one pixel


class Stage(NamedTuple):
    """Consecutive layers of a backbone."""

    # Builds the layers in the scope of `Backbone` and applies them: [B, H, W, C] to [B, h, w, D].
    apply: Callable[[jax.Array, Layers], jax.Array]
    stride: int  # of the output, in pixels of the image
    modules: str  # regular expression that matches the names of the layers


class Classifier(NamedTuple):
    """Names in the published PyTorch files of a classifier that has the backbone."""

    dropped: str = ""  # regular expression for the arrays that the backbone lacks
    # Regular expressions for parts of the names that `TORCH_NAMES` gives, and their replacements.
    renamed: tuple[tuple[str, str], ...] = ()

    def name_of(self, name: str) -> str:
        """Return the classifier's name of an array, given its name by `TORCH_NAMES`."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name


class Architecture(NamedTuple):
    """Structure of a backbone.

    Attributes:
      stages: in the order of computation.
      activation: the default, a key of `ACTIVATIONS`.
      is_random: whether training needs a random key.
      fuse_block: (parameters, statistics) of a layer to the parameters of its deployed form, for
        all layers of the backbone. None if there is no other form.
      classifier: the published classifiers. By default, they have the names of `TORCH_NAMES`, and
        only the layers of the backbone.
    """

    stages: tuple[Stage, ...]
    activation: str
    is_random: bool = False
    fuse_block: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None
    classifier: Classifier = Classifier()


def architecture_of(model: config.Model) -> Architecture:
    """Return the structure of the backbone that a config names."""
    file = importlib.import_module(f"{__package__}.{config.BACKBONES[model.backbone]}")
    return cast(Architecture, file.architecture(model))


def torch_names_of_backbones() -> TorchNames:
    """Return the rules for PyTorch names of all backbones."""
    files = dict.fromkeys(config.BACKBONES.values())
    modules = (importlib.import_module(f"{__package__}.{file}") for file in files)
    return tuple(rule for module in modules for rule in module.TORCH_NAMES)


class Backbone(nn.Module):
    """Run the stages of a backbone, and return the features of some strides.

    The features of a stride are the output of the last stage that has it.

    Attributes:
      model: which backbone, its output strides, its activation, and what is frozen.
      norm: builds a batch norm for training or for inference.
      train: whether random layers are active.
      fused: build the deployed form of layers that have one.
      padding: of the images.
    """

    model: config.Model
    norm: LayerFactory
    train: bool
    fused: bool = False
    padding: Padding = NO_PADDING

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Return features [B, H / stride, W / stride, C] of images [B, H, W, 3], finest first."""
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
    """Return a function from parameters to a bool for each: False in frozen stages of the backbone.

    Return None if nothing is frozen.
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
