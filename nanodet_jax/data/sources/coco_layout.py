"""Locations of the images and annotations of a split, in the usual layouts of COCO datasets."""

import os
from pathlib import Path

from nanodet_jax.data.faults import NO_VALIDATION, Fault, FaultKind
from nanodet_jax.data.image_files import SUFFIXES
from nanodet_jax.data.sources.other_layouts import advise_root, coco_files, require_folder
from nanodet_jax.errors import UserError

ROBOFLOW = "_annotations.coco.json"  # in the folder of each split
LAYOUTS = (
    "train/_annotations.coco.json (Roboflow), annotations/instances_train2017.json (COCO), "
    "annotations/instances_default.json (CVAT), result.json (Label Studio), train.json"
)


def find_split(root: Path, split: str) -> tuple[Path, Path]:
    """Return the folder of images and the annotation file of a split, `train` or `val`.

    Raises:
      UserError: listing the layouts, if `root` has none of them; or naming the folder above, if
        `root` is the folder of one split.
      Fault: of kind NO_VALIDATION, if `root` has annotations for `train` but none for `val`.
    """
    require_folder(
        root, ", or use config.data.train_images and config.data.train_annotations instead"
    )
    file = _find_file(root, split)
    if file is not None:
        return _find_image_folder(root, file), file
    found = f"{root}: no COCO annotations for {split} in this folder"
    fix = f"set config.data.{split}_images and config.data.{split}_annotations"
    if split == "val" and (train := _find_file(root, "train")) is not None:
        above = root.absolute().parent
        if train == root / ROBOFLOW and _find_file(above, "val") is not None:
            # Otherwise the advice below would hide the validation images that exist.
            raise UserError(
                f"{found}; the folder above has both splits: use --config.data.root={above}"
            )
        raise Fault(FaultKind.NO_VALIDATION, f"{found}; {NO_VALIDATION}, or {fix}")
    advice = advise_root(root, "coco")
    raise UserError(f"{found}; {advice}" if advice else f"{found}, such as {LAYOUTS}; {fix}")


def _find_file(root: Path, split: str) -> Path | None:
    files = (root / name for name in coco_files(split))
    return next((file for file in files if file.is_file()), None)


def _find_image_folder(root: Path, file: Path) -> Path:
    """Return the folder that the names in an annotation file are relative to.

    Raises:
      UserError: if `root` is the folder of the annotations, without images.
    """
    if file.name in (ROBOFLOW, "result.json"):
        return file.parent  # file names from Label Studio start with images/
    subset = file.stem.removeprefix("instances_")
    year = subset.rstrip("0123456789")
    for name in (subset, f"images/{subset}", year, f"images/{year}", "images"):
        if (root / name).is_dir():
            return root / name
    has_images = any(name.lower().endswith(SUFFIXES) for name in os.listdir(root))
    if root.name == "annotations" and not has_images:
        raise UserError(
            f"{root}: has annotations but no images; use --config.data.root={root.parent}"
        )
    return root
