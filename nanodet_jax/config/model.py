"""Config of the network."""

from dataclasses import dataclass, field
from typing import Literal

from nanodet_jax.config.section import Section
from nanodet_jax.config.values import Fields, one_of

Neck = Literal["pan", "ghost_pan", "tan", "nanodet_fpn", "fpn", "lc_pan"]
Head = Literal["nanodet", "simple_conv", "pico"]
Activation = Literal["leaky_relu", "relu", "relu6", "hard_swish", "silu", "gelu", "elu", "selu"]

# Names of backbones, and the module of `nanodet_jax.models.backbones` that defines each.
BACKBONES = {
    "shufflenet_v2": "shufflenet_v2",
    **{f"efficientnet_lite{size}": "efficientnet_lite" for size in range(5)},
    **{
        f"repvgg_{size}": "repvgg"
        for size in ("a0", "a1", "a2", "b0", "b1", "b1g2", "b1g4", "b2", "b2g2", "b2g4", "b3",
                     "b3g2", "b3g4")
    },
    "custom_csp": "custom_csp",
    "mobilenet_v2": "mobilenet_v2",
    "ghostnet": "ghostnet",
    **{f"resnet{depth}": "resnet" for depth in (18, 34, 50, 101, 152)},
    **{f"pplcnet_{size}": "pplcnet" for size in ("x0_35", "x0_75", "x1_0", "x1_5", "x2_0")},
}  # fmt: skip
SCALABLE_BACKBONES = ("shufflenet_v2", "mobilenet_v2", "ghostnet")  # `width` scales them
LAST_CHANNEL_BACKBONES = ("mobilenet_v2", *(name for name in BACKBONES if "repvgg" in name))
BACKBONE_STRIDES = (8, 16, 32)
# Upper bounds for untrusted weight files. A network with a field at its bound can be built within
# 10 seconds.
MODEL_LIMITS = {
    "num_classes": 100_000,
    "channels": 4096,
    "backbone_last_channels": 8192,
    "fpn_levels": 4,
    "kernel_size": 31,
    "stacked_convs": 16,
    "neck_blocks": 16,
    "reg_max": 255,
    "guidance_channels": 8192,
    "guidance_convs": 16,
}
MAX_TAPS = 600  # kernel_size**2 * (stacked_convs + neck_blocks): each tap is traced separately
NORM_GROUPS = 32  # groups of each group norm in SimpleConvHead


