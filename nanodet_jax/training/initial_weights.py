"""Initial weights of a new run: random, or from `config.training.init_weights`."""

from typing import Any

import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.errors import UserError
from nanodet_jax.io import torch_names
from nanodet_jax.io.weights import load_entries
from nanodet_jax.models.guidance import copy_neck_to_guidance
from nanodet_jax.models.nanodet import NanoDet
from nanodet_jax.state import init_variables


def read_initial_weights(config: Config) -> dict[str, np.ndarray] | None:
    """Read the arrays of `config.training.init_weights`, keyed by their names in the original.

    Returns:
      The arrays, or None if the field is empty.

    Raises:
      UserError: if the file cannot be read.
    """
    path = config.training.init_weights
    return load_entries(path) if path else None


def initial_variables(
    config: Config, model: NanoDet, arrays: dict[str, np.ndarray] | None
) -> tuple[Any, str]:
    """Build the variables of a new run.

    Args:
      config: provides `training.seed` and `training.init_weights`.
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
    variables, report = torch_names.load_matching(arrays, variables, 4 * (config.model.reg_max + 1))
    if not report.kept:
        raise UserError(f"config.training.init_weights={path}: no array in it fits this model")
    if not any(name.startswith("aux_") for name in report.kept):
        # The guidance's neck starts as a copy of the neck, as it does with random weights.
        variables = copy_neck_to_guidance(variables)
    return variables, f"starting from {path}: {report}"
