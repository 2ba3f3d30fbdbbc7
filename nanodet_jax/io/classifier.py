"""Taking the arrays of a backbone from an ImageNet classifier."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nanodet_jax import config
from nanodet_jax.errors import UserError
from nanodet_jax.io.infer_model import WIDTHS
from nanodet_jax.io.torch_names import flatten, from_pytorch, pytorch_name, pytorch_shape
from nanodet_jax.models.backbones.backbone import architecture_of
from nanodet_jax.state import abstract_backbone
from nanodet_jax.terminal import join_first, printable

Entries = Mapping[str, np.ndarray]


class BackboneArrays(NamedTuple):
    """Arrays of a classifier for a backbone."""

    leaves: dict[str, np.ndarray]  # float32, by path, such as params/backbone/conv1/kernel
    # Layers that are not in `leaves`, because model.backbone_last_channels changes their shapes.
    new: list[str]
    unused: list[str]  # names of arrays that only the classifier has


class Comparison(NamedTuple):
    """Names of the arrays in a classifier's file, compared with those that a backbone needs."""

    paths: dict[str, str]  # paths of the variables to load, by name
    new: list[str]  # see `BackboneArrays`
    unused: list[str]  # see `BackboneArrays`
    missing: list[str]  # names that the backbone needs and the file lacks
    left_over: list[str]  # names in the file that neither the backbone nor its classifier has
    misfits: list[str]  # names of arrays with the wrong shape, with both shapes

    @property
    def fits(self) -> bool:
        """Whether the backbone can be loaded."""
        return not (self.missing or self.left_over or self.misfits)


def fit_classifier(entries: Entries, model: config.Model, where: str) -> BackboneArrays:
    """Take the arrays of a backbone from those of a classifier.

    Args:
      entries: arrays by their names in the published classifier, in PyTorch's layout.
      model: config of the network with the backbone.
      where: beginning of error messages.

    Raises:
      UserError: listing the arrays that are missing or unexpected or have the wrong shape, and
        naming the backbone that fits, if there is one.
    """
    compared = compare(entries, model)
    if not compared.fits:
        problems = [
            f"{title}: {join_first(group)}"
            for title, group in (
                ("missing", compared.missing),
                ("unexpected", compared.left_over),
                ("wrong shape", compared.misfits),
            )
            if group
        ]
        raise UserError(
            f"{where}: does not fit config.model.backbone={model.backbone}; {'; '.join(problems)}; "
            f"{_fix(entries, model)}"
        )
    leaves = {
        path: np.array(from_pytorch(entries[name]), np.float32, order="C")
        for name, path in compared.paths.items()
    }
    return BackboneArrays(leaves, compared.new, compared.unused)


def compare(entries: Entries, model: config.Model) -> Comparison:
    """Compare the names and shapes of a classifier's arrays with those that a backbone needs.

    If `model.backbone_last_channels` is not 0, layers of the last stage may have other shapes.
    """
    architecture = architecture_of(model)
    classifier = architecture.classifier
    paths, shapes = {}, {}
    for path, leaf in flatten(abstract_backbone(model)).items():
        name = classifier.name_of(pytorch_name(path).removeprefix("backbone."))
        paths[name], shapes[name] = path, pytorch_shape(leaf.shape)
    wrong = [name for name in paths if name in entries and entries[name].shape != shapes[name]]
    unused: list[str] = []
    left_over: list[str] = []
    for name in entries:
        if name not in paths and not name.endswith(".num_batches_tracked"):
            group = unused if re.fullmatch(classifier.dropped, name) else left_over
            group.append(printable(name))
    new = set()
    if model.backbone_last_channels:
        last = architecture.stages[-1].modules
        new = {layer for name in wrong if re.fullmatch(last, layer := _layer(paths[name]))}
    paths = {name: path for name, path in paths.items() if _layer(path) not in new}
    return Comparison(
        paths=paths,
        new=sorted(new),
        unused=unused,
        missing=[name for name in paths if name not in entries],
        left_over=left_over,
        misfits=[
            f"{name} {entries[name].shape} instead of {shapes[name]}"
            for name in wrong
            if name in paths
        ],
    )


def _layer(path: str) -> str:
    """Return the layer of a path COLLECTION/backbone/LAYER/..."""
    return path.split("/")[2]


def _fix(entries: Entries, model: config.Model) -> str:
    """Return how to change the config so that it fits the classifier."""
    for backbone in sorted(config.BACKBONES, key=lambda name: name != model.backbone):
        for width in WIDTHS if backbone in config.SCALABLE_BACKBONES else WIDTHS[:1]:
            candidate = replace(model, backbone=backbone, width=width, backbone_last_channels=0)
            dropped = architecture_of(candidate).classifier.dropped
            if not any(re.fullmatch(dropped, name) for name in entries):
                break  # not this classifier; skip the comparison, which takes a second
            compared = compare(entries, candidate)
            if compared.fits:
                changed = [
                    f"config.model.{field}={value}"
                    for field, value in (("backbone", backbone), ("width", width))
                    if value != getattr(model, field)
                ]
                return f"set {' and '.join(changed)}, which the file fits"
            if compared.missing or compared.left_over:
                break  # other widths have the same names
    return "use the file of a classifier with this backbone, or another config.model.backbone"
