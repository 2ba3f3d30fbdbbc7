"""The same fault in each format: the same kind, severity and count, and no other findings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from nanodet_jax.config import Config, Data, Training
from nanodet_jax.doctor import report
from nanodet_jax.doctor.memory import Memory
from tests.builders import noise, voc_xml, write_image

WIDTH, HEIGHT = 100, 80
NAMES = ("cat", "dog")
COUNT = 26  # images of a split; each has a cat and a dog, so that no class is rare
FORMATS = ("coco", "voc", "yolo")

Box = tuple[str, int, int, int, int]  # name and xyxy in pixels


class Image(NamedTuple):
    """An image of the dataset; a fault is planted by changing its fields or its file."""

    name: str
    boxes: list[Box]
    size: tuple[int, int] = (WIDTH, HEIGHT)  # as annotated
    seed: int = 0  # of the pixels


Splits = dict[str, list[Image]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Replace the slow parts that do not depend on faults: priors and memory."""
    monkeypatch.setattr(report, "priors_per_object", lambda records, *_: np.ones(count(records)))
    enough = Memory(
        step=1, state=1, image=1, device_free=9, largest_batch=9, cache=1, cache_limit=1,
        host_free=9,
    )  # fmt: skip
    monkeypatch.setattr(report, "estimate_memory", lambda *_: enough)


def count(records) -> int:
    return sum(len(record.boxes) for record in records)


