"""Assign guidance module of NanoDet-Plus: a larger branch that exists only in training.

Its predictions decide which priors are assigned to which ground-truth box, because the predictions
of the small head are poor early in training. In the first epochs the loss of the guidance also
trains the backbone and the neck. Inference does not use the guidance. This module reproduces
nanodet/model/arch/nanodet_plus.py and nanodet/model/head/simple_conv_head.py of
https://github.com/RangiLyu/nanodet.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer, VariableDict

from nanodet_jax.config import GUIDANCE_GROUPS
from nanodet_jax.models.heads.nanodet_head import PRIOR_BIAS, split_logits
from nanodet_jax.models.layers import ConvNormAct, normal
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.structures import Predictions

GUIDANCE = "guidance"  # name of the module in the variables, alongside backbone, neck and head

# Builds a neck or a head, given its `name`: a module class, or a `functools.partial` of one.
NeckFactory = Callable[..., Callable[[list[jax.Array]], list[jax.Array]]]
HeadFactory = Callable[..., Callable[[list[jax.Array]], Predictions]]


class Scale(nn.Module):
    """Multiply by a learned scalar, initially 1."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.param("factor", nn.initializers.ones, (), jnp.float32)
        return x * factor.astype(x.dtype)


class SimpleConvHead(nn.Module):
    """Head of dense 3 x 3 convolutions with group norm. All levels share its weights.

    Only the scale of the box logits differs between levels. The head takes levels
    [B, H, W, channels], finest first. It returns `Predictions`, with the priors in the same order
    as in `NanoDetHead`.

    Attributes:
      num_classes: C.
      channels: number of channels of each of the two towers.
      stacked_convs: number of convolutions in each tower.
      reg_max: R - 1, the largest distance in units of the stride.
    """

    num_classes: int
    channels: int
    stacked_convs: int
    reg_max: int

    @nn.compact
    def __call__(self, features: list[jax.Array]) -> Predictions:
        # Without `dtype`, the float32 parameters would promote the output to float32.
        norm = partial(
            nn.GroupNorm,
            GUIDANCE_GROUPS,
            epsilon=1e-5,
            use_fast_variance=False,
            dtype=features[0].dtype,
        )

        def tower(name: str) -> list[ConvNormAct]:
            return [
                ConvNormAct(self.channels, norm, 3, normal(0.01), name=f"{name}_tower_{i}")
                for i in range(self.stacked_convs)
            ]

        def output(channels: int, name: str, bias_init: Initializer) -> Conv:
            return Conv(channels, 3, kernel_init=normal(0.01), bias_init=bias_init, name=name)

        # Build modules once and apply them to every level, so that levels share parameters.
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
