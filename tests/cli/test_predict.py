"""`nanodet-jax predict`: what it finds, prints, skips and writes as labels."""

import json
import shutil

import cv2
import numpy as np
import pytest

from nanodet_jax.cli import main as cli
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.inference.detector import Detector
from tests.builders import noise, write_image
from tests.inference.stub import FRACTIONS, LABELS, NAMES, stub_detector


@pytest.fixture
def photos(tmp_path):
    """A folder with images, a subfolder, a broken image and a text file."""
    folder = tmp_path / "photos"
    for name in ("a.png", "b.ppm", "in/c.jpg"):
        write_image(folder / name, noise(40, 80))
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("notes")
    return folder


@pytest.fixture
def predict(monkeypatch, tmp_path, capsys):
    """Return a function that runs the command and returns its exit code and printed lines."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, scores=(0.9, 0.5, 0.375)):
        detector, _ = stub_detector(monkeypatch, scores=scores)
        monkeypatch.setattr(Detector, "load", lambda *_: detector)
        code = cli.main(["predict", *map(str, arguments), "--weights=w.npz"])
        out, err = capsys.readouterr()
        return code, (err if code == 2 else out).splitlines()

    return call


def keys(out):
    return list(json.loads((out / "detections.json").read_text()))


def test_predict_recurses_on_request_and_summarizes_what_it_skipped(predict, photos, tmp_path):
    code, lines = predict(photos)
    assert code == 1
    assert keys(tmp_path / "predictions") == [str(photos / "a.png"), str(photos / "b.ppm")]
    broken = f"{photos / 'broken.jpg'}: not an image that OpenCV can read; "
    assert lines[-4:] == [
        "predictions contains 2 pictures and detections.json; 1 of 3 images could not be read",
        f"skipped 1 (unreadable): {broken}replace or remove it",
        f"skipped 1 (no image suffix): {photos / 'notes.txt'}",
        f"skipped 1 (folders; search them with --recursive): {photos / 'in'}",
    ]
    (photos / "broken.jpg").unlink()
    code, lines = predict(photos, "--recursive")
    assert code == 0
    expected = [photos / "a.png", photos / "b.ppm", photos / "in" / "c.jpg"]
    assert keys(tmp_path / "predictions") == list(map(str, expected))
    assert lines[-1] == f"skipped 1 (no image suffix): {photos / 'notes.txt'}"


def test_predict_names_the_first_of_many_skipped_files(predict, photos):
    for index in range(6):
        (photos / f"broken{index}.jpg").write_text("no image")
        (photos / f"notes{index}.txt").touch()
    _, lines = predict(photos)
    assert lines[-3].startswith(f"skipped 7 (unreadable): {photos / 'broken.jpg'}: ")
    assert lines[-3].endswith(" and 4 more")
    assert lines[-2] == (
        "skipped 7 (no image suffix): "
        f"{photos / 'notes.txt'}, {photos / 'notes0.txt'}, {photos / 'notes1.txt'} and 4 more"
    )


@pytest.mark.parametrize("suffix", [".bmp", ".dib", ".gif", ".jp2", ".pgm", ".tiff", ".webp"])
def test_predict_reads_every_format_of_opencv_with_a_header(predict, tmp_path, suffix):
    file = tmp_path / "photos" / f"a{suffix}"
    file.parent.mkdir()
    try:
        written = cv2.imwrite(str(file), noise(40, 80)[..., : 1 if suffix == ".pgm" else 3])
    except cv2.error:
        written = False
    if not written:
        pytest.skip(f"this OpenCV cannot write {suffix}")
    code, _ = predict(tmp_path / "photos")
    assert code == 0
    assert keys(tmp_path / "predictions") == [str(file)]


@pytest.mark.parametrize(
    ("scores", "line"),
    [
        ((0.254, 0.2, 0.1), "nothing above 0.35; best score 0.25"),
        ((0.9, 0.5, 0.375), "1 cat, 1 dog"),
    ],
)
def test_predict_prints_the_best_score_of_an_image_without_objects(predict, photos, scores, line):
    _, lines = predict(photos / "a.png", scores=scores)
    assert lines[0] == f"{photos / 'a.png'}: {line}"


def test_predict_without_any_detection_prints_the_limit_of_the_network(
    predict, photos, monkeypatch
):
    found = Detector.__call__

    def nothing(self, image):
        return found(self, image, classes=[])

    monkeypatch.setattr(Detector, "detect_one", nothing)
    _, lines = predict(photos / "a.png", "--threshold=0.5")
    assert lines[0] == f"{photos / 'a.png'}: nothing above 0.05"


def test_threshold_below_that_of_the_network_prints_a_note(predict, photos):
    code, lines = predict(photos / "a.png", "--threshold=0.01")
    assert code == 0
    assert lines[0] == "note: objects with a score of 0.05 or less are never reported"
    assert lines[-1] == "predictions contains 1 picture and detections.json"


def test_threshold_outside_0_to_1_is_an_error(predict, photos):
    code, lines = predict(photos, "--threshold=35")
    assert (code, lines) == (2, ["error: threshold=35.0: must be a number from 0 to 1"])


@pytest.mark.parametrize(("options", "count"), [((), 2), (("--draw-all",), 3)])
@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_saved_labels_are_the_drawn_objects(predict, photos, tmp_path, kind, options, count):
    out = tmp_path / "out"
    code, lines = predict(photos, "--recursive", f"--save-labels={kind}", f"--out={out}", *options)
    assert code == 1
    path = out / {"coco": "labels.json", "yolo": "labels"}[kind]
    assert any(line.startswith(f"{path} contains the labels of 3 images; ") for line in lines)
    if kind == "coco":
        source = CocoSource(photos, path)
    else:
        shutil.copytree(photos, out / "images")
        (out / "images" / "b.ppm").unlink()  # this source does not read the format
        (out / "images" / "broken.jpg").unlink()
        (out / "labels" / "b.txt").unlink()
        source = YoloSource(out, "train")
    assert [category.name for category in source.categories] == list(NAMES)
    assert len(source) == {"coco": 3, "yolo": 2}[kind]
    for index in range(len(source)):
        record = source[index]
        np.testing.assert_allclose(record.boxes, FRACTIONS[:count] * (80, 40, 80, 40), atol=1e-5)
        np.testing.assert_array_equal(record.labels, LABELS[:count])


def test_labels_of_an_earlier_run_are_an_error_before_anything_is_written(
    predict, photos, tmp_path
):
    out = tmp_path / "out"
    arguments = (photos / "a.png", "--save-labels=yolo", f"--out={out}")
    assert predict(*arguments)[0] == 0
    (out / "labels" / "a.txt").write_text("0 .5 .5 .5 .5\n")
    (out / "detections.json").unlink()
    code, lines = predict(*arguments)
    assert code == 2
    assert lines == [
        f"error: {out / 'labels'}: already exists, and corrections in it would be lost; use a "
        "different --out, or move it elsewhere"
    ]
    assert (out / "labels" / "a.txt").read_text() == "0 .5 .5 .5 .5\n"
    assert not (out / "detections.json").exists()


def test_interrupted_predict_writes_the_labels_so_far(predict, photos, tmp_path, monkeypatch):
    found, calls = Detector.detect_one, []

    def interrupted(self, image):
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return found(self, image)

    monkeypatch.setattr(Detector, "detect_one", interrupted)
    assert predict(photos, "--save-labels=coco", f"--out={tmp_path / 'out'}")[0] == 130
    source = CocoSource(photos, tmp_path / "out" / "labels.json")
    assert [source[index].name for index in range(len(source))] == ["a.png"]
