"""The network: images to predictions."""

from functools import partial

import flax.linen as nn
import jax

from nanodet_jax import boxes, config
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.nanodet_head import NanoDetHead
from nanodet_jax.models.pan import PAN
from nanodet_jax.models.shufflenet_v2 import ShuffleNetV2
from nanodet_jax.structures import Predictions

PRIOR_OFFSET = 0.5  # of NanoDet's priors, in strides


class NanoDet(nn.Module):
    """Backbone, neck and head.

    Attributes:
      model: the config's; `num_classes` must be set.
    """

    model: config.Model

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Predictions:
        """Predictions of images [B, H, W, 3]: float32 BGR, normalised, sides multiples of 32.

        With `train` the batch's own statistics normalise, and `batch_stats` must be mutable.
        """
        norm = partial(BatchNorm, use_running_average=not train)
        backbone_norm = partial(norm, bias_init=nn.initializers.constant(1e-4))
        features = ShuffleNetV2(self.model.width, backbone_norm, name="backbone")(images)
        levels = PAN(self.model.channels, name="neck")(features)
        head = NanoDetHead(
            num_classes=self.model.num_classes,
            channels=self.model.channels,
            stacked_convs=self.model.stacked_convs,
            share_cls_reg=self.model.share_cls_reg,
            reg_max=self.model.reg_max,
            norm=norm,
            name="head",
        )
        return head(levels)


def build_model(model: config.Model) -> NanoDet:
    """The network that a config describes."""
    return NanoDet(model)


def priors_of(model: config.Model, input_size: tuple[int, int]) -> boxes.Priors:
    """Priors that the network's predictions belong to, for inputs of (height, width) pixels."""
    return boxes.make_priors(input_size, model.strides, PRIOR_OFFSET)
