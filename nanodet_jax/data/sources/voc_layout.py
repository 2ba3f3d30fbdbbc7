"""Layouts of a Pascal VOC dataset: the folders of images and xml files of a split."""

from pathlib import Path
from typing import NamedTuple

from nanodet_jax.data.faults import NO_VALIDATION, Fault, FaultKind, OnFault
from nanodet_jax.data.folder import Folder
from nanodet_jax.data.sources.other_layouts import advise_root, require_folder
from nanodet_jax.errors import UserError

SPLITS = {"train": ("train",), "val": ("val", "valid")}  # Roboflow uses "valid"
UNSPLIT = "default"  # name of the list of all images in CVAT exports
IMAGES = ("JPEGImages", "images")  # Label Studio uses the second name
ANNOTATIONS = ("Annotations", "annotations")

LAYOUTS = (
    "ImageSets/Main/{split}.txt with Annotations/ and JPEGImages/ (VOC2007), {split}/annotations/ "
    "and {split}/images/, or xml files and images together in {split}/ (Roboflow)"
)
FIX = "set config.data.root to the folder of the dataset"


class VocSplit(NamedTuple):
    """Folders and xml files of a split."""

    images: Folder
    annotations: Folder
    names: list[str]  # of the xml files below `annotations`, sorted


def find_split(root: Path, split: str, follow_links: bool, on_fault: OnFault) -> VocSplit:
    """Find the files of the split `train` or `val`.

    The layouts are `root/{train,val}/{images,annotations}`, `root/{train,valid}` with images and
    xml files in one folder, and `root/{JPEGImages,Annotations,ImageSets/Main/{train,val}.txt}`,
    also inside `root/VOC2007` or `root/VOC2012`. Without lists, or if `default.txt` is the only
    one, all images are training images.

    Raises:
      UserError: naming the folder or list that is missing or unusable.
      Fault: of kind NO_VALIDATION, if the split `val` is missing.
      Fault: whatever `on_fault` raises.
    """
    require_folder(root)
    for name in SPLITS[split]:
        if (root / name).is_dir():
            return _in_own_folder(root, root / name, follow_links)
    inner = [root / name for name in ("VOC2007", "VOC2012") if (root / name).is_dir()]
    return _in_common_folder(root, inner[0] if inner else root, split, follow_links, on_fault)


def _in_own_folder(root: Path, folder: Path, follow_links: bool) -> VocSplit:
    if _is_mixed(folder):
        images = annotations = Folder(folder, follow_links)
    else:
        _require_both(root, folder / "images", folder / "annotations")
        images = Folder(folder / "images", follow_links)
        annotations = Folder(folder / "annotations", follow_links)
    names = [name for name in annotations.names() if _is_xml(name)]
    return _checked(root, images, annotations, names, annotations.path)


def _is_mixed(folder: Path) -> bool:
    """Return whether xml files and images share a folder, as in Roboflow exports."""
    if (folder / "images").is_dir() or (folder / "annotations").is_dir():
        return False
    return any(_is_xml(name) for name in Folder(folder).names())


def _in_common_folder(
    root: Path, base: Path, split: str, follow_links: bool, on_fault: OnFault
) -> VocSplit:
    lists = base / "ImageSets" / "Main"
    origin = lists / f"{split}.txt"
    annotations_path = _first_folder(base, ANNOTATIONS)
    if not origin.is_file():
        unsplit = lists / f"{UNSPLIT}.txt"
        has_lists = lists.is_dir() and any(lists.glob("*.txt"))
        if split == "train" and unsplit.is_file():
            origin = unsplit
        elif split != "train" or has_lists or not annotations_path.is_dir():
            problem = f"{root}: no VOC annotations for {split} in this folder"
            layouts = LAYOUTS.format(split=split)
            if split == "val":
                raise Fault(
                    FaultKind.NO_VALIDATION, f"{problem}, such as {layouts}; {NO_VALIDATION}"
                )
            advice = _advise(root)
            raise UserError(f"{problem}{advice or f', such as {layouts}; {FIX}'}")
    images_path = _first_folder(base, IMAGES)
    _require_both(root, images_path, annotations_path)
    images = Folder(images_path, follow_links)
    annotations = Folder(annotations_path, follow_links)
    if not origin.is_file():
        below = annotations.names_below("", str(annotations_path), on_fault)
        names = [name for name in below if _is_xml(name)]
        return _checked(root, images, annotations, names, annotations_path)
    names, missing = [], []
    for line in origin.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        # VOC writes a number after the name; other programs write names with spaces.
        listed = [f"{part.strip()}.xml" for part in (line, line.split()[0])]
        found = [name for name in listed if _exists(annotations, name, str(origin))]
        names += found[:1]
        missing += [] if found else listed[1:]
    if missing:
        first = min(missing)
        message = f"{annotations.path / first}: is missing but listed in {origin}"
        on_fault(Fault(FaultKind.MISSING, f"{message} (the first of {len(missing)})"))
    return _checked(root, images, annotations, names, origin)


def _require_both(root: Path, images: Path, annotations: Path) -> None:
    for folder in (images, annotations):
        if not folder.is_dir():
            raise UserError(f"{folder}: folder is missing{_advise(root)}")


def _advise(root: Path) -> str:
    advice = advise_root(root, "voc")
    return f"; {advice}" if advice else ""


def _checked(
    root: Path, images: Folder, annotations: Folder, names: list[str], origin: Path
) -> VocSplit:
    if not names:
        fix = advise_root(root, "voc") or "each image needs one, even if it has no objects"
        raise UserError(f"{origin}: no xml files; {fix}")
    return VocSplit(images, annotations, sorted(set(names)))


def _exists(annotations: Folder, name: str, where: str) -> bool:
    try:
        return annotations.find(name, where) is not None
    except Fault:  # the name or a link points outside the folder; the target is never read
        return name in annotations  # if it is a link, reading it later reports the fault


def _first_folder(base: Path, names: tuple[str, ...]) -> Path:
    """Return the first folder that exists, or the first one if none does."""
    existing = [base / name for name in names if (base / name).is_dir()]
    return existing[0] if existing else base / names[0]


def _is_xml(name: str) -> bool:
    """Return whether a file is an annotation, unlike ._a.xml, which macOS adds to archives."""
    last = name.rpartition("/")[2]
    return last.lower().endswith(".xml") and last[0] != "."
