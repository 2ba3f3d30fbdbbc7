"""The assign guidance module of NanoDet-Plus: a stronger branch that exists only in training.

It decides which priors learn which box before the small head could know, and teaches backbone
and neck in the first epochs. A deployed network has no trace of it.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax.config import GUIDANCE_GROUPS
from nanodet_jax.models.heads.nanodet_head import PRIOR_BIAS, split_logits
from nanodet_jax.models.layers import ConvNormAct, Module, normal
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.structures import Predictions

GUIDANCE = "guidance"  # its name in the variables, beside backbone, neck and head


class Scale(nn.Module):
    """A number to multiply by, 1 at first."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.param("factor", nn.initializers.ones, (), jnp.float32)
        return x * factor.astype(x.dtype)


class SimpleConvHead(nn.Module):
    """A head of dense 3 x 3 convolutions, shared between levels but for a scale of the boxes.

    Attributes:
      num_classes: C.
      channels: width of the two towers.
      stacked_convs: depth of the two towers.
      reg_max: R - 1.
    """

    num_classes: int
    channels: int
    stacked_convs: int
    reg_max: int

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> Predictions:
        # Without a dtype it would widen what it normalises to that of its float32 parameters.
        norm = partial(
            nn.GroupNorm,
            GUIDANCE_GROUPS,
            epsilon=1e-5,
            use_fast_variance=False,
            dtype=features[0].dtype,
        )

        def tower(name):
            return [
                ConvNormAct(self.channels, norm, 3, normal(0.01), name=f"{name}_tower_{i}")
                for i in range(self.stacked_convs)
            ]

        def output(channels, name, bias_init):
            return Conv(channels, 3, kernel_init=normal(0.01), bias_init=bias_init, name=name)

        cls_layers = [*tower("cls"), output(self.num_classes, "cls_output", PRIOR_BIAS)]
        reg_layers = [
            *tower("reg"),
            output(4 * (self.reg_max + 1), "reg_output", nn.initializers.zeros),
        ]
        levels = []
        for i, x in enumerate(features):
            cls = reg = x
            for cls_layer, reg_layer in zip(cls_layers, reg_layers):
                cls, reg = cls_layer(cls), reg_layer(reg)
            reg = Scale(name=f"scale_{i}")(reg)
            fused = jnp.concatenate([cls, reg], axis=-1)
            levels.append(fused.reshape(fused.shape[0], -1, fused.shape[-1]))
        return split_logits(jnp.concatenate(levels, axis=1), self.num_classes)


class Guidance(nn.Module):
    """A second neck, and a head that sees both necks.

    Attributes:
      neck: makes the second neck, given its name.
      head: makes the head, given its name.
    """

    neck: Module
    head: Module

    @nn.compact
    def __call__(
        self, features: list[jax.Array], levels: list[jax.Array], detach: jax.Array | bool
    ) -> Predictions:
        """Predictions for the same priors as the deployed head's.

        Args:
          features: of the backbone.
          levels: of the first neck.
          detach: whether to keep gradients from both; may be traced.
        """

        def cut(x):
            return jnp.where(detach, jax.lax.stop_gradient(x), x)

        own = self.neck(name="neck")([cut(x) for x in features])
        both = [jnp.concatenate([cut(x), y], axis=-1) for x, y in zip(levels, own)]
        return self.head(name="head")(both)


def copy_neck(variables: Any) -> Any:
    """Variables whose guidance starts with a copy of the neck, if they have a guidance."""
    copied = {}
    for collection, parts in variables.items():
        copied[collection] = dict(parts)
        if "neck" in parts.get(GUIDANCE, {}):
            copied[collection][GUIDANCE] = {**parts[GUIDANCE], "neck": parts["neck"]}
    return copied


def deployed(variables: Any) -> Any:
    """Variables without the guidance: what inference takes."""
    return {
        collection: {name: part for name, part in parts.items() if name != GUIDANCE}
        for collection, parts in variables.items()
    }
