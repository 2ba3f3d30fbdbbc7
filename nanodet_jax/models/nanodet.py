"""NanoDet and NanoDet-Plus: the network from images to predictions.

This module reproduces nanodet/model/arch/one_stage_detector.py and nanodet_plus.py of
https://github.com/RangiLyu/nanodet.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from nanodet_jax import boxes, config
from nanodet_jax.models.backbones.backbone import Backbone, architecture_of
from nanodet_jax.models.guidance import GUIDANCE, Guidance, HeadFactory, NeckFactory
from nanodet_jax.models.heads.nanodet_head import NanoDetHead
from nanodet_jax.models.heads.pico_head import PicoHead
from nanodet_jax.models.heads.simple_conv_head import SimpleConvHead
from nanodet_jax.models.layers import ACTIVATIONS, BatchNorm, LayerFactory
from nanodet_jax.models.necks.fpn import FPN, NanoDetFPN
from nanodet_jax.models.necks.ghost_pan import GhostPAN
from nanodet_jax.models.necks.lc_pan import LCPAN
from nanodet_jax.models.necks.pan import PAN
from nanodet_jax.models.necks.tan import TAN
from nanodet_jax.models.padding import Padding
from nanodet_jax.runtime.precision import at_least_float32, matmul_precision
from nanodet_jax.structures import Predictions


class NanoDet(nn.Module):
    """Backbone, neck and head. Training also uses the guidance, if the config has one.

    The neck takes the features of `model.backbone_strides`, and returns levels of `model.strides`.
    P is the number of priors: one for each pixel of each level.

    Attributes:
      model: `config.model`; `num_classes` must be set.
      precision: `config.precision`. Predictions are float32 in any case.
      fused: whether to build the deployed form of RepVGG; see `models.fuse`.
    """

    model: config.Model
    precision: str = "float32"
    fused: bool = False

    @property
    def is_random(self) -> bool:
        """Whether training needs a random key, for dropout or for skipping blocks."""
        return self.model.neck == "tan" or architecture_of(self.model).is_random

    def __call__(
        self, images: jax.Array, train: bool = False, padded_sizes: jax.Array | None = None
    ) -> Predictions:
        """Return predictions of the head: class logits [B, P, C], box logits [B, P, 4, R].

        Args:
          images: [B, H, W, 3] float32 BGR, normalized; H and W must be multiples of 32. If
            `model.channel_order` is rgb, the network first reverses the channels.
          train: run the network as in training: normalize by the statistics of the batch and, if
            `is_random`, apply dropout or skip blocks. `batch_stats` must then be mutable, and if
            `is_random`, `rngs` must contain `dropout`.
          padded_sizes: height and width [B, 2] of each image in pixels of the input; the rest of
            the input is padding. The predictions for the priors within these sizes equal those for
            inputs that are cut to these sizes. Only networks that `config.data.resize=short_side`
            accepts support this. If None, all of the input counts as the image.
        """
        return self.branches(images, train=train, guided=False, padded_sizes=padded_sizes)[0]

    @nn.compact
    def branches(
        self,
        images: jax.Array,
        detach: jax.Array | bool = False,
        *,
        train: bool = True,
        guided: bool = True,
        axis_name: str | None = None,
        padded_sizes: jax.Array | None = None,
    ) -> tuple[Predictions, ...]:
        """Return the predictions of the head and, if `guided`, the predictions of the guidance.

        Args:
          images: as for `__call__`.
          detach: stop gradients from the guidance to the backbone and the neck; may be traced.
          train: as for `__call__`.
          guided: run the guidance, if the config has one.
          axis_name: mapped axis over which a batch is split, for `sync_batch_norm`.
          padded_sizes: as for `__call__`.
        """
        if self.model.channel_order == "rgb":
            images = images[..., ::-1]
        if self.precision == "bf16":  # every layer computes in the dtype of its input
            images = images.astype(jnp.bfloat16)
        with matmul_precision(self.precision):
            padding = Padding(images.shape[1:3], padded_sizes)
            branches = self._branches(images, detach, train, guided, axis_name, padding)
        return jax.tree.map(at_least_float32, branches)

    def _branches(
        self,
        images: jax.Array,
        detach: jax.Array | bool,
        train: bool,
        guided: bool,
        axis_name: str | None,
        padding: Padding,
    ) -> tuple[Predictions, ...]:
        model = self.model
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            axis_name=axis_name if model.sync_batch_norm else None,
        )
        neck = _neck_factory(model, norm, train, padding)
        backbone = Backbone(model, norm, train, self.fused, padding, name="backbone")
        features = backbone(images)
        levels = neck(name="neck")(features)
        predictions = _head_factory(model, norm, padding)(name="head")(levels)
        if not (guided and model.guidance_channels):
            return (predictions,)
        guidance_head = partial(
            SimpleConvHead,
            num_classes=model.num_classes,
            channels=model.guidance_channels,
            stacked_convs=model.guidance_convs,
            reg_max=model.reg_max,
            activation=ACTIVATIONS["leaky_relu"],
            padding=padding,
        )
        guidance = Guidance(neck, guidance_head, name=GUIDANCE)
        return predictions, guidance(features, levels, detach)


def _neck_factory(
    model: config.Model, norm: LayerFactory, train: bool, padding: Padding
) -> NeckFactory:
    activation = ACTIVATIONS[model.activation]
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
                activation=activation,
            )
        case "lc_pan":
            return partial(
                LCPAN,
                channels=model.channels,
                kernel_size=model.kernel_size,
                extra_level=model.extra_level,
                norm=norm,
                activation=activation,
            )
        case "tan":
            return partial(
                TAN, model.channels, model.position_grid, norm, activation, dropout=train
            )
        case "nanodet_fpn":
            return partial(NanoDetFPN, model.channels)
        case "fpn":
            return partial(FPN, model.channels, model.fpn_levels, padding)
    raise ValueError(f"config.model.neck={model.neck!r}: unknown neck")


def _head_factory(model: config.Model, norm: LayerFactory, padding: Padding) -> HeadFactory:
    activation = ACTIVATIONS[model.activation]
    match model.head:
        case "nanodet":
            return partial(
                NanoDetHead,
                num_classes=model.num_classes,
                channels=model.channels,
                kernel_size=model.kernel_size,
                stacked_convs=model.stacked_convs,
                share_cls_reg=model.share_cls_reg,
                reg_max=model.reg_max,
                depthwise=model.depthwise_head,
                activation=activation,
                norm=norm,
            )
        case "pico":
            return partial(
                PicoHead,
                num_classes=model.num_classes,
                channels=model.channels,
                kernel_size=model.kernel_size,
                stacked_convs=model.stacked_convs,
                reg_max=model.reg_max,
                activation=activation,
                norm=norm,
            )
        case "simple_conv":
            return partial(
                SimpleConvHead,
                num_classes=model.num_classes,
                channels=model.channels,
                stacked_convs=model.stacked_convs,
                reg_max=model.reg_max,
                activation=activation,
                padding=padding,
            )
    raise ValueError(f"config.model.head={model.head!r}: unknown head")


def build_model(model: config.Model, precision: str = "float32", fused: bool = False) -> NanoDet:
    """Build the network that `config.model` describes, without variables.

    Args:
      model: `config.model`, with `num_classes` set.
      precision: `config.precision`.
      fused: whether to build the deployed form of RepVGG; see `models.fuse`.
    """
    return NanoDet(model, precision, fused)


def priors_of(model: config.Model, input_size: tuple[int, int]) -> boxes.Priors:
    """Return the priors of the network's predictions, for inputs of (height, width) pixels."""
    return boxes.make_priors(input_size, model.strides, model.prior_offset)
