"""YOLO datasets without a data.yaml: exports from CVAT and Label Studio."""

from typing import Any, NamedTuple

from nanodet_jax.data.folder import Folder, read_annotation

NAMES_LIMIT = 1 << 18  # bytes; as for a data.yaml


class Export(NamedTuple):
    """Description of an export."""

    name: str  # of the file that describes it
    names_file: str  # defines the classes
    content: dict[str, Any]  # as in a data.yaml


# What to add to an export that lacks a split.
ADDITIONS = {
    "obj.data": {
        "train": "add the line train = train.txt",
        "val": "add the line valid = valid.txt",
    },
    "classes.txt": {"val": "add the folders images/val and labels/val"},
}


def describe_export(folder: Folder) -> Export | None:
    """Return the description of an export.

    The layouts are:

    - CVAT, YOLO 1.1: `obj.data`, which refers to `obj.names` and the lists `train.txt` and
      `valid.txt`; images and labels in one folder.
    - Label Studio and labelImg: `classes.txt`, `images/` and `labels/`, possibly with `train/` and
      `val/` in each.

    Return None if the folder has neither layout.

    Raises:
      Fault: if one of the files cannot be read.
    """
    if folder.find("obj.data", str(folder.path)) is not None:
        return _read_obj_data(folder)
    if folder.find("classes.txt", str(folder.path)) is not None:
        return Export("classes.txt", "classes.txt", _describe_folders(folder))
    return None


def _read_obj_data(folder: Folder) -> Export:
    """Read `obj.data`, which has lines such as `train = data/train.txt`."""
    fields = {}
    for line in _lines(folder, "obj.data"):
        key, _, value = line.partition("=")
        fields[key.strip()] = value.strip()
    names_file = _below(fields.get("names", "obj.names"))
    content: dict[str, Any] = {"names": _lines(folder, names_file)}
    for split, key in (("train", "train"), ("val", "valid")):
        if key in fields:
            content[split] = fields[key]
    return Export("obj.data", names_file, content)


def _below(path: str) -> str:
    """Drop a leading `data/`, the name of the export's folder in old versions of CVAT."""
    return path.replace("\\", "/").removeprefix("data/")


def _describe_folders(folder: Folder) -> dict[str, Any]:
    content: dict[str, Any] = {"names": _lines(folder, "classes.txt")}
    for split, names in (("train", ("train",)), ("val", ("val", "valid"))):
        for name in names:
            if folder.find(f"images/{name}", str(folder.path)) is not None:
                content[split] = f"images/{name}"
    if "train" not in content:
        content["train"] = "images" if folder.find("images", str(folder.path)) else "."
    return content


def _lines(folder: Folder, name: str) -> list[str]:
    """Return the non-empty lines of a text file."""
    folder.find(name, str(folder.path / name))  # rejects paths and links to the outside
    data = read_annotation(folder.path / name, NAMES_LIMIT, "the description of a dataset")
    text = data.decode("utf-8-sig", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
