"""Assign guidance module of NanoDet-Plus: a larger branch that exists only in training.

Its predictions decide which priors are assigned to which ground-truth box, because the predictions
of the small head are poor early in training. In the first epochs the loss of the guidance also
trains the backbone and the neck. Inference does not use the guidance. This module reproduces
nanodet/model/arch/nanodet_plus.py of https://github.com/RangiLyu/nanodet.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import VariableDict

from nanodet_jax.structures import Predictions

GUIDANCE = "guidance"  # name of the module in the variables, alongside backbone, neck and head

# Builds a neck or a head, given its `name`: a module class, or a `functools.partial` of one.
NeckFactory = Callable[..., Callable[[list[jax.Array]], list[jax.Array]]]
HeadFactory = Callable[..., Callable[[list[jax.Array]], Predictions]]


class Guidance(nn.Module):
    """A second neck, and a head on the concatenated levels of both necks.

    Attributes:
      neck: builds the second neck.
      head: builds the head.
    """

    neck: NeckFactory
    head: HeadFactory

    @nn.compact
    def __call__(
        self, features: list[jax.Array], levels: list[jax.Array], detach: jax.Array | bool
    ) -> Predictions:
        """Return predictions for the same priors as the inference head.

        Args:
          features: features of the backbone, [B, H, W, C] each.
          levels: levels of the first neck, [B, H, W, channels] each.
          detach: stop the gradients to the backbone and the first neck; may be traced.
        """

        def maybe_detach(x: jax.Array) -> jax.Array:
            return jnp.where(detach, jax.lax.stop_gradient(x), x)

        guidance_levels = self.neck(name="neck")([maybe_detach(x) for x in features])
        fused = [
            jnp.concatenate([maybe_detach(x), y], axis=-1) for x, y in zip(levels, guidance_levels)
        ]
        return self.head(name="head")(fused)


def copy_neck_to_guidance(variables: VariableDict) -> dict[str, dict[str, Any]]:
    """Return variables with the neck's arrays copied to the guidance, as in the original.

    Variables without guidance are returned unchanged.
    """
    copied: dict[str, dict[str, Any]] = {}
    for collection, parts in variables.items():
        copied[collection] = dict(parts)
        if "neck" in parts.get(GUIDANCE, {}):
            copied[collection][GUIDANCE] = {**parts[GUIDANCE], "neck": parts["neck"]}
    return copied


def strip_guidance(variables: VariableDict) -> dict[str, dict[str, Any]]:
    """Return variables without the guidance, as needed for inference."""
    return {
        collection: {name: part for name, part in parts.items() if name != GUIDANCE}
        for collection, parts in variables.items()
    }
