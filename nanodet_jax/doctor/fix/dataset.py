"""Write corrected copies of the annotations that a config uses: `nanodet-jax doctor --fix OUT`."""

import secrets
import shutil
from pathlib import Path
from typing import NamedTuple

from nanodet_jax.config import Config
from nanodet_jax.data.sources.coco_layout import find_split
from nanodet_jax.doctor.fix.boxes import Changes
from nanodet_jax.doctor.fix.coco import correct_coco
from nanodet_jax.doctor.fix.voc import correct_voc
from nanodet_jax.doctor.fix.yolo import correct_yolo
from nanodet_jax.errors import UserError, reporting_write_errors


class Fixed(NamedTuple):
    """A corrected copy."""

    changes: dict[str, Changes]  # by split
    flags: list[str]  # config flags that select the copy
    left_out: list[str]  # error in each file that the copy lacks


def correct_dataset(config: Config, out: Path) -> Fixed:
    """Write corrected annotations to a new folder `out`, for the splits that a config uses.

    The data of the config is not changed. Boxes that training would skip are dropped, and boxes
    that extend beyond their image are clipped. `out` is written completely or not at all.

    Raises:
      UserError: if `out` is not empty or is inside the dataset, the config does not select a single
        dataset of format coco, voc or yolo, or a file cannot be read or written.
    """
    data = config.data
    if data.sources or data.format not in ("coco", "voc", "yolo"):
        found = "config.data.sources" if data.sources else f"config.data.format={data.format}"
        raise UserError(f"--fix: corrects one dataset in coco, voc or yolo format, not {found}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--fix={out}: exists and is not an empty folder; use a new folder")
    whole = data.val_fraction or data.val == "none"
    splits = ["train"] if whole else ["train", "val"]
    if data.root and out.resolve().is_relative_to(Path(data.root).expanduser().resolve()):
        raise UserError(f"--fix={out}: is inside the dataset; use a folder outside {data.root}")
    with reporting_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        fixed = _correct(config, splits, temporary, out)
        with reporting_write_errors(out):
            if out.exists():
                out.rmdir()
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return fixed


def _correct(config: Config, splits: list[str], temporary: Path, out: Path) -> Fixed:
    """Write the copy to the folder `temporary`, which becomes `out`."""
    data = config.data
    links = data.follow_links
    changes: dict[str, Changes] = {}
    left_out: list[str] = []
    flags = [f"--config.data.format={data.format}"]
    root = Path(data.root).expanduser()
    if data.format != "coco" and not data.root:
        raise UserError("config.data.root: is empty; set it to the folder of the dataset")
    match data.format:
        case "coco":
            flags.append("--config.data.root=")
            for split in splits:
                images = Path(getattr(data, f"{split}_images")).expanduser()
                annotations = Path(getattr(data, f"{split}_annotations")).expanduser()
                if data.root:
                    images, annotations = find_split(root, split)
                changes[split] = correct_coco(
                    images, annotations, temporary / f"{split}.json", links
                )
                flags += [
                    f"--config.data.{split}_images={images}",
                    f"--config.data.{split}_annotations={out / f'{split}.json'}",
                ]
        case "voc":
            for split in splits:
                changes[split] = correct_voc(root, split, temporary, links, left_out)
            flags.append(f"--config.data.root={out}")
        case _:
            changes = correct_yolo(root, splits, temporary, links, left_out)
            flags.append(f"--config.data.root={out}")
    if data.val == "none":
        flags.append("--config.data.val=none")
    if data.val_fraction:
        flags.append(f"--config.data.val_fraction={data.val_fraction:g}")
    changes = {split: +found for split, found in changes.items()}  # without zeros
    return Fixed(changes, flags, left_out)


def format_fixed(fixed: Fixed, out: Path) -> str:
    """Return text that lists the changes and the flags that select the copy."""
    lines = [
        f"{split}: {number} {change}"
        for split, changes in fixed.changes.items()
        for change, number in sorted(changes.items())
    ]
    return "\n".join(
        [
            *(lines or ["found nothing that --fix corrects"]),
            *(f"left out of the copy: {error}" for error in fixed.left_out),
            f"{out}: corrected copy; the data of the config is unchanged. To use the copy:",
            *(f"  {flag}" for flag in fixed.flags),
        ]
    )
