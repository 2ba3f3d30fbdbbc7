"""Corrected copies: no fault is left, and training data are as with tolerated faults."""

import json
from pathlib import Path

import numpy as np
import pytest

from nanodet_jax.cli.main import main
from nanodet_jax.config import Config, Data
from nanodet_jax.data.faults import FaultKind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.records import Record
from nanodet_jax.doctor.fix.boxes import (
    CLIPPED,
    MISSING,
    RENUMBERED,
    REPEATED,
    RESIZED,
    SWAPPED,
    TOO_SMALL,
    Changes,
    correct_box,
)
from nanodet_jax.doctor.fix.dataset import correct_dataset
from nanodet_jax.doctor.scan import scan
from nanodet_jax.errors import UserError
from tests.doctor.test_same_faults import COUNT, HEIGHT, WIDTH, WRITERS, Splits, dataset

FAULTS = {
    1: ("cat", 45, 10, 5, 60),  # inverted
    2: ("cat", 70, 10, 120, 60),  # outside, at the right
    3: ("dog", -20, 10, 40, 60),  # outside, at the left
    4: ("dog", 5, 10, 5, 60),  # no area
}


def faulty(data_format: str) -> Splits:
    splits = dataset()
    train = splits["train"]
    for index, box in FAULTS.items():
        train[index].boxes[0] = box
    train[6].boxes.append(train[6].boxes[1])
    if data_format != "yolo":
        train[7] = train[7]._replace(size=(WIDTH, 2 * HEIGHT))
    return splits


def config_of(data_format: str, root: Path) -> Config:
    return Config(data=Data(format=data_format, root=str(root), workers=1))  # type: ignore[arg-type]


def with_flags(config: Config, flags: list[str]) -> Config:
    for flag in flags:
        field, _, value = flag.removeprefix("--config.data.").partition("=")
        setattr(config.data, field, value)
    return config


def expected_boxes(record: Record, image: int) -> list[list[float]]:
    """Return what training learns from an image with tolerated faults, without repetitions."""
    boxes = np.clip(record.boxes, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).tolist()
    if image == 1:
        boxes.insert(0, [5.0, 10.0, 45.0, 60.0])
    return [box for position, box in enumerate(boxes) if box not in boxes[:position]]


@pytest.mark.parametrize("data_format", WRITERS)
def test_fixed_copy_has_no_fault_and_the_same_training_data(data_format, tmp_path):
    root, out = tmp_path / "data", tmp_path / "fixed"
    WRITERS[data_format](root, faulty(data_format))
    [missing] = [path for path in root.rglob("train5.png")]
    missing.unlink()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    config = config_of(data_format, root)
    tolerant = open_source(config, "train", lambda _: None)
    records = {tolerant[i].name.rpartition("/")[2]: tolerant[i] for i in range(len(tolerant))}

    fixed = correct_dataset(config, out)
    expected = {MISSING: 1, SWAPPED: 1, CLIPPED: 2, TOO_SMALL: 1, REPEATED: 1, RESIZED: 1}
    if data_format == "coco":
        expected[MISSING] += 4  # its annotations
    if data_format == "yolo":
        del expected[RESIZED]
    assert fixed.changes == {"train": expected, "val": {}}
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before

    config = with_flags(config, fixed.flags)
    for split in ("train", "val"):
        scanned = scan(config, split, progress=False)
        assert [str(fault) for fault in scanned.faults] == []
        assert scanned.images == COUNT - (split == "train")
    corrected = open_source(config, "train")
    for record in (corrected[i] for i in range(len(corrected))):
        name = record.name.rpartition("/")[2]
        image = int(name.removeprefix("train").removesuffix(".png"))
        wanted = expected_boxes(records[name], image)
        if data_format == "voc" and image == 7:
            assert (record.width, record.height) == (WIDTH, HEIGHT)
        np.testing.assert_allclose(record.boxes, wanted, atol=1e-4, err_msg=name)


