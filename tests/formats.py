"""One dataset in each supported format and export: the same images, boxes and classes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as masks

from nanodet_jax.data.records import Record
from nanodet_jax.data.sources.shapes import NAMES
from tests.builders import voc_xml

Records = Sequence[Record]


def write_pixels(file: Path, record: Record) -> None:
    """Write the image of a record losslessly."""
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), record.image)


def file_name(record: Record) -> str:
    """Return the name of an image file; names sort in the order of the records."""
    return f"{record.image_id:04d}.png"


def write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def coco_content(
    records: Records,
    name: Callable[[Record], str] = file_name,
    annotate: Callable[[Record, list[int]], dict[str, Any]] | None = None,
    first_category: int = 1,
) -> dict[str, Any]:
    """Return records as a COCO file; `annotate` returns the fields of a box (x, y, w, h)."""
    annotations = []
    for record in records:
        for box, label in zip(record.boxes.astype(int).tolist(), record.labels.tolist()):
            x1, y1, x2, y2 = box
            xywh = [x1, y1, x2 - x1, y2 - y1]
            fields = {"bbox": xywh, "area": xywh[2] * xywh[3]}
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": record.image_id,
                    "category_id": label + first_category,
                    "iscrowd": 0,
                    **(fields if annotate is None else annotate(record, xywh)),
                }
            )
    return {
        "images": [
            {"id": r.image_id, "file_name": name(r), "width": r.width, "height": r.height}
            for r in records
        ],
        "annotations": annotations,
        "categories": [
            {"id": id, "name": name, "supercategory": ""}
            for id, name in enumerate(NAMES, first_category)
        ],
    }


def write_coco(root: Path, records: Records) -> None:
    """The layout of COCO itself."""
    for record in records:
        write_pixels(root / "train2017" / file_name(record), record)
    write_text(root / "annotations" / "instances_train2017.json", json.dumps(coco_content(records)))


def write_roboflow_coco(root: Path, records: Records) -> None:
    """Annotations among the images, and category 0 above the others."""
    content = coco_content(records)
    for category in content["categories"]:
        category["supercategory"] = "shapes"
    content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
    for record in records:
        write_pixels(root / "train" / file_name(record), record)
    write_text(root / "train" / "_annotations.coco.json", json.dumps(content))


def write_polygons_coco(root: Path, records: Records) -> None:
    """Polygons without boxes."""

    def polygon(record: Record, box: list[int]) -> dict[str, Any]:
        x, y, w, h = box
        return {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}

    for record in records:
        write_pixels(root / "images" / file_name(record), record)
    write_text(root / "train.json", json.dumps(coco_content(records, annotate=polygon)))


def write_masks_coco(root: Path, records: Records) -> None:
    """Compressed masks and lists of run lengths without boxes, alternately."""

    def mask(record: Record, box: list[int]) -> dict[str, Any]:
        x, y, w, h = box
        pixels = np.zeros((record.height, record.width), np.uint8, order="F")
        pixels[y : y + h, x : x + w] = 1
        size = [record.height, record.width]
        if x % 2:
            counts = masks.encode(pixels)["counts"].decode()
            return {"segmentation": {"size": size, "counts": counts}, "bbox": None}
        changes = np.flatnonzero(np.diff(pixels.ravel(order="F"), prepend=0, append=2))
        runs = np.diff(changes, prepend=0).tolist()
        return {"segmentation": {"size": size, "counts": runs}, "bbox": []}

    for record in records:
        write_pixels(root / "train" / file_name(record), record)
    write_text(root / "train.json", json.dumps(coco_content(records, annotate=mask)))


def write_label_studio_coco(root: Path, records: Records) -> None:
    """result.json of an older version; ids from 0."""
    content = coco_content(records, lambda r: f"images/{file_name(r)}", first_category=0)
    for record in records:
        write_pixels(root / "images" / file_name(record), record)
    write_text(root / "result.json", json.dumps(content))


def write_label_studio_windows_coco(root: Path, records: Records) -> None:
    r"""result.json of version 1.16 on Windows: ..\..\label-studio\...\upload\4\a.png."""
    prefix = "..\\..\\label-studio\\label-studio\\media\\upload\\4\\"
    content = coco_content(records, lambda r: prefix + file_name(r), first_category=0)
    for record in records:
        write_pixels(root / "images" / file_name(record), record)
    write_text(root / "result.json", json.dumps(content))


def write_cvat_coco(root: Path, records: Records) -> None:
    for record in records:
        write_pixels(root / "images" / "default" / file_name(record), record)
    file = root / "annotations" / "instances_default.json"
    write_text(file, json.dumps(coco_content(records)))


def record_xml(record: Record, filename: str) -> str:
    objects = [
        (NAMES[label], *box)
        for box, label in zip(record.boxes.astype(int).tolist(), record.labels.tolist())
    ]
    return voc_xml(*objects, filename=filename, width=record.width, height=record.height)


def write_voc2007(root: Path, records: Records) -> None:
    for record in records:
        name = file_name(record)
        write_pixels(root / "JPEGImages" / name, record)
        write_text(root / "Annotations" / f"{name[:-4]}.xml", record_xml(record, name))
    names = "".join(f"{file_name(record)[:-4]}\n" for record in records)
    write_text(root / "ImageSets" / "Main" / "train.txt", names)


def write_roboflow_voc(root: Path, records: Records) -> None:
    for record in records:
        name = file_name(record)
        write_pixels(root / "train" / name, record)
        write_text(root / "train" / f"{name[:-4]}.xml", record_xml(record, name))


def write_label_studio_voc(root: Path, records: Records) -> None:
    """`images` without a list; <filename> lacks the suffix."""
    for record in records:
        name = file_name(record)
        write_pixels(root / "images" / name, record)
        write_text(root / "Annotations" / f"{name[:-4]}.xml", record_xml(record, name[:-4]))


def write_cvat_voc(root: Path, records: Records) -> None:
    """One list, default.txt, and images in a folder of their own."""
    for record in records:
        name = f"shift 1/{file_name(record)}"
        write_pixels(root / "JPEGImages" / name, record)
        write_text(root / "Annotations" / f"{name[:-4]}.xml", record_xml(record, name))
    names = "".join(f"shift 1/{file_name(record)[:-4]}\n" for record in records)
    write_text(root / "ImageSets" / "Main" / "default.txt", names)
    write_text(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:::\n")


def yolo_lines(record: Record, digits: int | None = None) -> str:
    """Return the label file of a record; numbers have all digits if `digits` is None."""
    size = np.array([record.width, record.height] * 2, float)
    lines = []
    for box, label in zip(record.boxes.astype(float), record.labels.tolist()):
        x1, y1, x2, y2 = box / size
        values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        texts = [repr(float(v)) if digits is None else f"{v:.{digits}f}" for v in values]
        lines.append(" ".join([str(label), *texts]))
    return "\n".join(lines) + "\n"


def write_yolo(root: Path, records: Records) -> None:
    for record in records:
        name = file_name(record)
        write_pixels(root / "images" / "train" / name, record)
        write_text(root / "labels" / "train" / f"{name[:-4]}.txt", yolo_lines(record))
    write_text(root / "data.yaml", f"train: images/train\nnames: {list(NAMES)}\n")


def write_windows_yolo(root: Path, records: Records) -> None:
    """Windows paths in data.yaml and in the list of images."""
    write_yolo(root, records)
    lines = [f".\\images\\train\\{file_name(record)}\n" for record in records]
    write_text(root / "lists" / "all.txt", "".join(lines))
    yaml = f"path: D:\\work\\data\ntrain: D:\\work\\data\\lists\\all.txt\nnames: {list(NAMES)}\n"
    write_text(root / "data.yaml", yaml)


def write_label_studio_yolo(root: Path, records: Records) -> None:
    for record in records:
        name = file_name(record)
        write_pixels(root / "images" / name, record)
        write_text(root / "labels" / f"{name[:-4]}.txt", yolo_lines(record))
    write_text(root / "classes.txt", "\n".join(NAMES))
    write_text(root / "notes.json", '{"categories": [], "info": {"contributor": "Label Studio"}}')


def write_cvat_yolo(root: Path, records: Records) -> None:
    """YOLO 1.1 of an older version, whose paths start with data/."""
    for record in records:
        name = file_name(record)
        write_pixels(root / "obj_train_data" / name, record)
        write_text(root / "obj_train_data" / f"{name[:-4]}.txt", yolo_lines(record, digits=6))
    write_text(root / "obj.names", "\n".join(NAMES) + "\n")
    text = "classes = 4\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    write_text(root / "obj.data", text)
    names = "".join(f"data/obj_train_data/{file_name(record)}\n" for record in records)
    write_text(root / "train.txt", names)


def write_cvat_ultralytics(root: Path, records: Records) -> None:
    for record in records:
        name = file_name(record)
        write_pixels(root / "images" / "train" / name, record)
        write_text(root / "labels" / "train" / f"{name[:-4]}.txt", yolo_lines(record, digits=6))
    names = "".join(f"data/images/train/{file_name(record)}\n" for record in records)
    write_text(root / "train.txt", names)
    listed = "".join(f"  {label}: {name}\n" for label, name in enumerate(NAMES))
    write_text(root / "data.yaml", f"path: ./\ntrain: train.txt\nnames:\n{listed}")


# Format of the config, and whether the text has all digits of the boxes.
FORMATS: dict[Callable[[Path, Records], None], tuple[str, bool]] = {
    write_coco: ("coco", True),
    write_roboflow_coco: ("coco", True),
    write_polygons_coco: ("coco", True),
    write_masks_coco: ("coco", True),
    write_label_studio_coco: ("coco", True),
    write_label_studio_windows_coco: ("coco", True),
    write_cvat_coco: ("coco", True),
    write_voc2007: ("voc", True),
    write_roboflow_voc: ("voc", True),
    write_label_studio_voc: ("voc", True),
    write_cvat_voc: ("voc", True),
    write_yolo: ("yolo", True),
    write_windows_yolo: ("yolo", True),
    write_label_studio_yolo: ("yolo", True),
    write_cvat_yolo: ("yolo", False),
    write_cvat_ultralytics: ("yolo", False),
}
