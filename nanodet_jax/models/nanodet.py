"""The network: images to predictions."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax import boxes, config
from nanodet_jax.models.backbones.shufflenet_v2 import ShuffleNetV2
from nanodet_jax.models.guidance import GUIDANCE, Guidance, SimpleConvHead
from nanodet_jax.models.heads.nanodet_head import NanoDetHead
from nanodet_jax.models.layers import BatchNorm, Module
from nanodet_jax.models.necks.ghost_pan import GhostPAN
from nanodet_jax.models.necks.pan import PAN
from nanodet_jax.runtime.precision import at_least_float32, multiplying
from nanodet_jax.structures import Predictions


class NanoDet(nn.Module):
    """Backbone, neck and head; in training a guidance too, if the config has one.

    Attributes:
      model: the config's; `num_classes` must be set.
      precision: the config's. Predictions are float32 with each.
    """

    model: config.Model
    precision: str = "float32"

    def __call__(self, images: jax.Array, train: bool = False) -> Predictions:
        """Predictions of images [B, H, W, 3]: float32 BGR, normalised, sides multiples of 32.

        With `train` the batch's own statistics normalise, and `batch_stats` must be mutable.
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
        """What a training step scores: predictions of the head, then those of the guidance.

        Args:
          images: as for a call.
          detach: whether the guidance's gradients stop short of backbone and neck; may be traced.
          train: as for a call.
          guided: whether to run the guidance, where the config has one.
          axis_name: mapped axis over which a batch is split, for `sync_batch_norm`.
        """
        if self.precision == "bf16":  # every layer computes in what it is given
            images = images.astype(jnp.bfloat16)
        with multiplying(self.precision):
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
        neck = _neck(model, norm)
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


def _neck(model: config.Model, norm: Module) -> Module:
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
    raise ValueError(model.neck)  # config.check has refused it before


def build_model(model: config.Model, precision: str = "float32") -> NanoDet:
    """The network that a config describes."""
    return NanoDet(model, precision)


def priors_of(model: config.Model, input_size: tuple[int, int]) -> boxes.Priors:
    """Priors that the network's predictions belong to, for inputs of (height, width) pixels."""
    return boxes.make_priors(input_size, model.strides, model.prior_offset)
