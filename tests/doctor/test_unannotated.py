"""Notes of the doctor about images without annotations."""

import json

from nanodet_jax.config import Config, Data
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.doctor.findings import NOTHING_LOST, Lost, Severity
from nanodet_jax.doctor.unannotated import find_unlabeled, find_unlisted
from tests.builders import write_yolo_image
from tests.formats import file_name, write_coco

RECORDS = list(ShapesSource("train", 64, 5))


def open_records(config):
    source = open_source(config, "train")
    return [source[index] for index in range(len(source))]


def test_images_that_the_coco_file_does_not_list_are_a_note(tmp_path):
    write_coco(tmp_path, RECORDS)
    (tmp_path / "train2017" / "notes.txt").write_text("")
    config = Config(data=Data(format="coco", root=str(tmp_path)))
    assert find_unlisted(config, open_records(config), NOTHING_LOST) == []
    file = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    removed = [image["id"] for image in content["images"][3:]]
    kept = [item for item in content["annotations"] if item["image_id"] not in removed]
    file.write_text(json.dumps({**content, "images": content["images"][:3], "annotations": kept}))
    [found] = find_unlisted(config, open_records(config), NOTHING_LOST)
    folder, first = tmp_path / "train2017", file_name(RECORDS[3])
    assert found.title == f"2 images in {folder} are not in the annotations, such as {first}"
    assert found.fix == "annotate them if they contain objects; training does not use them"
    assert (found.severity, found.count) == (Severity.NOTE, 2)
    assert find_unlisted(config, open_records(config), Lost(images=1, entries=1)) == []


def test_yolo_images_without_a_label_file_are_a_note(tmp_path):
    write_yolo_image(tmp_path, "images/a.png")
    write_yolo_image(tmp_path, "images/b.png", "")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    config = Config(data=Data(format="yolo", root=str(tmp_path)))
    assert find_unlabeled(config, "train", open_records(config)) == []
    write_yolo_image(tmp_path, "images/c.png", None)
    [found] = find_unlabeled(config, "train", open_records(config))
    assert found.title == "1 of 3 images in train have no label file, such as images/c.png"
    assert found.fix == "none needed if they contain no objects; otherwise add their label files"
    assert (found.severity, found.split, found.examples) == (
        Severity.NOTE,
        "train",
        ("images/c.png",),
    )
