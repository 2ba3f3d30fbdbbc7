"""Converting the original's state_dict to and from the variables of this project, by name.

The path of a variable determines its PyTorch name; everything else follows from comparing two sets
of names. Kernels change from OIHW to HWIO, and matrices from OI to IO. Nothing is matched by
position.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from nanodet_jax.errors import UserError
from nanodet_jax.models.backbones.backbone import torch_names_of_backbones
from nanodet_jax.terminal import join_first, printable

Entries = Mapping[str, np.ndarray]

# A pattern of our module paths, the original's module name, and a mapping. If the mapping is not
# empty, it maps the last group of the pattern to the text that replaces {} in the name. The rule
# then applies only if the mapping has that group.
Rule = tuple[str, str, Mapping[str, str]]


def backbone_rules() -> Iterator[Rule]:
    """Yield the rules of all backbones."""
    for pattern, replacement, positions in torch_names_of_backbones():
        yield f"backbone/{pattern}", f"backbone.{replacement}", positions


RULES: tuple[Rule, ...] = (
    *backbone_rules(),
    (r"neck/lateral_(\d)", r"fpn.lateral_convs.\1.conv", {}),
    (r"neck/output_(\d)", r"fpn.fpn_convs.\1.conv", {}),
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
    # Blocks of LC-PAN. Its other layers have the same names as those of GhostPAN.
    (r"neck/(top_down|bottom_up)_(\d)_(\d)/(\w+)", r"fpn.\1_blocks.\2.\3.\4", {}),
    (r"neck/downsample_(\d)/(\w+)", r"fpn.downsamples.\1.\2", {}),
    (r"neck/extra_entry/(\w+)", r"fpn.extra_lvl_in_conv.0.\1", {}),
    (r"neck/extra_last/(\w+)", r"fpn.extra_lvl_out_conv.0.\1", {}),
    (r"neck/lateral_conv_(\d)/(\w+)", r"fpn.lateral_convs.\1.{}", {"conv": "conv", "norm": "bn"}),
    (r"neck/reduce", "fpn.transformer.conv.conv", {}),
    (r"neck", "fpn", {}),  # for the learned positions
    (
        r"neck/encoder/(attention/)?(\w+)",
        "fpn.transformer.encoders.0.{}",
        {
            "norm1": "norm1",
            "qkv": "attn.in_proj",
            "out": "attn.out_proj",
            "norm2": "norm2",
            "mlp1": "mlp.fc1",
            "mlp2": "mlp.fc2",
        },
    ),
    (
        r"head/(cls|reg)_tower_(\d)_(\d)/(\w+)",
        r"head.\1_convs.\2.\3.{}",
        {name: name for name in ("depthwise", "dwnorm", "pointwise", "pwnorm", "conv")}
        | {"norm": "bn"},
    ),
    (r"head/output_(\d)", r"head.gfl_cls.\1", {}),
    (r"head/(cls|reg)_output_(\d)", r"head.gfl_\1.\2", {}),
    # Layers that only PicoHead has, with the names of PaddleDetection.
    (r"head/excite_(\d)/gate", r"head.se.\1.fc", {}),
    (r"head/excite_(\d)_conv/(\w+)", r"head.se.\1.conv.\2", {}),
    (r"head/align_(\d)_0/(\w+)", r"head.cls_align.\1.{}", {"conv": "dwconv", "norm": "bn1"}),
    (r"head/align_(\d)_1/(\w+)", r"head.cls_align.\1.{}", {"conv": "pwconv", "norm": "bn2"}),
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
    "positions": "pos_embed",
}
# Names of entries that no forward pass of the original uses.
UNUSED = r".*\.num_batches_tracked|head\.distribution_project\.project|fpn\.transformer\.linear\..*"
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
        if match and (not positions or match.groups()[-1] in positions):
            name = match.expand(replacement)
            if positions:
                name = name.format(positions[match.groups()[-1]])
            separator = "_" if name.endswith("in_proj") else "."
            return f"{prefix}{name}{separator}{LEAVES[leaf]}"
    raise KeyError(f"no rule for {path}")


def from_mmdetection(entries: Entries) -> Entries:
    """Rename the entries of mmdetection's GFL to the names of the original NanoDet.

    The constant `bbox_head.integral.project` is dropped. Entries of other models are returned
    unchanged.
    """
    if not any(name.startswith("bbox_head.") for name in entries):
        return entries
    parts = {"neck.": "fpn.", "bbox_head.": "head."}
    return {
        next((new + name[len(old):] for old, new in parts.items() if name.startswith(old)), name):
        entry for name, entry in entries.items()
        if name != "bbox_head.integral.project"
    }  # fmt: skip


def flatten(variables: Any) -> dict[str, Any]:
    """Return the leaves by path, such as `params/...` and `batch_stats/...`."""
    return flax.traverse_util.flatten_dict(variables, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> Any:
    """Build a tree from a mapping of paths to leaves. This is the inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(dict(leaves), sep="/")


def from_pytorch(array: np.ndarray) -> np.ndarray:
    """Transpose kernels from OIHW to HWIO and matrices from OI to IO; keep other arrays."""
    if array.ndim == 2:
        return array.T
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def to_pytorch(array: np.ndarray) -> np.ndarray:
    """Transpose kernels from HWIO to OIHW and matrices from IO to OI; keep other arrays."""
    if array.ndim == 2:
        return array.T
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


def pytorch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a variable in the original's layout."""
    return to_pytorch(np.broadcast_to(np.float32(0), shape)).shape
