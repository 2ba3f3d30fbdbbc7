"""The detector as a user calls it, the files that it is loaded from, and the command line."""

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
from nanodet_jax.io import torch_names
from nanodet_jax.io.weights import ABOUT, Weights, load_weights, save_weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables

SHARED = Path(__file__).parents[3] / "shared" / "weights"
NAMES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def weights():
    """A random network that is sure of what it sees, or nothing would be found."""
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
    """Blots of three sizes of image, uint8 BGR."""
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
    for a, b in zip(ours, theirs):
        np.testing.assert_array_equal(a, b)


def test_what_is_found(detector, images):
    for image in images:
        found = detector(image)
        height, width = image.shape[:2]
        count = len(found.scores)
        assert 0 < count <= 100
        assert found.boxes.shape == (count, 4)
        assert len(found.class_names) == len(found.labels) == count
        assert found.class_names == [NAMES[label] for label in found.labels]
        assert np.all(found.scores > 0.05) and np.all(np.diff(found.scores) <= 0)
        assert np.all(found.boxes >= 0) and np.all(found.boxes <= [width, height, width, height])
        assert np.all(found.boxes[:, :2] <= found.boxes[:, 2:])
    assert detector.class_names == NAMES


def test_path_array_and_list_give_the_same(detector, images, folder):
    alone = [detector(image) for image in images]
    files = [folder / f"{i}.png" for i in range(len(images))]
    for given in (images, tuple(images), files, [str(file) for file in files]):
        together = detector(given)
        assert isinstance(together, list)
        assert len(together) == len(alone)
        for ours, theirs in zip(together, alone):
            assert_same(ours, theirs)
    for file, theirs in zip(files, alone):
        assert_same(detector(file), theirs)
        assert_same(detector(str(file)), theirs)
    assert detector([]) == []


def test_grey_is_taken_for_three_channels(detector, images):
    grey = cv2.cvtColor(images[0], cv2.COLOR_BGR2GRAY)
    assert_same(detector(grey), detector(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)))


def test_a_view_is_as_good_as_a_copy(detector, images):
    flipped = images[0][:, ::-1]
    assert_same(detector(flipped), detector(flipped.copy()))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "uint8"),
        (np.zeros((8, 8, 3), np.int64), "uint8"),
        (np.zeros((8, 8, 4), np.uint8), "3 channels"),
        (np.zeros((2, 8, 8, 3), np.uint8), "height, width"),
        (np.zeros((0, 8, 3), np.uint8), "height, width"),
        (np.zeros(8, np.uint8), "height, width"),
    ],
)
def test_arrays_that_are_no_images(detector, pixels, message):
    with pytest.raises(UserError, match=message):
        detector(pixels)
    with pytest.raises(UserError, match=message):
        detector([np.zeros((8, 8, 3), np.uint8), pixels])


def test_files_that_are_no_images(detector, folder, tmp_path):
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


def test_proportions_are_kept_where_the_training_kept_them(weights, images):
    config = Config(input_size=(64, 64), model=weights.config.model)
    config.data.keep_ratio = True
    found = Detector(weights._replace(config=config))(images[0])
    assert len(found.scores) > 0
    assert np.all(found.boxes <= [80, 48, 80, 48])


def test_names_are_made_up_where_none_are_known(weights, images):
    detector = Detector(weights._replace(class_names=()))
    assert detector.class_names == ("class 0", "class 1", "class 2")


def test_saved_and_loaded_bit_for_bit(file, weights):
    loaded = load_weights(file)
    assert loaded.config == weights.config
    assert loaded.class_names == NAMES
    ours, theirs = torch_names.flatten(loaded.variables), torch_names.flatten(weights.variables)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array)


def rewrite(path, change):
    """The same archive with other arrays."""
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
    "one array and no archive": lone_array,
    "an array missing": lambda path: rewrite(path, lambda arrays: arrays.pop(SOME)),
    "an array too many": lambda path: rewrite(path, lambda a: a.update(other=a[SOME])),
    "another shape": lambda path: rewrite(path, lambda a: a.update({SOME: a[SOME][1:]})),
    "no description": lambda path: rewrite(path, lambda arrays: arrays.pop(ABOUT)),
    "description cut": lambda path: rewrite(path, lambda a: a.update({ABOUT: a[ABOUT][:-9]})),
    "pickled": lambda path: rewrite(path, lambda a: a.update({SOME: np.array([None])})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_refused_by_name(file, tmp_path, damage):
    path = tmp_path / "damaged.npz"
    shutil.copy(file, path)
    DAMAGE[damage](path)
    with pytest.raises(UserError, match=str(path)):
        load_weights(path)


def test_weights_that_are_not_there_or_not_weights(tmp_path):
    (tmp_path / "weights.bin").touch()
    for name in ("missing.npz", "missing.pth", "weights.bin", "."):
        with pytest.raises(UserError, match=str(tmp_path)):
            Detector.load(tmp_path / name)


def test_weights_are_written_whole_or_not_at_all(weights, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "tiny.bin", tmp_path / "file" / "tiny.npz"):
        with pytest.raises(UserError, match=path.name):
            save_weights(path, weights)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_predict(detector, images, folder, file, tmp_path, capsys):
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
        boxes, scores, names, _ = detector(image)
        assert [row["class"] for row in rows] == names
        assert_same([row["score"] for row in rows], scores)
        assert_same([row["box_xyxy"] for row in rows], boxes)


def test_predict_leaves_out_what_cannot_be_read(folder, file, tmp_path, capsys):
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


def arrays_of(path):
    with np.load(path) as archive:
        return {name: archive[name].tobytes() for name in archive.files}


def test_convert_changes_no_bit(file, tmp_path, capsys):
    out = tmp_path / "deep" / "converted.npz"
    assert cli.main(["convert", str(file), str(out)]) == 0
    assert "3 classes" in capsys.readouterr().out
    assert arrays_of(out) == arrays_of(file)


@pytest.mark.parametrize("case", ["no image", "an empty folder", "no weights", "text", "suffix"])
def test_what_the_user_can_mend_is_one_line(file, folder, tmp_path, capsys, case):
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
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert str(named) in said
    assert not out.exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED.parent.name}/{SHARED.name} is not here")
def test_published_weights_convert(tmp_path, capsys):
    source, out = SHARED / "nanodet-m_320.pth", tmp_path / "nanodet-m_320.npz"
    assert cli.main(["convert", str(source), str(out)]) == 0
    assert "width 1.0, 80 classes" in capsys.readouterr().out
    ours, theirs = load_weights(out), load_weights(source)
    assert ours.config == theirs.config
    assert ours.class_names == theirs.class_names == COCO_CLASSES
    ours, theirs = torch_names.flatten(ours.variables), torch_names.flatten(theirs.variables)
    assert_same([ours[name] for name in sorted(ours)], [theirs[name] for name in sorted(theirs)])
