"""Parameters, multiply-adds and output shapes of a network, computed without running it."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext

from nanodet_jax import config
from nanodet_jax.models.fuse import can_fuse
from nanodet_jax.models.guidance import GUIDANCE
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.ops.convolution import Conv
from nanodet_jax.ops.depthwise import DepthwiseConv

LAYERS = (Conv, DepthwiseConv, nn.Dense)  # counted in `Cost`, unless they are part of attention
PARTS = ("backbone", "neck", "head", GUIDANCE)  # in the order of computation


class Cost(NamedTuple):
    """Cost of one or more parts of the network."""

    params: int  # learned parameters, without running statistics
    macs: int  # multiply-adds of the layers in LAYERS, in a forward pass on one image
    outputs: int  # number of elements in the outputs of these layers, for one image


class Level(NamedTuple):
    """A feature map that the head predicts from, with one prior per pixel."""

    stride: int  # in pixels of the input
    height: int
    width: int

    @property
    def priors(self) -> int:
        """Number of priors."""
        return self.height * self.width


class Summary(NamedTuple):
    """Costs and shapes at one input size. Dimensions: C classes, P priors, R bins per distance."""

    parts: dict[str, Cost]  # by name, in the order of PARTS; guidance only if the config has one
    fused_backbone: Cost | None  # the backbone for inference, if `models.fuse` changes it
    levels: tuple[Level, ...]  # finest first
    class_logits: tuple[int, ...]  # shape for one image, (P, C)
    box_logits: tuple[int, ...]  # shape for one image, (P, 4, R)

    @property
    def deployed(self) -> Cost:
        """Cost of the parts that inference uses, in their form for inference."""
        parts = {name: cost for name, cost in self.parts.items() if name != GUIDANCE}
        if self.fused_backbone is not None:
            parts["backbone"] = self.fused_backbone
        return _sum(parts.values())

    @property
    def training(self) -> Cost:
        """Cost of all parts, for the forward pass of a training step."""
        return _sum(self.parts.values())


def summarize(model: config.Model, input_size: tuple[int, int]) -> Summary:
    """Return costs and shapes of a network, without running it.

    Args:
      model: checked by `config.check`, with `num_classes` set.
      input_size: (height, width) in pixels; multiples of 32, except for the networks of GFL.
    """
    summary = _summarize(model, input_size, fused=False)
    if not can_fuse(model):
        return summary
    fused = _summarize(model, input_size, fused=True)
    return summary._replace(fused_backbone=fused.parts["backbone"])


def _summarize(model: config.Model, input_size: tuple[int, int], fused: bool) -> Summary:
    network = build_model(model, fused=fused)
    macs: Counter[str] = Counter()
    outputs: Counter[str] = Counter()
    maps: list[tuple[int, int]] = []  # height and width of each level

    # Count modules rather than operations: a depthwise convolution is a single operation on one
    # platform and a sum of shifted images on another.
    def count(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        out = call(*args, **kwargs)
        module = context.module
        counted = isinstance(module, LAYERS) and "attention" not in module.path
        if context.method_name == "__call__" and counted:
            *window, _ = module.variables["params"]["kernel"].shape
            outputs[module.path[0]] += math.prod(out.shape[1:])
            macs[module.path[0]] += math.prod(out.shape[1:]) * math.prod(window)
        elif context.method_name == "__call__" and module.path == ("neck",):
            maps.extend(level.shape[1:3] for level in out)
        return out

    def run() -> Any:
        # All arrays, even the key, are created while tracing, so that no device allocates memory.
        images = jnp.zeros((1, *input_size, 3), jnp.float32)
        return network.init_with_output(jax.random.key(0), images, method="branches")

    with jax.default_device("cpu"), nn.intercept_methods(count):
        (predictions, *_), variables = jax.eval_shape(run)
    params = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in variables["params"].items()
    }
    return Summary(
        parts={
            name: Cost(params[name], macs[name], outputs[name])
            for name in sorted(params, key=PARTS.index)
        },
        fused_backbone=None,
        levels=tuple(
            Level(stride, *size) for stride, size in zip(model.strides, maps, strict=True)
        ),
        class_logits=predictions.class_logits.shape[1:],
        box_logits=predictions.box_logits.shape[1:],
    )


def format_summary(summary: Summary) -> str:
    """Return a table of the parts and a table of the levels, as plain text."""
    rows = [(name, cost) for name, cost in summary.parts.items() if name != GUIDANCE]
    if summary.fused_backbone is not None:
        rows.append(("  (fused)", summary.fused_backbone))
    rows.append(("deployed", summary.deployed))
    rows += [(name, cost) for name, cost in summary.parts.items() if name == GUIDANCE]
    rows.append(("in training", summary.training))
    lines = [f"{'part':<12}{'parameters':>12}{'GMAC':>9}"]
    lines += [f"{name:<12}{cost.params:>12,}{cost.macs / 1e9:>9.3f}" for name, cost in rows]
    lines += ["", f"{'stride':<12}{'map':>12}{'priors':>9}"]
    for level in summary.levels:
        size = f"{level.height} x {level.width}"
        lines.append(f"{level.stride:<12}{size:>12}{level.priors:>9,}")
    lines += [
        "",
        f"class logits [P, C]     {list(summary.class_logits)}",
        f"box logits   [P, 4, R]  {list(summary.box_logits)}",
        "",
        "MACs are the multiply-adds in a forward pass on one image: those of convolutions and of",
        "dense layers outside attention.",
    ]
    return "\n".join(lines)


def _sum(costs: Iterable[Cost]) -> Cost:
    return Cost(*map(sum, zip(*costs)))
