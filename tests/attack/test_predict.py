"""`nanodet-jax predict` on files with unusual names, and interrupted."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from nanodet_jax import visualize
from nanodet_jax.cli import predict as cli
from nanodet_jax.cli.main import main
from nanodet_jax.errors import UserError
from nanodet_jax.inference.detector import Detector
from tests.io.test_hostile_weights import weights as npz

SURROGATE = os.fsdecode(b"bad\xffbyte.png")
PNG = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.npz"
    return npz(path, about=lambda about: about["config"].update(input_size=[32, 32]))


@pytest.fixture(scope="module")
def detector(file):
    return Detector.load(file)


@pytest.fixture
def predict(file, detector, tmp_path, monkeypatch):
    """Function that runs the command and returns its exit code and detections.json."""
    monkeypatch.setattr(cli.Detector, "load", lambda *_: detector)

    def call(*images):
        out = tmp_path / "out"
        code = main(["predict", *map(str, images), f"--weights={file}", f"--out={out}"])
        text = out / "detections.json"
        return code, json.loads(text.read_text()) if text.exists() else None

    return call


def make(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(PNG)
    return [folder / name for name in names]


def pictures(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_predict_keeps_unusual_file_names_as_keys(predict, tmp_path, capsys):
    names = (SURROGATE, "\x1b[2J.png", "a\nb.png", "\u202egnp.png", "..jpg", "-.png", "~x.png")
    files = make(tmp_path / "in", *names)
    code, found = predict(tmp_path / "in")
    assert code == 0
    assert {os.fsencode(name) for name in found} == {os.fsencode(file) for file in files}
    assert set(pictures(tmp_path)) == {
        *(f"{Path(name).stem}.jpg" for name in names),
        "detections.json",
    }
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\u202e" not in said and "\udcff" not in said


def test_predict_of_a_name_that_starts_with_a_tilde_reads_that_file(predict, tmp_path, monkeypatch):
    make(tmp_path / "in", "~no_such_user.png")
    monkeypatch.chdir(tmp_path / "in")
    code, found = predict(".")
    assert (code, list(found)) == (0, ["~no_such_user.png"])


def test_predict_skips_an_unreadable_file_with_an_unusual_name(predict, tmp_path, capsys):
    make(tmp_path / "in", "a.png")
    (tmp_path / "in" / SURROGATE).write_bytes(b"no image")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    code, found = predict(tmp_path / "in")
    assert code == 1 and list(found) == [str(tmp_path / "in" / "a.png")]
    assert "2 of 3 images could not be read" in capsys.readouterr().out


def test_predict_numbers_pictures_of_equal_names(predict, tmp_path):
    first = make(tmp_path / "in", "x.png", "x.bmp", "X.webp", "x_2.png", "detections.png")
    second = make(tmp_path / "more", "x.png", "detections.png")
    code, found = predict(*first, *second)
    assert code == 0 and len(found) == 7
    expected = "x.jpg x_2.jpg X_3.jpg x_2_2.jpg x_4.jpg detections.jpg detections_2.jpg"
    assert pictures(tmp_path) == sorted([*expected.split(), "detections.json"])


def test_predict_of_names_of_255_bytes_writes_separate_pictures(predict, tmp_path):
    ending = ".png"
    stems = ["x" * 251, "x" * 250 + "y", "é" * 125]
    bare = make(tmp_path / "in", *(stem + ending for stem in stems), "z" * 255)
    code, found = predict(*bare)
    assert code == 0 and len(found) == 4
    assert len(pictures(tmp_path)) == 5


def test_predict_of_the_same_image_twice_succeeds(predict, tmp_path, capsys):
    [file] = make(tmp_path / "in", "x.png")
    code, _ = predict(file, file)
    assert code == 0
    assert "could not be read" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [UserError("the disk is full"), KeyboardInterrupt(), MemoryError()]
)
def test_predict_interrupted_by_an_error_writes_the_results_so_far(
    predict, tmp_path, monkeypatch, error, capsys
):
    files = make(tmp_path / "in", "a.png", "b.png", "c.png")
    save = visualize.save_image

    def save_or_fail(path, image):
        if path.name == "c.jpg":
            raise error
        save(path, image)

    monkeypatch.setattr(visualize, "save_image", save_or_fail)
    assert predict(*files)[0] == (130 if isinstance(error, KeyboardInterrupt) else 2)
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert list(found) == [str(file) for file in files[:2]]
    assert "contains the objects in 2 of 3 images" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights there")
def test_predict_replaces_links_in_the_output_folder_and_keeps_their_targets(predict, tmp_path):
    [file] = make(tmp_path / "in", "x.png")
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_text("untouched")
    for name in ("x.jpg", "detections.json"):
        (out / name).symlink_to(victim)
    code, _ = predict(file)
    assert code == 0 and victim.read_text() == "untouched"
    assert not any(path.is_symlink() for path in out.iterdir())


def test_predict_accepts_a_larger_input_with_max_input_side(tmp_path, capsys):
    [file] = make(tmp_path / "in", "x.png")
    path = npz(tmp_path / "w.npz", about=lambda about: about["config"].update(input_size=[96, 96]))
    arguments = ["predict", str(file), f"--weights={path}", f"--out={tmp_path / 'out'}"]
    assert main([*arguments, "--max-input-side=64"]) == 2
    said = capsys.readouterr().err
    assert f"{path}: config.input_size=96,96: sides must be at most 64" in said
    assert "--max-input-side" in said
    assert main([*arguments, "--max-input-side=96"]) == 0


@pytest.mark.parametrize("given", ["nan", "-1", "0"])
def test_predict_with_invalid_max_megapixels_is_an_error(file, tmp_path, capsys, given):
    [image] = make(tmp_path / "in", "x.png")
    arguments = [f"--weights={file}", f"--out={tmp_path / 'out'}", f"--max-megapixels={given}"]
    assert main(["predict", str(image), *arguments]) == 2
    assert "max_megapixels=" in capsys.readouterr().err


def test_predict_of_a_name_too_long_for_the_file_system_prints_one_line(file, tmp_path, capsys):
    assert main(["predict", str(tmp_path / ("x" * 300)), f"--weights={file}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("spelling", ["out", "out/../out", "link"])
def test_predict_never_overwrites_an_input_image(predict, tmp_path, capsys, spelling):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    make(tmp_path / "out", "x.jpg", "y.png")
    code, detections = predict(tmp_path / spelling)
    assert code == 2 and detections is None
    assert "x.jpg: is one of the input images" in capsys.readouterr().err
    assert {path.read_bytes() for path in (tmp_path / "out").iterdir()} == {PNG}
