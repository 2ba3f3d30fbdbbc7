"""`Detector`, the files it is loaded from, and the `predict` and `convert` commands."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from nanodet_jax.cli import main as cli
from nanodet_jax.coco_classes import COCO_CLASSES
from nanodet_jax.config import Config, Model
from nanodet_jax.errors import UserError
from nanodet_jax.inference.detector import Detector
from nanodet_jax.inference.results import ImageDetections
from nanodet_jax.io import torch_names
from nanodet_jax.io.weights import ABOUT, Weights, load_weights, save_weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables
from nanodet_jax.visualize import draw_detections
from tests.tools import detector_memory

SHARED = Path(__file__).parents[3] / "shared" / "weights"
NAMES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def weights():
    """A random network with large outputs, so that scores exceed the threshold."""
    model = Model(num_classes=len(NAMES), width=0.5, channels=32, stacked_convs=1)
    random = np.random.default_rng(0)
    flat = {}
    for name, leaf in torch_names.flatten(abstract_variables(build_model(model))).items():
        if name.endswith(("scale", "var")):
            value = np.ones(leaf.shape)
        elif name.endswith("kernel"):
            value = random.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            value = random.normal(size=leaf.shape) * 0.5
        flat[name] = value.astype(np.float32)
    return Weights(torch_names.unflatten(flat), Config(input_size=(64, 64), model=model), NAMES)


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    save_weights(path, weights)
    return path


@pytest.fixture(scope="module")
def detector(file):
    return Detector.load(file)


@pytest.fixture(scope="module")
def images():
    """Blurred noise in three image sizes, uint8 BGR."""
    random = np.random.default_rng(0)
    return [
        cv2.resize(random.integers(0, 256, (6, 6, 3), np.uint8), size[::-1])
        for size in ((48, 80), (100, 60), (64, 64))
    ]


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for i, image in enumerate(images):
        cv2.imwrite(str(path / f"{i}.png"), image)
    (path / "notes.txt").write_text("no image")
    return path


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_found(ours, theirs):
    """Check that detections are equal, bit for bit."""
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def assert_close_found(ours, theirs):
    """Check that detections differ by the rounding of float32 at most."""
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)


def test_detections_are_ordered_bounded_and_named(detector, images):
    for image in images:
        found = detector(image)
        boxes, scores, labels = found.boxes, found.scores, found.labels
        height, width = image.shape[:2]
        assert 0 < len(scores) <= 100
        assert boxes.shape == (len(scores), 4)
        assert len(found) == len(labels) == len(scores)
        assert found.names == found.class_names == [NAMES[label] for label in labels]
        assert np.all(scores > 0.05) and np.all(np.diff(scores) <= 0)
        assert np.all(boxes >= 0) and np.all(boxes <= [width, height, width, height])
        assert np.all(boxes[:, :2] <= boxes[:, 2:])
    assert detector.class_names == NAMES
    height, width = detector.config.input_size
    shown = (
        f"Detector({detector.config.name!r}, input_size=({height}, {width}), {len(NAMES)} classes)"
    )
    assert repr(detector) == shown


def test_path_array_and_list_give_the_same_detections(detector, images, folder):
    alone = [detector(image) for image in images]
    files = [folder / f"{i}.png" for i in range(len(images))]
    for given in (images, tuple(images), files, [str(file) for file in files]):
        together = detector(given)
        assert isinstance(together, list)
        assert len(together) == len(alone)
        for ours, theirs in zip(together, alone):
            assert_close_found(ours, theirs)
    for file, theirs in zip(files, alone):
        assert_same_found(detector(file), theirs)
        assert_same_found(detector(str(file)), theirs)
    assert detector([]) == []


def test_detector_compiles_once_for_all_sizes_and_lengths_of_one_batch_shape(detector, images):
    for image in images:
        detector(image)
    detector(images)
    detector([*images, images[0]])
    for count in (1, 4):
        assert detector._program((count, 64, 64, 3))._cache_size() == 1
    assert detector.num_programs == 2


@pytest.mark.slow
def test_detector_memory_tool_prints_memory_and_programs(capsys):
    assert detector_memory.main(["--calls=10", "--sizes=4", "--side=32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["calls", "seconds", "resident", "MB", "programs"]
    assert len(lines) == 12
    assert lines[-2].split()[-1] == "2"  # one image, and the list of the tenth call
    assert lines[-1].endswith("at most 64 programs")


def test_gray_image_equals_its_three_channel_copy(detector, images):
    gray = cv2.cvtColor(images[0], cv2.COLOR_BGR2GRAY)
    assert_same_found(detector(gray), detector(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)))


def test_non_contiguous_view_equals_its_copy(detector, images):
    flipped = images[0][:, ::-1]
    assert_same_found(detector(flipped), detector(flipped.copy()))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "uint8"),
        (np.zeros((8, 8, 3), np.int64), "uint8"),
        (np.zeros((8, 8, 2), np.uint8), "3 or 4 channels"),
        (np.zeros((2, 8, 8, 3, 1), np.uint8), "height, width"),
        (np.zeros((0, 8, 3), np.uint8), "height, width"),
        (np.zeros(8, np.uint8), "height, width"),
    ],
)
def test_array_of_another_dtype_or_shape_is_rejected(detector, pixels, message):
    with pytest.raises(UserError, match=message):
        detector(pixels)
    with pytest.raises(UserError, match=rf"^images\[1\] has .*{message}"):
        detector([np.zeros((8, 8, 3), np.uint8), pixels])


def test_unreadable_file_is_named(detector, folder, tmp_path):
    for name in ("missing.jpg", "text.jpg", "cut.png", "empty.png"):
        path = tmp_path / name
        if name == "text.jpg":
            path.write_text("no image")
        elif name == "cut.png":
            path.write_bytes((folder / "0.png").read_bytes()[:-20])
        elif name == "empty.png":
            path.touch()
        for given in (path, str(path), [folder / "0.png", path]):
            with pytest.raises(UserError, match=name):
                detector(given)


def test_keep_ratio_of_the_training_config_is_applied(weights, images):
    config = Config(input_size=(64, 64), model=weights.config.model)
    config.data.keep_ratio = True
    detections = Detector(weights._replace(config=config))(images[0])
    assert len(detections.scores) > 0
    assert np.all(detections.boxes <= [80, 48, 80, 48])


def test_weights_without_class_names_get_numbered_names(weights, images):
    detector = Detector(weights._replace(class_names=()))
    assert detector.class_names == ("class 0", "class 1", "class 2")


def test_saved_weights_load_bit_for_bit(file, weights):
    loaded = load_weights(file)
    assert loaded.config == weights.config
    assert loaded.class_names == NAMES
    ours, theirs = torch_names.flatten(loaded.variables), torch_names.flatten(weights.variables)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array)


def rewrite(path, change):
    """Apply `change` to the arrays of an archive."""
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(path, **arrays)


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def lone_array(path):
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


SOME = "params/head/output_0/bias"
DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "a byte changed": flip_a_byte,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "a single array": lone_array,
    "an array missing": lambda path: rewrite(path, lambda arrays: arrays.pop(SOME)),
    "an extra array": lambda path: rewrite(path, lambda a: a.update(other=a[SOME])),
    "another shape": lambda path: rewrite(path, lambda a: a.update({SOME: a[SOME][1:]})),
    "no description": lambda path: rewrite(path, lambda arrays: arrays.pop(ABOUT)),
    "description cut": lambda path: rewrite(path, lambda a: a.update({ABOUT: a[ABOUT][:-9]})),
    "pickled": lambda path: rewrite(path, lambda a: a.update({SOME: np.array([None])})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_rejected_by_name(file, tmp_path, damage):
    path = tmp_path / "damaged.npz"
    shutil.copy(file, path)
    DAMAGE[damage](path)
    with pytest.raises(UserError, match=str(path)):
        load_weights(path)


def test_missing_or_foreign_weights_are_rejected_by_name(tmp_path):
    (tmp_path / "weights.bin").touch()
    for name in ("missing.npz", "missing.pth", "weights.bin", "."):
        with pytest.raises(UserError, match=str(tmp_path)):
            Detector.load(tmp_path / name)


def test_failed_save_leaves_no_file(weights, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "tiny.bin", tmp_path / "file" / "tiny.npz"):
        with pytest.raises(UserError, match=path.name):
            save_weights(path, weights)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_predict_writes_pictures_and_all_detections(
    detector, images, folder, file, tmp_path, capsys
):
    again = tmp_path / "more"
    again.mkdir()
    shutil.copy(folder / "1.png", again / "0.png")
    out = tmp_path / "deep" / "out"
    given = [folder, again / "0.png"]
    assert cli.main(["predict", *map(str, given), "--weights", str(file), "--out", str(out)]) == 0
    assert f"{out} contains 4 pictures and detections.json" in capsys.readouterr().out
    pictures = {path.stem: cv2.imread(str(path)) for path in out.glob("*.jpg")}
    assert set(pictures) == {"0", "1", "2", "0_2"}
    assert pictures["1"].shape == pictures["0_2"].shape == images[1].shape
    found = json.loads((out / "detections.json").read_text())
    assert list(found) == [*(str(folder / f"{i}.png") for i in range(3)), str(again / "0.png")]
    for rows, image in zip(found.values(), [*images, images[1]]):
        found = detector(image)
        assert [row["class"] for row in rows] == found.names
        assert_same([row["score"] for row in rows], found.scores)
        assert_same([row["box_xyxy"] for row in rows], found.boxes)


def test_predict_skips_unreadable_images(folder, file, tmp_path, capsys):
    mixed, out = tmp_path / "mixed", tmp_path / "out"
    mixed.mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(folder / name, mixed)
    (mixed / "broken.jpg").write_bytes(b"no image")
    height, width = cv2.imread(str(folder / "0.png")).shape[:2]
    assert height * width < cv2.imread(str(folder / "1.png"))[..., 0].size
    predict = ["predict", str(mixed), "--weights", str(file), "--out", str(out)]

    assert cli.main(predict) == 1
    said = capsys.readouterr().out
    assert f"skipped: {mixed / 'broken.jpg'}" in said
    assert f"{out} contains 2 pictures and detections.json; 1 of 3 images could not be read" in said
    found = json.loads((out / "detections.json").read_text())
    assert list(found) == [str(mixed / "0.png"), str(mixed / "1.png")]

    assert cli.main([*predict, f"--max-megapixels={height * width / 1e6}"]) == 1
    assert f"skipped: {mixed / '1.png'}" in capsys.readouterr().out
    assert list(json.loads((out / "detections.json").read_text())) == [str(mixed / "0.png")]


@pytest.mark.parametrize(
    ("options", "count"), [([], "1 cat, 1 dog"), (["--draw-all"], "2 cat, 1 dog")]
)
def test_predict_draws_and_counts_one_class_per_object_unless_asked(
    options, count, file, folder, tmp_path, capsys, monkeypatch
):
    boxes = np.array([[0, 0, 40, 40], [1, 0, 40, 40], [50, 0, 70, 40]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.7], np.float32), np.array([1, 0, 0], np.int32)
    detections = ImageDetections(boxes, scores, labels, (48, 80), NAMES)
    monkeypatch.setattr(Detector, "detect_one", lambda self, image: detections)
    arguments = ["predict", str(folder / "0.png"), f"--weights={file}", f"--out={tmp_path}"]
    assert cli.main([*arguments, *options]) == 0
    assert f"0.png: {count}\n" in capsys.readouterr().out
    rows = json.loads((tmp_path / "detections.json").read_text())[str(folder / "0.png")]
    assert [row["class"] for row in rows] == ["dog", "cat", "cat"]  # the file has all of them
    pixels, drawn = cv2.imread(str(folder / "0.png")), cv2.imread(str(tmp_path / "0.jpg"))
    expected = draw_detections(pixels, boxes, scores, labels, NAMES, draw_all=bool(options))
    other = draw_detections(pixels, boxes, scores, labels, NAMES, draw_all=not options)
    assert np.abs(drawn.astype(int) - expected).mean() < np.abs(drawn.astype(int) - other).mean()


def arrays_of(path):
    with np.load(path) as archive:
        return {name: archive[name].tobytes() for name in archive.files}


def test_convert_changes_no_bit(file, tmp_path, capsys):
    out = tmp_path / "deep" / "converted.npz"
    assert cli.main(["convert", str(file), str(out)]) == 0
    assert "3 classes" in capsys.readouterr().out
    assert arrays_of(out) == arrays_of(file)


@pytest.mark.parametrize("case", ["no image", "an empty folder", "no weights", "text", "suffix"])
def test_user_error_is_one_line_that_names_the_file(file, folder, tmp_path, capsys, case):
    out, empty, text = tmp_path / "out", tmp_path / "empty", tmp_path / "text.pth"
    empty.mkdir()
    text.write_text("no weights")
    predict = ["predict", "--out", out]
    arguments, named = {
        "no image": ([*predict, "--weights", file, empty / "0.jpg"], empty / "0.jpg"),
        "an empty folder": ([*predict, "--weights", file, empty], empty),
        "no weights": ([*predict, "--weights", empty / "w.npz", folder], empty / "w.npz"),
        "text": ([*predict, "--weights", text, folder], text),
        "suffix": (["convert", file, out / "tiny.bin"], out / "tiny.bin"),
    }[case]
    assert cli.main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert str(named) in message
    assert not out.exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED.parent.name}/{SHARED.name} is missing")
def test_convert_keeps_config_names_and_arrays_of_published_weights(tmp_path, capsys):
    source, out = SHARED / "nanodet-m_320.pth", tmp_path / "nanodet-m_320.npz"
    assert cli.main(["convert", str(source), str(out)]) == 0
    assert "width 1.0, 80 classes" in capsys.readouterr().out
    ours, theirs = load_weights(out), load_weights(source)
    assert ours.config == theirs.config
    assert ours.class_names == theirs.class_names == COCO_CLASSES
    ours, theirs = torch_names.flatten(ours.variables), torch_names.flatten(theirs.variables)
    assert_same([ours[name] for name in sorted(ours)], [theirs[name] for name in sorted(theirs)])
