"""Inferring the architecture of a PyTorch state_dict from its names and shapes."""

import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from nanodet_jax import config
from nanodet_jax.config import Config
from nanodet_jax.errors import UserError
from nanodet_jax.io import torch_names
from nanodet_jax.models.backbones.backbone import torch_names_of
from nanodet_jax.state import abstract_backbone

Entries = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

GFL_SIZE = 800, 1333  # config.input_size: shorter and longer side of images
WIDTHS = (1.0, 0.5, 1.5, 2.0)
LATERALS = ("fpn.lateral_convs", "fpn.reduce_layers")
# Activation of the neck and the head in the original's configs, by the beginning of the backbone's
# name. With all other backbones, it is LeakyReLU.
ACTIVATIONS: dict[str, config.Activation] = {
    "efficientnet": "relu6",
    "repvgg": "relu",
    "resnet": "relu",
}


def infer_model(entries: Entries, where: str = "weights") -> config.Model:
    """Infer the architecture from the names and shapes of a state_dict.

    Activations cannot be inferred, so they are assumed to be those of the original's configs. The
    deployed weights of a NanoDet-Plus do not show how many rows of an output layer predict boxes.
    Their `reg_max` is assumed to be 7, as in all published weights.

    Args:
      entries: arrays, of which only the shapes are used, by the original's names.
      where: beginning of error messages.

    Raises:
      UserError: if this project does not implement the architecture.
    """
    try:
        model = _infer_backbone(entries)
        if "fpn.reduce_layers.0.conv.weight" in entries:
            _infer_plus(entries, model)
        elif "fpn.fpn_convs.0.conv.weight" in entries:
            _infer_gfl(entries, model)
        else:
            _infer_nanodet(entries, model)
    except (KeyError, IndexError) as error:  # IndexError: too few dimensions
        raise UserError(f"{where}: not a NanoDet state_dict ({error})") from error
    if model.num_classes < 1:
        raise UserError(f"{where}: its output layer predicts boxes but no classes")
    return model


def _infer_backbone(entries: Entries) -> config.Model:
    """Return a model whose backbone has exactly the entries named "backbone.*"."""
    found = {
        name: tuple(entry.shape)
        for name, entry in entries.items()
        if name.startswith("backbone.") and not re.fullmatch(torch_names.UNUSED, name)
    }
    # Tracing a backbone takes up to a second, so most are ruled out by the names alone.
    files = {file for file in config.BACKBONES.values() if _has_names_of(file, found)}
    for model in _candidates(entries, files):
        if backbone_shapes(model) == found:
            return model
    raise KeyError("backbone")


def _has_names_of(file: str, found: Shapes) -> bool:
    """Return whether all names could belong to a backbone that this file defines."""
    patterns = [
        r"[\w.]+".join(map(re.escape, re.split(r"\\\d|\{\}", name)))
        for _, name, _ in torch_names_of(file)
    ]
    known = re.compile(rf"backbone\.({'|'.join(patterns)})\.\w+")
    return bool(found) and all(known.fullmatch(name) for name in found)


def _candidates(entries: Entries, files: Collection[str]) -> Iterator[config.Model]:
    """Yield a model for each backbone of the files, width and possible `backbone_last_channels`."""
    last = next(
        (entries[name].shape[1] for name in (f"{base}.2.conv.weight" for base in LATERALS)
         if name in entries),
        0,
    )  # fmt: skip
    for backbone, file in config.BACKBONES.items():
        if file not in files:
            continue
        for width in WIDTHS if backbone in config.SCALABLE_BACKBONES else WIDTHS[:1]:
            for channels in (0, last) if backbone in config.LAST_CHANNEL_BACKBONES else (0,):
                yield config.Model(backbone=backbone, width=width, backbone_last_channels=channels)