def dataset() -> Splits:
    boxes: list[Box] = [("cat", 5, 10, 45, 60), ("dog", 50, 20, 90, 70)] * 2
    moved = [(name, x1 + i % 2, y1, x2, y2) for i, (name, x1, y1, x2, y2) in enumerate(boxes)]
    distinct = [(name, x1, y1 + i // 2, x2, y2) for i, (name, x1, y1, x2, y2) in enumerate(moved)]
    return {
        split: [
            Image(f"{split}{i}.png", list(distinct), seed=i + 1000 * (split == "val"))
            for i in range(COUNT)
        ]
        for split in ("train", "val")
    }


def write_coco(root: Path, splits: Splits) -> None:
    for split, images in splits.items():
        listed = [name for image in images for name, *_ in image.boxes if name != "?"]
        ids = {name: i for i, name in enumerate(dict.fromkeys([*NAMES, *listed]), start=1)}
        annotations = [
            {
                "image_id": image_id,
                "category_id": ids.get(name, 77),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            for image_id, image in enumerate(images, 1)
            for name, x1, y1, x2, y2 in image.boxes
        ]
        content = {
            "images": [
                {"id": i, "file_name": image.name, "width": image.size[0], "height": image.size[1]}
                for i, image in enumerate(images, 1)
            ],
            "annotations": [{"id": i, **item} for i, item in enumerate(annotations, 1)],
            "categories": [{"id": i, "name": name} for name, i in ids.items()],
        }
        for image in images:
            write_pixels(root / split / image.name, image)
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / f"{split}.json").write_text(json.dumps(content))


def write_voc(root: Path, splits: Splits) -> None:
    for split, images in splits.items():
        (root / split / "annotations").mkdir(parents=True)
        (root / split / "images").mkdir()
        for image in images:
            boxes = [(box[0].replace("?", ""), *box[1:]) for box in image.boxes]
            text = voc_xml(*boxes, filename=image.name, width=image.size[0], height=image.size[1])
            file = root / split / "annotations" / image.name.replace(".png", ".xml")
            file.write_text(text)
            write_pixels(root / split / "images" / image.name, image)


def write_yolo(root: Path, splits: Splits) -> None:
    boxes = [box for images in splits.values() for image in images for box in image.boxes]
    names = list(dict.fromkeys([*NAMES, *(name for name, *_ in boxes if name != "?")]))
    for split, images in splits.items():
        (root / "labels" / split).mkdir(parents=True)
        (root / "images" / split).mkdir(parents=True)
        for image in images:
            lines = []
            for name, x1, y1, x2, y2 in image.boxes:
                label = names.index(name) if name in names else 77
                x, w = (x1 + x2) / 2 / WIDTH, (x2 - x1) / WIDTH
                y, h = (y1 + y2) / 2 / HEIGHT, (y2 - y1) / HEIGHT
                lines.append(f"{label} {x} {y} {w} {h}\n")
            file = root / "labels" / split / image.name.replace(".png", ".txt")
            file.write_text("".join(lines))
            write_pixels(root / "images" / split / image.name, image)
    yaml = f"train: images/train\nval: images/val\nnames: {names}\n"
    (root / "data.yaml").write_text(yaml)


def write_pixels(file: Path, image: Image) -> None:
    write_image(file, noise(HEIGHT, WIDTH, image.seed))


WRITERS: dict[str, Callable[[Path, Splits], None]] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
}


def examine(root: Path, data_format: str, classes: tuple[str, ...] = ()) -> report.Report:
    config = Config(
        input_size=(320, 320),
        data=Data(format=data_format, root=str(root), batch_size=4, workers=1, classes=classes),  # type: ignore[arg-type]
        training=Training(epochs=10, warmup_steps=0, eval_every=5),
    )
    return report.examine(config, progress=False)


def image_file(root: Path, data_format: str, image: Image, split: str = "train") -> Path:
    [file] = [path for path in root.rglob(image.name) if split in path.parts]
    return file


def change_box(box: Box) -> Callable[[Splits], None]:
    def change(splits: Splits) -> None:
        splits["train"][3].boxes[0] = box

    return change


def duplicate_box(splits: Splits) -> None:
    boxes = splits["train"][3].boxes
    boxes.append(boxes[1])


def wrong_size(splits: Splits) -> None:
    splits["train"][4] = splits["train"][4]._replace(size=(WIDTH, 2 * HEIGHT))


def same_image(splits: Splits) -> None:
    seed = splits["train"][7].seed
    splits["val"][2] = splits["val"][2]._replace(seed=seed)


def no_image(splits: Splits) -> None:
    splits["val"].clear()


def new_class(split: str) -> Callable[[Splits], None]:
    def change(splits: Splits) -> None:
        for image in splits[split]:
            x1, y1, x2, y2 = image.boxes[0][1:]
            image.boxes.extend([("owl", x1 + 2, y1, x2, y2), ("owl", x1 + 3, y1, x2, y2)])

    return change


def remove(file: Path) -> None:
    file.unlink()


def damage(file: Path) -> None:
    file.write_bytes(b"not an image")


class Case(NamedTuple):
    """A fault: how it is planted, and (kind, severity, count) of what the doctor finds."""

    plant: Callable[[Splits], None]
    expected: list[tuple[str, str, int]]
    formats: tuple[str, ...] = FORMATS
    damage: Callable[[Path], None] = lambda _: None  # of the image train[5]


def nothing(_: Splits) -> None:
    pass


CASES = {
    "none": Case(nothing, []),
    "missing image": Case(nothing, [("missing", "serious", 1)], damage=remove),
    "unreadable image": Case(nothing, [("unreadable", "serious", 1)], damage=damage),
    "unknown class": Case(change_box(("?", 5, 10, 45, 60)), [("classes", "serious", 1)]),
    "inverted box": Case(change_box(("cat", 45, 10, 5, 60)), [("inverted", "serious", 1)]),
    "box outside": Case(change_box(("cat", 70, 10, 120, 60)), [("outside", "costly", 1)]),
    "box outside, left": Case(change_box(("cat", -20, 10, 40, 60)), [("outside", "costly", 1)]),
    "box without area": Case(change_box(("cat", 5, 10, 5, 60)), [("empty", "note", 1)]),
    "duplicate box": Case(duplicate_box, [("duplicates", "costly", 1)]),
    "wrong size": Case(wrong_size, [("size", "serious", 1)], ("coco", "voc")),
    "empty split": Case(no_image, [("file", "serious", 1)]),
    "image of both splits": Case(same_image, [("images_in_both_splits", "serious", 1)]),
    "class in train": Case(new_class("train"), [("class_without_validation_boxes", "costly", 1)]),
    "class in val": Case(new_class("val"), [("class_without_training_boxes", "serious", 1)]),
}


@pytest.mark.parametrize("name", CASES)
def test_fault_has_the_same_kind_severity_and_count_in_each_format(name, tmp_path):
    case = CASES[name]
    for data_format in case.formats:
        root, splits = tmp_path / data_format, dataset()
        case.plant(splits)
        WRITERS[data_format](root, splits)
        case.damage(image_file(root, data_format, splits["train"][5]))
        found = examine(root, data_format).findings
        listed = [(f.kind, f.severity.name.lower(), f.count) for f in found]
        assert listed == case.expected, data_format


@pytest.mark.parametrize("data_format", FORMATS)
def test_findings_that_follow_from_a_fault_are_left_out(data_format, tmp_path):
    """All boxes of a class have a fault, and so does an image that a batch needs."""
    splits = dataset()
    for image in splits["train"]:
        image.boxes[:] = [
            ("cat", *box[1:]) if box[0] == "cat" else ("dog", box[3], *box[2:3], box[1], box[4])
            for box in image.boxes
        ]
    WRITERS[data_format](tmp_path, splits)
    found = examine(tmp_path, data_format).findings
    assert [(f.kind, f.count) for f in found] == [("inverted", 2 * COUNT)]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("data_format", FORMATS)
def test_a_missing_split_is_one_finding(data_format, split, tmp_path):
    root = tmp_path / "data"
    WRITERS[data_format](root, dataset())
    folder = root / "images" / split if data_format == "yolo" else root / split
    folder.rename(tmp_path / "away")
    found = examine(root, data_format).findings
    # The annotations of COCO are elsewhere, and each of their images is missing.
    kind, number = ("missing", COUNT) if data_format == "coco" else ("file", 1)
    if (data_format, split) == ("voc", "val"):  # nothing else names this split
        kind = "no_validation"
    assert [(f.kind, f.severity.name, f.count) for f in found] == [(kind, "SERIOUS", number)]


def test_a_broken_xml_of_voc_is_one_finding(tmp_path):
    """Classes are read from the training split; the xml may hold the only box of a class."""
    splits = dataset()
    new_class("val")(splits)
    splits["train"][3].boxes.append(("owl", 5, 10, 45, 60))
    write_voc(tmp_path, splits)
    file = tmp_path / "train" / "annotations" / "train3.xml"
    file.write_text(file.read_text()[:60])
    found = examine(tmp_path, "voc").findings
    assert [(f.kind, f.split, f.count) for f in found] == [("file", "train", 1)]


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_misspelt_class_is_one_finding_of_the_config(data_format, tmp_path):
    WRITERS[data_format](tmp_path, dataset())
    found = examine(tmp_path, data_format, classes=("cat", "dgo")).findings
    assert [(f.kind, f.severity.name, f.count) for f in found] == [("config", "SERIOUS", 1)]
    assert found[0].examples[0].endswith("did you mean 'dog'?")