def test_fix_of_coco_renumbers_repeated_ids_and_keeps_other_fields(tmp_path):
    root = tmp_path / "data"
    WRITERS["coco"](root, dataset())
    content = json.loads((root / "train.json").read_text())
    content["info"] = {"year": 2026}
    content["images"][3]["id"] = 3  # annotations of image 4 then have no image
    content["annotations"][1]["id"] = 1
    content["annotations"][0] |= {"bbox": [90, 10, 30, 20], "score": 0.5}
    (root / "train.json").write_text(json.dumps(content))
    fixed = correct_dataset(config_of("coco", root), tmp_path / "out")
    assert fixed.changes["train"] == {RENUMBERED: 2, MISSING: 4, CLIPPED: 1}
    written = json.loads((tmp_path / "out" / "train.json").read_text())
    assert written["info"] == {"year": 2026}
    assert [image["id"] for image in written["images"]][:5] == [1, 2, 3, COUNT + 1, 5]
    first = written["annotations"][0]
    assert first == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [90, 10, 10, 20], "area": 200,
        "score": 0.5,
    }  # fmt: skip
    ids = [item["id"] for item in written["annotations"]]
    assert len(set(ids)) == len(ids) == 4 * COUNT - 4


def test_what_cannot_be_corrected_is_copied(tmp_path):
    root = tmp_path / "data"
    splits = dataset()
    splits["train"][2].boxes[0] = ("?", 5, 10, 45, 60)
    WRITERS["yolo"](root, splits)
    fixed = correct_dataset(config_of("yolo", root), tmp_path / "out")
    assert fixed.changes == {"train": {}, "val": {}}
    found = scan(with_flags(config_of("yolo", root), fixed.flags), "train", progress=False)
    assert [fault.kind for fault in found.faults] == [FaultKind.CLASSES]


def test_numbers_that_are_not_finite_are_copied(tmp_path):
    root = tmp_path / "data"
    WRITERS["coco"](root, dataset())
    content = json.loads((root / "train.json").read_text())
    content["annotations"][0]["bbox"][0] = float("nan")
    (root / "train.json").write_text(json.dumps(content))
    fixed = correct_dataset(config_of("coco", root), tmp_path / "out")
    assert fixed.changes == {"train": {}, "val": {}}
    found = scan(with_flags(config_of("coco", root), fixed.flags), "train", progress=False)
    assert [fault.kind for fault in found.faults] == [FaultKind.NUMBERS]


def test_broken_xml_is_left_out(tmp_path):
    root = tmp_path / "data"
    WRITERS["voc"](root, dataset())
    (root / "train" / "annotations" / "train3.xml").write_text("<annotation>")
    fixed = correct_dataset(config_of("voc", root), tmp_path / "out")
    assert fixed.changes == {"train": {}, "val": {}}
    [error] = fixed.left_out
    assert error.startswith(f"{root / 'train' / 'annotations' / 'train3.xml'}: ")
    found = scan(with_flags(config_of("voc", root), fixed.flags), "train", progress=False)
    assert (found.faults, found.images) == ([], COUNT - 1)