def backbone_shapes(model: config.Model) -> Shapes:
    """Return the shapes of a backbone's variables in PyTorch's layout, by the original's names."""
    return {
        torch_names.pytorch_name(path): torch_names.pytorch_shape(leaf.shape)
        for path, leaf in torch_names.flatten(abstract_backbone(model)).items()
    }


def _infer_nanodet(entries: Entries, model: config.Model) -> None:
    family = model.backbone.split("_")[0]
    model.activation = ACTIVATIONS.get(family, "leaky_relu")
    model.channels = entries["fpn.lateral_convs.0.conv.weight"].shape[0]
    if "fpn.pos_embed" in entries:
        model.neck = "tan"
    num_bins = entries["head.gfl_reg.0.weight"].shape[0]
    model.reg_max = num_bins // 4 - 1
    model.share_cls_reg = not any(name.startswith("head.reg_convs.") for name in entries)
    model.depthwise_head = "head.cls_convs.0.0.depthwise.weight" in entries
    output = entries["head.gfl_cls.0.weight"].shape[0]
    model.num_classes = output - num_bins if model.share_cls_reg else output
    model.stacked_convs = _count(entries, r"head\.cls_convs\.0\.(\d+)\.")


def _infer_plus(entries: Entries, model: config.Model) -> None:
    model.neck = "ghost_pan"
    model.prior_offset = 0.0
    model.channels = entries["fpn.reduce_layers.0.conv.weight"].shape[0]
    model.kernel_size = entries["fpn.downsamples.0.depthwise.weight"].shape[-1]
    model.neck_blocks = _count(entries, r"fpn\.top_down_blocks\.0\.blocks\.(\d+)\.")
    model.extra_level = "fpn.extra_lvl_in_conv.0.depthwise.weight" in entries
    if "head.distribution_project.project" in entries:
        model.reg_max = entries["head.distribution_project.project"].shape[0] - 1
    elif "aux_head.gfl_reg.weight" in entries:
        model.reg_max = entries["aux_head.gfl_reg.weight"].shape[0] // 4 - 1
    num_bins = 4 * (model.reg_max + 1)
    model.num_classes = entries["head.gfl_cls.0.weight"].shape[0] - num_bins
    model.stacked_convs = _count(entries, r"head\.cls_convs\.0\.(\d+)\.")
    if "aux_head.gfl_cls.weight" in entries:
        model.guidance_channels = entries["aux_head.gfl_cls.weight"].shape[1]
        model.guidance_convs = _count(entries, r"aux_head\.cls_convs\.(\d+)\.")


def _infer_gfl(entries: Entries, model: config.Model) -> None:
    model.neck, model.head = "fpn", "simple_conv"
    model.activation, model.prior_offset = "relu", 0.0
    model.frozen_stride, model.norm_eval, model.channel_order = 4, True, "rgb"
    model.channels = entries["fpn.lateral_convs.0.conv.weight"].shape[0]
    model.fpn_levels = _count(entries, r"fpn\.fpn_convs\.(\d+)\.") - len(model.backbone_strides)
    model.stacked_convs = _count(entries, r"head\.cls_convs\.(\d+)\.")
    model.num_classes = entries["head.gfl_cls.weight"].shape[0]
    model.reg_max = entries["head.gfl_reg.weight"].shape[0] // 4 - 1


def set_preprocessing(config: Config) -> None:
    """Set the preprocessing of images to that of the original's or mmdetection's config.

    Args:
      config: changed in place. Its model is the result of `infer_model`.
    """
    model, data = config.model, config.data
    data.keep_ratio = model.neck != "ghost_pan"
    if model.backbone.startswith("efficientnet"):
        data.mean, data.std = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
    if model.head == "simple_conv":
        data.resize, config.input_size = "short_side", GFL_SIZE


def _count(entries: Entries, pattern: str) -> int:
    """Count the distinct values of the group in `pattern`, over all entries that it matches."""
    return len({match[1] for name in entries if (match := re.match(pattern, name))})
