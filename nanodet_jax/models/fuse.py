"""Fuse the parallel convolutions of each trained block into one, for inference.

Only RepVGG has such blocks. Fusing changes the outputs of the network only by rounding errors.
"""

from typing import Any

import jax
import numpy as np

from nanodet_jax import config
from nanodet_jax.models.backbones.backbone import architecture_of
from nanodet_jax.models.nanodet import NanoDet, build_model


def can_fuse(model: config.Model) -> bool:
    """Return whether a network has blocks to fuse."""
    return architecture_of(model).fuse_block is not None


def fuse(model: config.Model, variables: Any) -> Any:
    """Convert the variables of a trained network to those of `build_model(model, fused=True)`.

    The variables of a network without blocks to fuse are returned unchanged. Fused kernels and
    biases are computed in float64, and returned as float32 numpy arrays. The backbone then has no
    batch statistics.
    """
    fuse_block = architecture_of(model).fuse_block
    if fuse_block is None:
        return variables
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    blocks = params["backbone"]
    fused = {name: fuse_block(block, stats["backbone"][name]) for name, block in blocks.items()}
    params["backbone"] = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), fused)
    del stats["backbone"]
    return {**variables, "params": params, "batch_stats": stats}


def build_fused(model: config.Model, precision: str, variables: Any) -> tuple[NanoDet, Any]:
    """Return the network for inference and its variables, both with fused blocks.

    Args:
      model: `config.model`.
      precision: `config.precision`.
      variables: `params` and `batch_stats` of the trained network.
    """
    return build_model(model, precision, fused=True), fuse(model, variables)