def test_doctor_fix_names_the_files_that_it_leaves_out(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    WRITERS["voc"](root, dataset())
    broken = root / "train" / "annotations" / "train3.xml"
    broken.write_text("<annotation>")
    flags = [f"--config.data.root={root}", "--config.data.val_fraction=0.25"]
    assert main(["doctor", "voc", "--fix", str(out), *flags]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "found nothing that --fix corrects",
        f"left out of the copy: {broken}: invalid xml: no element found: line 1, column 12",
    ]
    assert lines[3:] == [
        "  --config.data.format=voc",
        f"  --config.data.root={out}",
        "  --config.data.val_fraction=0.25",
        "",
        "no serious problems remain in the copy",
    ]


@pytest.mark.parametrize("data_format", ["tfds", "shapes"])
def test_fix_of_another_format_is_an_error(data_format, tmp_path):
    with pytest.raises(UserError, match=f"not config.data.format={data_format}"):
        correct_dataset(config_of(data_format, tmp_path), tmp_path / "out")


def test_fix_writes_to_a_new_folder_only(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    WRITERS["coco"](root, dataset())
    out.mkdir()
    (out / "mine.txt").write_text("")
    with pytest.raises(UserError, match="is not an empty folder; use a new folder"):
        correct_dataset(config_of("coco", root), out)
    with pytest.raises(UserError, match="is inside the dataset"):
        correct_dataset(config_of("coco", root), root / "fixed")
    (root / "val.json").write_text("{")
    with pytest.raises(UserError, match="invalid json"):
        correct_dataset(config_of("coco", root), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_doctor_fix_prints_the_changes_and_the_flags(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    WRITERS["voc"](root, faulty("voc"))
    flags = ["--config.data.format=voc", f"--config.data.root={root}"]
    assert main(["doctor", "voc", "--fix", str(out), *flags]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 2 boxes outside their image: clipped",
        "train: 1 boxes smaller than one pixel: dropped",
        "train: 1 duplicate boxes: dropped",
        "train: 1 images with a wrong width or height: size corrected",
        "train: 1 inverted boxes: corners swapped",
        f"{out}: corrected copy; the data of the config is unchanged. To use the copy:",
        "  --config.data.format=voc",
        f"  --config.data.root={out}",
        "",
        "no serious problems remain in the copy",
    ]
    assert main(["doctor", "voc", "--fix", str(out), *flags]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("data_format", WRITERS)
def test_doctor_fix_counts_the_unreadable_images_that_it_leaves(data_format, tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    WRITERS[data_format](root, dataset())
    images = sorted(root.rglob("*.png"))
    images[0].write_bytes(b"not an image")
    images[1].write_bytes(images[1].read_bytes()[:-20])
    flags = [f"--config.data.format={data_format}", f"--config.data.root={root}"]
    assert main(["doctor", "voc", "--fix", str(out), *flags]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 2 unreadable images: left as they are"
    assert lines[1].startswith(f"{out}: corrected copy; ")
    remaining = lines.index("SERIOUS problems that remain in the copy:")
    assert lines[remaining + 1] == "  * unreadable images in train: 2"
    assert lines[remaining + 3] == "      and 1 more (--all lists them)"
    assert lines[remaining + 4] == (
        "    -> replace the images, or remove them from the annotations"
    )
    assert len(lines) == remaining + 5


def test_doctor_fix_json_is_the_changes_the_flags_and_the_report_of_the_copy(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    WRITERS["yolo"](root, dataset())
    flags = ["--config.data.format=yolo", f"--config.data.root={root}"]
    assert main(["doctor", "yolo", "--json", "--fix", str(out), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changes"] == {"train": {}, "val": {}}
    assert found["left_out"] == []
    assert found["flags"] == ["--config.data.format=yolo", f"--config.data.root={out}"]
    assert (found["serious"], found["splits"]["train"]["images"]) == (False, COUNT)


@pytest.mark.parametrize(
    ("box", "expected", "change"),
    [
        ((10, 10, 20, 20), (10, 10, 20, 20), None),
        ((20, 10, 10, 20), (10, 10, 20, 20), SWAPPED),
        ((-5, 10, 20, 20), (0, 10, 25, 20), CLIPPED),  # moved, as training moves it
        ((90, 10, 120, 20), (90, 10, 100, 20), CLIPPED),
        ((10, 10, 10.5, 20), None, TOO_SMALL),
    ],
)
def test_correct_box_swaps_clips_and_drops(box, expected, change):
    changes = Changes()
    assert correct_box(box, (100, 80), changes, smallest=(1, 1)) == expected
    assert changes == ({} if change is None else {change: 1})
