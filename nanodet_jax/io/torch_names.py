"""Converting the original's state_dict to and from the variables of this project, by name.

The path of a variable determines its PyTorch name; everything else follows from comparing two sets
of names. Kernels change from OIHW to HWIO. Nothing is matched by position.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from nanodet_jax import config
from nanodet_jax.errors import UserError
from nanodet_jax.models.backbones.shufflenet_v2 import STAGE_CHANNELS
from nanodet_jax.terminal import join_first, printable

Entries = Mapping[str, np.ndarray]

# Each rule is a pattern of our module paths, the original's module name, and a dict. If the dict is
# not empty, it maps the last group of the pattern to the text that replaces {} in the name.
RULES: tuple[tuple[str, str, dict[str, str]], ...] = (
    (r"backbone/stem", r"backbone.conv1.0", {}),
    (r"backbone/stem_norm", r"backbone.conv1.1", {}),
    (
        r"backbone/stage(\d)_(\d+)/shortcut/(\w+)",
        r"backbone.stage\1.\2.branch1.{}",
        {"depthwise": "0", "dwnorm": "1", "pointwise": "2", "pwnorm": "3"},
    ),
    (
        r"backbone/stage(\d)_(\d+)/main/(\w+)",
        r"backbone.stage\1.\2.branch2.{}",
        {
            "pointwise_in": "0",
            "innorm": "1",
            "depthwise": "3",
            "dwnorm": "4",
            "pointwise_out": "5",
            "outnorm": "6",
        },
    ),
    (r"neck/lateral_(\d)", r"fpn.lateral_convs.\1.conv", {}),
    (r"neck/lateral_(\d)/(\w+)", r"fpn.reduce_layers.\1.{}", {"conv": "conv", "norm": "bn"}),
    (
        r"neck/(top_down|bottom_up)_(\d)_(\d)/(ghost\d)/(\w+)",
        r"fpn.\1_blocks.\2.blocks.\3.\4.{}",
        {
            "primary": "primary_conv.0",
            "primary_norm": "primary_conv.1",
            "cheap": "cheap_operation.0",
            "cheap_norm": "cheap_operation.1",
        },
    ),
    (
        r"neck/(top_down|bottom_up)_(\d)_(\d)/shortcut/(\w+)",
        r"fpn.\1_blocks.\2.blocks.\3.shortcut.{}",
        {"depthwise": "0", "dwnorm": "1", "pointwise": "2", "pwnorm": "3"},
    ),
    (r"neck/downsample_(\d)/(\w+)", r"fpn.downsamples.\1.\2", {}),
    (r"neck/extra_entry/(\w+)", r"fpn.extra_lvl_in_conv.0.\1", {}),
    (r"neck/extra_last/(\w+)", r"fpn.extra_lvl_out_conv.0.\1", {}),
    (r"head/(cls|reg)_tower_(\d)_(\d)/(\w+)", r"head.\1_convs.\2.\3.\4", {}),
    (r"head/output_(\d)", r"head.gfl_cls.\1", {}),
    (r"head/(cls|reg)_output_(\d)", r"head.gfl_\1.\2", {}),
    # Head of the guidance module. The original uses the prefix aux_ for everything below guidance/.
    (
        r"head/(cls|reg)_tower_(\d)/(\w+)",
        r"head.\1_convs.\2.{}",
        {"conv": "conv", "norm": "gn"},
    ),
    (r"head/(cls|reg)_output", r"head.gfl_\1", {}),
    (r"head/scale_(\d)", r"head.scales.\1", {}),
)
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "factor": "scale",
}
# Names of entries that no forward pass of the original uses.
UNUSED = r".*\.num_batches_tracked|head\.distribution_project\.project"
# The same, if one output layer predicts both classes and boxes.
UNUSED_IF_SHARED = r"head\.gfl_reg\.\d\.(weight|bias)"
# The same, if there is no guidance module.
UNUSED_IF_DEPLOYED = r"aux_(fpn|head)\..*"


class LoadReport(NamedTuple):
    """PyTorch names of all variables, grouped by how `load_matching` loaded them."""

    kept: list[str]  # loaded completely
    box_rows: list[str]  # only the rows for boxes, because the number of classes differs
    new: list[str]  # not loaded; they keep their initial values

    def __str__(self) -> str:
        def names(group: list[str]) -> str:
            return f"{len(group)}" + (f" ({join_first(group)})" if group else "")

        text = f"loaded {len(self.kept)} arrays"
        if self.box_rows:
            text += f", and from {names(self.box_rows)} only the rows for boxes"
        return text + (f"; not loaded: {names(self.new)}" if self.new else "")


def pytorch_name(path: str) -> str:
    """Return the PyTorch name of the variable at `path`, e.g. `params/head/output_0/kernel`."""
    _, module_path = path.split("/", 1)
    module, leaf = module_path.rsplit("/", 1)
    prefix = "aux_" if module.startswith("guidance/") else ""
    module = module.removeprefix("guidance/")
    for pattern, replacement, positions in RULES:
        match = re.fullmatch(pattern, module)
        if match:
            name = match.expand(replacement)
            if positions:
                name = name.format(positions[match.groups()[-1]])
            return f"{prefix}{name}.{LEAVES[leaf]}"
    raise KeyError(f"no rule for {path}")


def flatten(variables: Any) -> dict[str, Any]:
    """Return the leaves by path, such as `params/...` and `batch_stats/...`."""
    return flax.traverse_util.flatten_dict(variables, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> Any:
    """Build a tree from a mapping of paths to leaves. This is the inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(dict(leaves), sep="/")


