"""Config of the assigner and the loss, and flags that reproduce bugs of the original."""

from dataclasses import dataclass
from typing import Literal

from nanodet_jax.config.section import Section
from nanodet_jax.config.values import Fields

AssignerName = Literal["atss", "dynamic_soft_label", "gfl"]


@dataclass(slots=True)
class Assigner(Section):
    """Which priors learn which ground-truth boxes."""

    name: AssignerName = "atss"
    """Method: atss as in NanoDet, dynamic_soft_label as in NanoDet-Plus, or gfl, which is the ATSS
    of mmdetection's GFL."""

    topk: int = 9
    """atss, gfl: candidate priors per box and level. dynamic_soft_label: largest number of priors
    that a box takes, 13 in the original."""

    anchor_scale: float = 5.0
    """atss, gfl: side of a prior's anchor box, in strides."""

    iou_factor: float = 3.0
    """dynamic_soft_label: weight of the iou cost relative to the classification cost."""

    ignore_threshold: float = 0.5
    """A prior that learns no box is ignored, instead of learning the background, if more than this
    fraction of its anchor (atss, gfl) or its predicted box (dynamic_soft_label) lies in an ignore
    region. 0 disables ignore regions."""

    def check(self) -> None:
        """Raise a UserError for the first invalid value."""
        fields = Fields(self, "config.assigner")
        fields.positive("topk", "anchor_scale")
        fields.not_negative("iou_factor")


@dataclass(slots=True)
class Compat(Section):
    """Bugs of the original. True reproduces a bug, False fixes it (see `docs/differences.md`)."""

    priors_of_any_box: bool = True
    """dynamic_soft_label only. True: a box may take priors that lie only in other boxes, and gets
    none if no prior lies in any box. False: a box takes only priors inside itself, or the nearest
    prior if it contains none."""

    keep_lost_boxes: bool = True
    """True: a box that augmentation moves out of the image is kept with zero area. With
    dynamic_soft_label, a prior may learn it. False: such a box is dropped."""

    pixel_index_warp: bool = True
    """True: images are resampled on pixel indices, without antialiasing. This shifts them by about
    half a pixel relative to their boxes. False: pixels are squares, as in the coordinates of boxes,
    and shrinking averages them."""


@dataclass(slots=True)
class Loss(Section):
    """Weights of the three loss terms."""

    quality_focal: float = 1.0
    """Weight of the quality focal loss, for class scores."""

    distribution_focal: float = 0.25
    """Weight of the distribution focal loss, for the distributions of box sides."""

    giou: float = 2.0
    """Weight of the GIoU loss, for boxes."""
