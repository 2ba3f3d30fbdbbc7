"""Errors for a folder whose layout does not belong to the configured format."""

from pathlib import Path

import pytest

from nanodet_jax.config import Config, Data
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.sources import other_layouts
from nanodet_jax.data.sources.other_layouts import advise_root
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.errors import UserError
from tests import formats

RECORDS = list(ShapesSource("train", 64, 1))
NAMES = {"coco": "COCO json", "voc": "Pascal VOC", "yolo": "YOLO"}


def error(root: Path, data_format: str, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        open_source(Config(data=Data(format=data_format, root=str(root))), split)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("write", formats.FORMATS)
def test_folder_of_another_format_is_recognized(write, tmp_path):
    root = tmp_path / "data"
    write(root, RECORDS)
    right, _ = formats.FORMATS[write]
    advice = (
        f"this folder looks like a {NAMES[right]} dataset: use --config.data.format={right}, or "
        f"{right}:FOLDER in config.data.sources"
    )
    for wrong in NAMES.keys() - {right}:
        for split in ("train", "val"):
            assert error(root, wrong, split).endswith(f"; {advice}"), wrong
    assert advise_root(root, right) == ""


def test_folder_of_another_format_has_one_message_for_each_format(tmp_path):
    voc, yolo = tmp_path / "voc", tmp_path / "yolo"
    formats.write_voc2007(voc, RECORDS)
    formats.write_yolo(yolo, RECORDS)
    use_voc, use_yolo = advise_root(voc, "yolo"), advise_root(yolo, "voc")
    assert error(voc, "yolo") == f"{voc}: no data.yaml in this folder; {use_voc}"
    assert error(voc, "coco") == f"{voc}: no COCO annotations for train in this folder; {use_voc}"
    assert error(yolo, "voc") == f"{yolo}: no VOC annotations for train in this folder; {use_yolo}"
    (yolo / "train").mkdir()
    assert error(yolo, "voc") == f"{yolo / 'train' / 'images'}: folder is missing; {use_yolo}"


@pytest.mark.parametrize("write", formats.FORMATS)
def test_folder_inside_a_dataset_is_recognized(write, tmp_path):
    root = tmp_path / "data"
    write(root, RECORDS)
    right, _ = formats.FORMATS[write]
    (root / "part" / "inner").mkdir(parents=True)
    for data_format in NAMES:
        flags = "" if data_format == right else f" --config.data.format={right}"
        for inside in (root / "part", root / "part" / "inner"):
            assert error(inside, data_format).endswith(
                f"; the dataset seems to be in a folder above: use --config.data.root={root}{flags}"
            )


def test_advice_lists_few_names_and_follows_no_links(tmp_path, monkeypatch):
    formats.write_label_studio_voc(tmp_path / "data", RECORDS)
    (tmp_path / "top" / "links").mkdir(parents=True)
    (tmp_path / "top" / "links" / "train").symlink_to(tmp_path / "data" / "Annotations")
    assert advise_root(tmp_path / "top" / "links", "coco") == ""
    assert advise_root(tmp_path / "data", "coco") != ""
    monkeypatch.setattr(other_layouts, "MAX_FOLDERS", 0)
    assert advise_root(tmp_path / "data", "coco") == ""


def test_root_that_is_a_file_is_an_error_with_the_fix(tmp_path):
    file = tmp_path / "train.json"
    file.write_text("{}")
    start = f"{file}: is a file; set config.data.root to the folder of the dataset"
    assert error(file, "voc") == start
    assert error(file, "yolo") == f"{start}, or to its data.yaml"
    assert error(file, "coco") == (
        f"{start}, or use config.data.train_images and config.data.train_annotations instead"
    )