@dataclass(slots=True)
class Model(Section):
    """A backbone, a neck, a head and, for NanoDet-Plus, a branch that guides training."""

    num_classes: int = 0
    """Number of classes; 0 = as many as the dataset has."""

    backbone: str = field(default="shufflenet_v2", metadata=one_of(*BACKBONES))
    """Network that computes features of the image, from which the neck computes its levels."""

    width: float = field(default=1.0, metadata=one_of(0.5, 1.0, 1.5, 2.0))
    """Width multiplier of shufflenet_v2, mobilenet_v2 and ghostnet; 1 for all other backbones."""

    channel_order: Literal["bgr", "rgb"] = "bgr"
    """Channel order of the images that the backbone takes. Images are loaded as bgr; rgb reverses
    their channels, as the weights of mmdetection and torchvision expect. The original's recipes use
    bgr, although they start from torchvision's weights."""

    backbone_strides: tuple[int, ...] = BACKBONE_STRIDES
    """Strides of the backbone's features that the neck takes, finest first."""

    backbone_last_channels: int = 0
    """mobilenet_v2 and the variants of repvgg: number of channels of the last features; 0 = as in
    the paper that describes the backbone."""

    backbone_activation: Literal["", Activation] = ""
    """Activation of the backbone; "" = the default of the backbone."""

    frozen_stride: int = 0
    """Freeze the stages of the backbone up to and including this stride: their weights and
    statistics keep their values. 4 freezes the stem and the first stage of a ResNet. 0 = freeze
    nothing."""

    norm_eval: bool = False
    """Use the stored statistics in the batch norms of the backbone, in training too. The scale and
    bias of these norms are still trained, except in frozen stages."""

    neck: Neck = "pan"
    """pan: PAN of NanoDet. ghost_pan: Ghost-PAN of NanoDet-Plus. tan: TAN, the transformer of
    NanoDet-t. nanodet_fpn: FPN of the original, without 3 x 3 convolutions. fpn: FPN of GFL.
    lc_pan: LC-PAN of PicoDet."""

    neck_blocks: int = 1
    """ghost_pan: ghost bottlenecks at each merge of two levels."""

    extra_level: bool = False
    """ghost_pan, lc_pan: add a level coarser than those of the backbone. It has stride 64 by
    default."""

    position_grid: tuple[int, int] = (20, 20)
    """tan: rows and columns of the grid of learned position embeddings. 20,20 has one embedding for
    each pixel of the features of stride 16 if the input is 320 x 320. If the features have another
    size, the embeddings are interpolated."""

    fpn_levels: int = 2
    """fpn: number of levels to add that are coarser than those of the backbone, each half the size
    of the one before."""

    channels: int = 96
    """Channels of the neck and the head."""

    activation: Activation = "leaky_relu"
    """Activation of the neck and the head."""

    head: Head = "nanodet"
    """nanodet: head of NanoDet, with separate towers for each level. simple_conv: head of GFL, with
    group norm and with towers that all levels share. pico: task-aligned head of PicoDet."""

    depthwise_head: bool = True
    """head=nanodet: build the towers of depthwise separable convolutions; False uses dense ones."""

    kernel_size: int = 3
    """Kernel size of the depthwise convolutions in ghost_pan and lc_pan, and of the towers of
    head=nanodet and head=pico; odd. The ghost modules of ghost_pan always use 3."""

    stacked_convs: int = 2
    """Convolutions in each tower of the head. A depthwise separable convolution counts as one."""

    share_cls_reg: bool = True
    """head=nanodet: use one tower for both classes and boxes; False = one tower for each."""

    reg_max: int = 7
    """Largest bin of the distribution over the distance between a prior and a box side. The bins
    are 0 to reg_max strides, and the predicted distance is the mean of the distribution."""

    prior_offset: float = 0.5
    """Position of a prior in its grid cell, in strides; NanoDet-Plus and GFL use 0."""

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
        extra = self.fpn_levels if self.neck == "fpn" else int(self.extra_level)
        coarsest = self.backbone_strides[-1]
        return self.backbone_strides + tuple(coarsest << level for level in range(1, extra + 1))

    @property
    def ignores_padding(self) -> bool:
        """Whether the network can ignore padding of the images, so that it changes no result."""
        return (
            self.backbone.startswith("resnet")
            and self.backbone_activation in ("", "relu")
            and self.norm_eval
            and (self.neck, self.head) == ("fpn", "simple_conv")
        )

    def check(self) -> None:
        """Raise a UserError for the first invalid value."""
        fields = Fields(self, "config.model")
        fields.require(
            "num_classes",
            self.num_classes >= 0,
            "must be positive, or 0 for the number of classes in the dataset",
        )
        fields.positive("channels", "stacked_convs", "reg_max", "neck_blocks", "guidance_convs")
        fields.not_negative("backbone_last_channels", "frozen_stride", "fpn_levels")
        fields.at_most(MODEL_LIMITS)
        self._check_backbone(fields)
        if self.neck == "ghost_pan":
            fields.require("channels", self.channels % 2 == 0, "must be even for ghost_pan")
        else:
            fields.require("neck_blocks", self.neck_blocks == 1, "needs model.neck=ghost_pan")
        fields.require(
            "extra_level",
            not self.extra_level or self.neck in ("ghost_pan", "lc_pan"),
            "needs model.neck=ghost_pan or lc_pan",
        )
        if self.neck == "tan":
            fields.require("channels", self.channels % 8 == 0, "must be a multiple of 8 for tan")
            rows, columns = self.position_grid
            fields.require(
                "position_grid",
                0 < rows <= 256 and 0 < columns <= 256,
                "use ROWS,COLUMNS, each from 1 to 256",
            )
        if self.head == "simple_conv":
            fields.require(
                "channels",
                self.channels % NORM_GROUPS == 0,
                f"must be a multiple of {NORM_GROUPS}, the groups of each norm of simple_conv",
            )
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
            self.guidance_channels >= 0 and self.guidance_channels % NORM_GROUPS == 0,
            f"must be a multiple of {NORM_GROUPS}, the number of normalization groups, or 0 for no "
            "guidance",
        )

    def _check_backbone(self, fields: Fields) -> None:
        """Require strides that the neck can take, and options that the backbone supports."""
        finest, *_ = strides = self.backbone_strides or (0,)
        doubling = tuple(finest << level for level in range(len(strides)))
        fields.require(
            "backbone_strides",
            finest in (4, 8, 16, 32) and strides == doubling and strides[-1] <= 32,
            "use consecutive values of 4,8,16,32, such as 8,16,32",
        )
        if self.neck == "tan":
            fields.require(
                "backbone_strides", strides == BACKBONE_STRIDES, "must be 8,16,32 for tan"
            )
        fields.require(
            "width",
            self.width == 1 or self.backbone in SCALABLE_BACKBONES,
            f"must be 1 for {self.backbone}",
        )
        fields.require(
            "backbone_last_channels",
            not self.backbone_last_channels or self.backbone in LAST_CHANNEL_BACKBONES,
            f"must be 0 for {self.backbone}",
        )
