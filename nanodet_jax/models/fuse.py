"""Fuse the parallel convolutions of trained blocks into one for each, for inference and export.

Only RepVGG has such blocks. Fusing them changes the outputs of the network by rounding only.
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
    """Return the variables of `build_model(model, fused=True)` from those of the trained network.

    Networks without blocks to fuse keep their variables. Kernels are computed in float64 and are
    returned as float32 numpy arrays.
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
    """Return the network for inference, with the blocks fused, and its variables."""
    return build_model(model, precision, fused=True), fuse(model, variables)
