"""Locations of the images and annotations of a split, in the usual layouts of COCO datasets."""

from pathlib import Path

from nanodet_jax.data.faults import NO_VALIDATION
from nanodet_jax.errors import UserError

# Names of the splits. The annotations of a dataset without splits are training data.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
UNSPLIT = ("default", "all")
YEARS = ("2017", "2014", "")
LAYOUTS = (
    "train/_annotations.coco.json (Roboflow), annotations/instances_train2017.json (COCO), "
    "annotations/instances_default.json (CVAT), result.json (Label Studio), train.json"
)


def find_split(root: Path, split: str) -> tuple[Path, Path]:
    """Return the folder of images and the annotation file of a split, `train` or `val`.

    Raises:
      UserError: listing the layouts, if `root` has none of them for this split.
    """
    if not root.is_dir():
        raise UserError(f"{root}: folder is missing")
    for file in _candidates(root, split):
        if file.is_file():
            return _find_image_folder(root, file), file
    found = f"{root}: no COCO annotations for {split} in this folder, such as {LAYOUTS}"
    fix = f"set config.data.{split}_images and config.data.{split}_annotations"
    if split == "val":
        fix = f"{NO_VALIDATION}, or {fix}"
    raise UserError(f"{found}; {fix}")


def _candidates(root: Path, split: str) -> list[Path]:
    names = SPLITS[split]
    files = [root / name / "_annotations.coco.json" for name in names]
    stems = [f"instances_{name}{year}" for name in names for year in YEARS]
    stems += [f"{name}{year}" for name in names for year in YEARS]
    # CVAT writes subset names as the user typed them, often capitalized.
    stems += [f"instances_{name.capitalize()}" for name in names]
    files += [root / "annotations" / f"{stem}.json" for stem in stems]
    files += [root / f"{stem}.json" for stem in stems]
    if split == "train":
        files.append(root / "_annotations.coco.json")
        files += [root / "annotations" / f"instances_{name}.json" for name in UNSPLIT]
        files += [root / "result.json", root / "annotations.json", root / "instances.json"]
    return files


def _find_image_folder(root: Path, file: Path) -> Path:
    """Return the folder that the names in an annotation file are relative to."""
    if file.name in ("_annotations.coco.json", "result.json"):
        return file.parent  # file names from Label Studio start with images/
    subset = file.stem.removeprefix("instances_")
    year = subset.rstrip("0123456789")
    for name in (subset, f"images/{subset}", year, f"images/{year}", "images"):
        if (root / name).is_dir():
            return root / name
    return root