def from_pytorch(array: np.ndarray) -> np.ndarray:
    """Transpose a kernel from OIHW to HWIO; return other arrays unchanged."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def to_pytorch(array: np.ndarray) -> np.ndarray:
    """Transpose a kernel from HWIO to OIHW; return other arrays unchanged."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def convert(entries: Entries, like: Any, where: str = "weights") -> Any:
    """Convert a state_dict to variables. Every entry must match.

    Args:
      entries: arrays by the original's names.
      like: variables, or their shapes (`jax.eval_shape` of the model's init).
      where: name of the entries for error messages, such as the file name.

    Returns:
      Float32 variables with the structure and shapes of `like`.

    Raises:
      UserError: listing entries that are missing, unexpected, or have the wrong shape.
    """
    targets = {pytorch_name(path): (path, leaf) for path, leaf in flatten(like).items()}
    missing = [name for name in targets if name not in entries]
    unused = _unused(targets)
    left_over = [
        printable(name)
        for name in entries
        if name not in targets and not re.fullmatch(unused, name)
    ]
    leaves, misfits = {}, []
    for name, (path, leaf) in targets.items():
        if name in entries:
            array = from_pytorch(np.asarray(entries[name]))
            if array.shape != tuple(leaf.shape):
                misfits.append(f"{name} {array.shape} instead of {tuple(leaf.shape)}")
                continue  # do not copy it: many entries could share one storage
            leaves[path] = np.array(array, np.float32, order="C")
    problems = [
        f"{title}: {join_first(group)}"
        for title, group in (
            ("missing", missing),
            ("unexpected", left_over),
            ("wrong shape", misfits),
        )
        if group
    ]
    if problems:
        raise UserError(f"{where}: does not fit this model; {'; '.join(problems)}")
    return unflatten(leaves)


def _unused(targets: Mapping[str, Any]) -> str:
    """Return a regular expression for the names of entries that no variable needs."""
    patterns = [UNUSED]
    if not any(target.startswith("head.gfl_reg.") for target in targets):
        patterns.append(UNUSED_IF_SHARED)
    if not any(target.startswith("aux_") for target in targets):
        patterns.append(UNUSED_IF_DEPLOYED)
    return "|".join(patterns)


