"""Initial weights of a new run: random, or from `init_weights` or `init_backbone`."""

from typing import Any

import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.errors import UserError
from nanodet_jax.io import torch_names
from nanodet_jax.io.classifier import BackboneArrays, fit_classifier
from nanodet_jax.io.weights import load_classifier, load_entries
from nanodet_jax.models.guidance import copy_neck_to_guidance
from nanodet_jax.models.nanodet import NanoDet
from nanodet_jax.state import init_variables
from nanodet_jax.terminal import join_first

Entries = dict[str, np.ndarray]  # arrays by their names in the original


def read_initial_weights(config: Config) -> Entries | BackboneArrays | None:
    """Read the arrays of `config.training.init_weights` or of `config.training.init_backbone`.

    Returns:
      The arrays of `init_weights` by their names in the original, or those of `init_backbone` as
      `BackboneArrays`, or None if both fields are empty.

    Raises:
      UserError: if the file cannot be read, or the classifier does not fit the backbone.
    """
    training = config.training
    if training.init_weights:
        return load_entries(training.init_weights)
    if not training.init_backbone:
        return None
    where = f"config.training.init_backbone={training.init_backbone}"
    try:
        entries = load_classifier(training.init_backbone)
    except UserError as error:
        raise UserError(f"config.training.init_backbone: {error}") from error
    return fit_classifier(entries, config.model, where)


def initial_variables(
    config: Config, model: NanoDet, arrays: Entries | BackboneArrays | None
) -> tuple[Any, str]:
    """Build the variables of a new run.

    Args:
      config: provides `training.seed`, `training.init_weights` and `training.init_backbone`.
      model: the training network.
      arrays: from `read_initial_weights`; None for random weights.

    Returns:
      The variables as numpy arrays, and a phrase for the log that names their origin.

    Raises:
      UserError: if no array of config.training.init_weights fits the network.
    """
    path = config.training.init_weights
    variables = init_variables(model, config.training.seed)
    if arrays is None:
        return variables, "starting from random weights"
    if isinstance(arrays, BackboneArrays):
        leaves = torch_names.flatten(variables) | arrays.leaves
        return torch_names.unflatten(leaves), _origin(config.training.init_backbone, arrays)
    variables, report = torch_names.load_matching(arrays, variables, 4 * (config.model.reg_max + 1))
    if not report.kept:
        raise UserError(f"config.training.init_weights={path}: no array in it fits this model")
    if not any(name.startswith("aux_") for name in report.kept):
        # The guidance's neck starts as a copy of the neck, as it does with random weights.
        variables = copy_neck_to_guidance(variables)
    return variables, f"starting from {path}: {report}"


def _origin(path: str, arrays: BackboneArrays) -> str:
    unused = f"; not used: {join_first(arrays.unused)}" if arrays.unused else ""
    return (
        f"backbone from {path}: {len(arrays.leaves)} arrays; "
        f"{', '.join([*arrays.new, 'neck'])} and head start from random weights{unused}"
    )
