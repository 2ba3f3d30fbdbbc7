"""Calls of `Detector`: kinds of input, options, batches, and the number of compiled programs."""

import gc
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nanodet_jax.errors import UserError
from nanodet_jax.inference import detector as module
from tests.builders import noise
from tests.inference.stub import NAMES, StubPrograms, stub_detector


@pytest.fixture
def detector(monkeypatch):
    return stub_detector(monkeypatch)[0]


def sizes_of(results):
    return [found.size for found in results]


def test_path_in_place_of_weights_is_refused():
    with pytest.raises(
        UserError, match=r"weights: str is not Weights; use Detector\.load\(FILE_OR_WORKDIR\)"
    ):
        module.Detector("runs/mine")


def test_one_image_of_any_kind_gives_one_result(detector, tmp_path):
    image = noise(40, 50)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image)
    with_alpha = np.concatenate([image, image[..., :1]], -1)
    gray = image[..., 0]
    pillow = Image.fromarray(image)
    for given in (path, str(path), image, with_alpha, gray, gray[..., None], pillow):
        found = detector(given)
        assert found.size == (40, 50)
        assert found.names == ["dog", "cat", "bird"]
        np.testing.assert_array_equal(found.boxes[0], [0, 0, 12.5, 20])
        assert found.known_classes == NAMES


def test_several_images_give_a_list_in_their_order(detector, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), noise(40, 50))
    given = [tmp_path / "a.png", noise(20, 60), Image.new("L", (30, 70)), noise(64, 64)[..., 0]]
    expected = [(40, 50), (20, 60), (70, 30), (64, 64)]
    for images in (given, tuple(given), iter(given)):
        assert sizes_of(detector(images)) == expected
    for array in (np.zeros((3, 8, 9, 3), np.uint8), np.zeros((3, 8, 9, 1), np.uint8)):
        assert sizes_of(detector(array)) == [(8, 9)] * 3
    assert detector([]) == detector(np.zeros((0, 8, 8, 3), np.uint8)) == []


def test_images_of_one_shape_are_detected_in_one_call(monkeypatch):
    detector, programs = stub_detector(monkeypatch)
    wide, tall = noise(32, 64), noise(64, 32)
    results = detector([wide, tall, wide, tall, wide])
    assert sizes_of(results) == [(32, 64), (64, 32), (32, 64), (64, 32), (32, 64)]
    assert sorted(programs.calls) == [(2, 64, 32, 3), (4, 32, 64, 3)]
    detector(np.zeros((8, 64, 64, 3), np.uint8))
    assert programs.calls[2:] == [(8, 64, 64, 3)]


def test_color_decides_the_channels_of_arrays_only(monkeypatch, tmp_path):
    detector, _ = stub_detector(monkeypatch)
    seen = []
    prepare = module.prepare_for_inference
    monkeypatch.setattr(
        module, "prepare_for_inference", lambda p, c: seen.append(p.copy()) or prepare(p, c)
    )
    bgr = noise(40, 50)
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    detector([rgb, Image.fromarray(rgb), tmp_path / "a.png"], color="rgb")
    detector(bgr)
    for pixels in seen:
        np.testing.assert_array_equal(pixels, bgr)
    with pytest.raises(UserError, match="color='gbr'"):
        detector(bgr, color="gbr")


def test_options_select_detections(detector):
    image = noise(40, 50)
    assert detector(image, threshold=0.5).names == ["dog", "cat"]
    assert detector(image, classes=["bird", "dog"]).names == ["dog", "bird"]
    assert detector(image, max_detections=1).names == ["dog"]
    found = detector([image, image], classes="cat", threshold=0.1)
    assert [one.names for one in found] == [["cat"], ["cat"]]
    assert found[0].threshold == 0.1


def test_invalid_option_is_reported_before_any_image_is_read(detector):
    def images():
        raise AssertionError("read")
        yield

    for options, message in (
        ({"classes": ["brid"]}, "no class 'brid'; did you mean 'bird'?"),
        ({"threshold": -1}, "threshold=-1"),
        ({"max_detections": 0}, "max_detections=0"),
        ({"color": "gray"}, "color='gray'"),
    ):
        with pytest.raises(UserError) as caught:
            detector(images(), **options)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "images is None, which cv2.imread returns for a file that it cannot read; pass a"),
        (3, "images has type int; pass a path, a Pillow image, or a uint8 array"),
        (b"x", "images has type bytes; pass a path"),
        ([noise(8, 8), None], "images[1] is None, which cv2.imread returns"),
        ([noise(8, 8), [noise(8, 8)]], "images[1] has type list; pass a path"),
        ([noise(8, 8), noise(8, 8) / 255], "images[1] has dtype float64: must be uint8"),
        (np.zeros((2, 8, 8, 3)), "images[0] has dtype float64: must be uint8"),
        (np.zeros(4, np.uint8), "image has shape (4,): must be [height, width]"),
    ],
)
def test_wrong_type_is_one_sentence_that_names_what_is_accepted(detector, given, message):
    with pytest.raises(UserError) as caught:
        detector(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_result_keeps_the_path_or_the_pixels_without_a_copy(detector, tmp_path):
    image = noise(40, 50)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    assert detector(tmp_path / "a.png").image == tmp_path / "a.png"
    assert detector(str(tmp_path / "a.png")).image == Path(tmp_path / "a.png")
    assert np.shares_memory(detector(image).image, image)
    assert np.shares_memory(detector(image, color="rgb").image, image)
    np.testing.assert_array_equal(detector(tmp_path / "a.png").draw(), detector(image).draw())


def test_a_thousand_image_sizes_use_few_programs_of_one_shape_each(monkeypatch):
    detector, programs = stub_detector(monkeypatch, side=96)
    draw = np.random.default_rng(0)
    for height, width in draw.integers(8, 400, (1000, 2)):
        assert detector(np.zeros((height, width, 3), np.uint8)).size == (height, width)
    used = [shape for shapes in programs.programs for shape in shapes]
    assert len(used) == len(set(used)) == len(programs.programs) == detector.num_programs
    assert len(used) == 5  # one side is 96, the other one 32, 64 or 96
    for _ in range(50):
        sides = draw.integers(8, 400, (int(draw.integers(1, 12)), 2))
        results = detector([np.zeros((*side, 3), np.uint8) for side in sides])
        assert sizes_of(results) == [tuple(side) for side in sides]
    used = {shape for shapes in programs.programs for shape in shapes}
    assert {shape[0] for shape in used} == {1, 2, 4, 8}
    assert detector.num_programs == len(used) <= 4 * 5


def test_least_recently_used_program_is_released(monkeypatch):
    monkeypatch.setattr(module, "MAX_PROGRAMS", 2)
    stub, alive = StubPrograms(), []

    def make_detect(model):
        program = stub.make_detect(model)
        alive.append(weakref.ref(program))
        return program

    detector, _ = stub_detector(monkeypatch)
    monkeypatch.setattr(module, "make_detect", make_detect)
    for height, width in ((64, 64), (32, 64), (64, 64), (64, 32)):
        detector(np.zeros((height, width, 3), np.uint8))
    gc.collect()
    assert detector.num_programs == 2
    assert [program() is not None for program in alive] == [True, False, True]