def load_matching(entries: Entries, variables: Any, num_bins: int) -> tuple[Any, LoadReport]:
    """Load every entry that fits, for fine-tuning with different classes.

    Args:
      entries: arrays with the names and the layout of the original.
      variables: initial variables. A variable without an entry of the same shape keeps its value.
      num_bins: number of rows of an output layer that predict boxes: 4 * (reg_max + 1). They are
        its last rows. They are also loaded if only the number of classes differs.

    Returns:
      The variables, and a report.
    """
    leaves, kept, box_rows, new = {}, [], [], []
    for path, leaf in flatten(variables).items():
        name, value = pytorch_name(path), np.array(leaf)
        entry = entries.get(name)
        array = None if entry is None else from_pytorch(np.asarray(entry, np.float32))
        if array is not None and array.shape == value.shape:
            value = array
            kept.append(name)
        elif array is not None and _only_classes_differ(path, array, value, num_bins):
            value[..., -num_bins:] = array[..., -num_bins:]
            box_rows.append(name)
        else:
            new.append(name)
        leaves[path] = value
    return unflatten(leaves), LoadReport(kept, box_rows, new)


def _only_classes_differ(path: str, array: np.ndarray, value: np.ndarray, num_bins: int) -> bool:
    return (
        re.search(r"/head/output_\d/", path) is not None
        and array.shape[:-1] == value.shape[:-1]
        and min(array.shape[-1], value.shape[-1]) > num_bins
    )


def to_entries(variables: Any) -> dict[str, np.ndarray]:
    """Return all variables with the names and the layout of the original."""
    return {
        pytorch_name(path): np.array(to_pytorch(np.asarray(leaf)), order="C")
        for path, leaf in flatten(variables).items()
    }


def infer_model(entries: Entries, where: str = "weights") -> config.Model:
    """Infer the architecture from the names and shapes of a state_dict.

    The deployed weights of a NanoDet-Plus do not show how many rows of an output layer predict
    boxes. Their `reg_max` is assumed to be 7, as in all published weights.

    Raises:
      UserError: if this project does not implement the architecture.
    """
    try:
        channels_of_width = {channels[0] // 2: width for width, channels in STAGE_CHANNELS.items()}
        stage = entries["backbone.stage2.0.branch2.0.weight"].shape[0]
        plus = "fpn.reduce_layers.0.conv.weight" in entries
        model = config.Model(width=channels_of_width[stage])
        (_infer_plus if plus else _infer_nanodet)(entries, model)
    except (KeyError, IndexError) as error:  # IndexError: too few dimensions
        raise UserError(f"{where}: not a NanoDet state_dict ({error})") from error
    model.stacked_convs = _count(entries, r"head\.cls_convs\.0\.(\d+)\.")
    if model.num_classes < 1:
        raise UserError(f"{where}: its output layer predicts boxes but no classes")
    return model


def _infer_nanodet(entries: Entries, model: config.Model) -> None:
    model.channels = entries["fpn.lateral_convs.0.conv.weight"].shape[0]
    num_bins = entries["head.gfl_reg.0.weight"].shape[0]
    model.reg_max = num_bins // 4 - 1
    model.share_cls_reg = not any(name.startswith("head.reg_convs.") for name in entries)
    output = entries["head.gfl_cls.0.weight"].shape[0]
    model.num_classes = output - num_bins if model.share_cls_reg else output


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
    if "aux_head.gfl_cls.weight" in entries:
        model.guidance_channels = entries["aux_head.gfl_cls.weight"].shape[1]
        model.guidance_convs = _count(entries, r"aux_head\.cls_convs\.(\d+)\.")


def _count(entries: Entries, pattern: str) -> int:
    """Count the distinct values that the group in `pattern` matches in the names of entries."""
    return len({match[1] for name in entries if (match := re.match(pattern, name))})
