"""NanoDet and NanoDet-Plus: the network from images to predictions.

This module reproduces nanodet/model/arch/one_stage_detector.py and nanodet_plus.py of
https://github.com/RangiLyu/nanodet.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax import boxes, config
from nanodet_jax.models.backbones.shufflenet_v2 import ShuffleNetV2
from nanodet_jax.models.guidance import GUIDANCE, Guidance, NeckFactory, SimpleConvHead
from nanodet_jax.models.heads.nanodet_head import NanoDetHead
from nanodet_jax.models.layers import BatchNorm, LayerFactory
from nanodet_jax.models.necks.ghost_pan import GhostPAN
from nanodet_jax.models.necks.pan import PAN
from nanodet_jax.runtime.precision import at_least_float32, matmul_precision
from nanodet_jax.structures import Predictions


class NanoDet(nn.Module):
    """Backbone, neck and head. Training also uses the guidance, if the config has one.

    The features of the backbone have strides 8, 16 and 32. The levels of the neck have the same
    strides and, with `model.extra_level`, also stride 64. P is the number of priors: one for each
    pixel of each level.

    Attributes:
      model: `config.model`; `num_classes` must be set.
      precision: `config.precision`. Predictions are always float32.
    """

    model: config.Model
    precision: str = "float32"

    def __call__(self, images: jax.Array, train: bool = False) -> Predictions:
        """Return predictions of the head: class logits [B, P, C], box logits [B, P, 4, R].

        Args:
          images: [B, H, W, 3] float32 BGR, normalized; H and W multiples of 32.
          train: normalize by the statistics of the batch. `batch_stats` must then be mutable.
        """
        return self.branches(images, train=train, guided=False)[0]

    @nn.compact
    def branches(
        self,
        images: jax.Array,
        detach: jax.Array | bool = False,
        *,
        train: bool = True,
        guided: bool = True,
        axis_name: str | None = None,
    ) -> tuple[Predictions, ...]:
        """Return the predictions of the head and, if `guided`, the predictions of the guidance.

        Args:
          images: as for `__call__`.
          detach: stop gradients from the guidance to the backbone and the neck; may be traced.
          train: as for `__call__`.
          guided: run the guidance, if the config has one.
          axis_name: mapped axis over which a batch is split, for `sync_batch_norm`.
        """
        if self.precision == "bf16":  # every layer computes in the dtype of its input
            images = images.astype(jnp.bfloat16)
        with matmul_precision(self.precision):
            branches = self._branches(images, detach, train, guided, axis_name)
        return jax.tree.map(at_least_float32, branches)

    def _branches(
        self,
        images: jax.Array,
        detach: jax.Array | bool,
        train: bool,
        guided: bool,
        axis_name: str | None,
    ) -> tuple[Predictions, ...]:
        model = self.model
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            axis_name=axis_name if model.sync_batch_norm else None,
        )
        backbone_norm = partial(norm, bias_init=nn.initializers.constant(1e-4))
        neck = _neck_factory(model, norm)
        features = ShuffleNetV2(model.width, backbone_norm, name="backbone")(images)
        levels = neck(name="neck")(features)
        head = NanoDetHead(
            num_classes=model.num_classes,
            channels=model.channels,
            kernel_size=model.kernel_size,
            stacked_convs=model.stacked_convs,
            share_cls_reg=model.share_cls_reg,
            reg_max=model.reg_max,
            norm=norm,
            name="head",
        )
        predictions = head(levels)
        if not (guided and model.guidance_channels):
            return (predictions,)
        guidance_head = partial(
            SimpleConvHead,
            num_classes=model.num_classes,
            channels=model.guidance_channels,
            stacked_convs=model.guidance_convs,
            reg_max=model.reg_max,
        )
        guidance = Guidance(neck, guidance_head, name=GUIDANCE)
        return predictions, guidance(features, levels, detach)


def _neck_factory(model: config.Model, norm: LayerFactory) -> NeckFactory:
    match model.neck:
        case "pan":
            return partial(PAN, model.channels)
        case "ghost_pan":
            return partial(
                GhostPAN,
                channels=model.channels,
                kernel_size=model.kernel_size,
                blocks=model.neck_blocks,
                extra_level=model.extra_level,
                norm=norm,
            )
    raise ValueError(f"config.model.neck={model.neck!r}: unknown neck")


def build_model(model: config.Model, precision: str = "float32") -> NanoDet:
    """Build the network that `config.model` describes, without variables."""
    return NanoDet(model, precision)


def priors_of(model: config.Model, input_size: tuple[int, int]) -> boxes.Priors:
    """Return the priors of the network's predictions, for inputs of (height, width) pixels."""
    return boxes.make_priors(input_size, model.strides, model.prior_offset)
