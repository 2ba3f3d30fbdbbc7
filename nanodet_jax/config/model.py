"""Config of the network."""

from dataclasses import dataclass, field
from typing import Literal

from nanodet_jax.config.section import Section
from nanodet_jax.config.values import Fields, one_of

Neck = Literal["pan", "ghost_pan"]

BACKBONE_STRIDES = (8, 16, 32)
# Upper bounds for untrusted weight files. A network with a field at its bound can be built within
# 10 seconds.
MODEL_LIMITS = {
    "num_classes": 100_000,
    "channels": 4096,
    "kernel_size": 31,
    "stacked_convs": 16,
    "neck_blocks": 16,
    "reg_max": 255,
    "guidance_channels": 8192,
    "guidance_convs": 16,
}
MAX_TAPS = 600  # kernel_size**2 * (stacked_convs + neck_blocks): each tap is traced separately
GUIDANCE_GROUPS = 32  # groups of each group norm in the guidance head


@dataclass(slots=True)
class Model(Section):
    """ShuffleNetV2, a neck, a head and, for NanoDet-Plus, a branch that guides training."""

    num_classes: int = 0
    """Number of classes; 0 = as many as the dataset has."""

    width: float = field(default=1.0, metadata=one_of(0.5, 1.0, 1.5, 2.0))
    """Width multiplier of ShuffleNetV2."""

    neck: Neck = "pan"
    """pan as in NanoDet, or ghost_pan as in NanoDet-Plus."""

    neck_blocks: int = 1
    """ghost_pan: ghost bottlenecks at each merge of two levels."""

    extra_level: bool = False
    """ghost_pan: add a level of stride 64, coarser than the levels of the backbone."""

    channels: int = 96
    """Channels of the neck and the head."""

    kernel_size: int = 3
    """Kernel size of the depthwise convolutions in ghost_pan and the head; odd."""

    stacked_convs: int = 2
    """Depthwise separable convolutions in the head, per level."""

    share_cls_reg: bool = True
    """Use one tower for both classes and boxes; False = one tower for each."""

    reg_max: int = 7
    """Largest bin of the distribution over the distance between a prior and a box side. The bins
    are 0 to reg_max strides, and the predicted distance is the mean of the distribution."""

    prior_offset: float = 0.5
    """Position of a prior in its grid cell, in strides; NanoDet-Plus uses 0."""

    guidance_channels: int = 0
    """Channels of the assign guidance module's head, a multiple of 32; 0 = no guidance."""

    guidance_convs: int = 4
    """Convolutions of the guidance head, in each of the towers for classes and boxes."""

    sync_batch_norm: bool = False
    """Normalize training batches by the statistics of the whole batch instead of each device's
    part, at the cost of two small reductions per layer. Each micro-batch of training.accumulate has
    its own statistics."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighboring priors, by level, finest first."""
        coarser = (2 * BACKBONE_STRIDES[-1],) if self.extra_level else ()
        return BACKBONE_STRIDES + coarser

    def check(self) -> None:
        """Raise a UserError for the first invalid value."""
        fields = Fields(self, "config.model")
        fields.require(
            "num_classes",
            self.num_classes >= 0,
            "must be positive, or 0 for the number of classes in the dataset",
        )
        fields.positive("channels", "stacked_convs", "reg_max", "neck_blocks", "guidance_convs")
        fields.at_most(MODEL_LIMITS)
        if self.neck == "ghost_pan":
            fields.require("channels", self.channels % 2 == 0, "must be even for ghost_pan")
        else:
            fields.require("extra_level", not self.extra_level, "needs model.neck=ghost_pan")
            fields.require("neck_blocks", self.neck_blocks == 1, "needs model.neck=ghost_pan")
        odd = self.kernel_size > 0 and self.kernel_size % 2 == 1
        fields.require("kernel_size", odd, "must be odd")
        taps = self.kernel_size**2 * (self.stacked_convs + self.neck_blocks)
        fields.require(
            "kernel_size",
            taps <= MAX_TAPS,
            f"its square times (stacked_convs + neck_blocks) is {taps}; the limit is {MAX_TAPS}",
        )
        fields.require(
            "prior_offset", 0 <= self.prior_offset < 1, "must be at least 0 and less than 1"
        )
        fields.require(
            "guidance_channels",
            self.guidance_channels >= 0 and self.guidance_channels % GUIDANCE_GROUPS == 0,
            f"must be a multiple of {GUIDANCE_GROUPS}, the number of normalization groups, or 0 "
            "for no guidance",
        )
