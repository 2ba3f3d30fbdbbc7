"""Small data sets in YOLO's layout, and what the reader tells of them."""

from pathlib import Path

from PIL import Image

from nanodet_jax.data.faults import Fault
from nanodet_jax.data.sources.yolo import YoloSource

YAML = "{train: images/train, val: images/val, names: [cat, dog, cow]}"
LINE = "1 .5 .5 .25 .5\n"


def write(root: Path, name: str, text: str | None = LINE, size=(100, 80), exif=None) -> None:
    """An image of (width, height), and its labels if there are any."""
    image = root / name
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(image, **({"exif": exif} if exif else {}))
    if text is not None:
        labels = root / Path(name.replace("images/", "labels/")).with_suffix(".txt")
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(text)


def write_set(folder: Path) -> Path:
    """A data set of one image, in a folder beside which lies another."""
    root = folder / "data"
    write(root, "images/train/a.png")
    write(folder / "other", "images/train/b.png")
    (root / "data.yaml").write_text(YAML)
    return root


def faults(root: Path) -> list[Fault]:
    """All that the reader tells, with every record read."""
    told: list[Fault] = []
    list(YoloSource(root, "train", on_fault=told.append))
    return told
