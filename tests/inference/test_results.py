"""`ImageDetections`: selection, drawing, saving and conversion."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from nanodet_jax.errors import UserError
from nanodet_jax.inference.results import NOTEBOOK_SIDE, DetectedObject, ImageDetections
from nanodet_jax.visualize import draw_detections
from tests.builders import noise

NAMES = ("cat", "dog", "traffic light")
BOXES = np.array([[5, 5, 40, 30], [50, 5, 90, 60], [50, 6, 90, 60], [0, 0, 9, 9]], np.float32)
SCORES = np.array([0.875, 0.75, 0.5, 0.25], np.float32)
LABELS = np.array([1, 0, 2, 1], np.int32)
PIXELS = noise(70, 100)


@pytest.fixture
def found():
    return ImageDetections(BOXES, SCORES, LABELS, (70, 100), NAMES, PIXELS)


def test_iteration_and_index_yield_objects(found):
    assert len(found) == len(list(found)) == 4
    for one, box, score, name in zip(found, BOXES, SCORES, found.names, strict=True):
        np.testing.assert_array_equal(one.box, box)
        assert (one.score, one.name) == (score, name)
    assert isinstance(found[-1], DetectedObject)
    assert (found[-1].label, found[-1].name, found[-1].score) == (1, "dog", 0.25)
    assert found[np.int64(2)].name == "traffic light"
    with pytest.raises(IndexError):
        found[4]


@pytest.mark.parametrize(
    ("index", "scores"),
    [
        (slice(1, 3), [0.75, 0.5]),
        (slice(None, None, -1), [0.25, 0.5, 0.75, 0.875]),
        (SCORES > 0.6, [0.875, 0.75]),
        ([3, 0], [0.25, 0.875]),
        (np.array([], int), []),
        ([], []),
    ],
)
def test_slice_mask_and_indices_select_a_part(found, index, scores):
    part = found[index]
    assert isinstance(part, ImageDetections)
    np.testing.assert_array_equal(part.scores, np.array(scores, np.float32))
    assert [one.score for one in part] == scores
    assert part.boxes.shape == (len(scores), 4)
    assert part.image is PIXELS


def test_filter_combines_its_conditions(found):
    assert found.filter().names == ["dog", "cat", "traffic light", "dog"]
    assert found.filter(threshold=0.5).names == ["dog", "cat", "traffic light"]
    assert found.filter(classes="dog").scores.tolist() == [0.875, 0.25]
    assert found.filter(classes=["dog", "cat"], max_detections=2).names == ["dog", "cat"]
    assert found.filter(classes=("cat", "traffic light"), threshold=0.6).names == ["cat"]
    assert found.filter(classes=np.array(["cat", "dog"])).names == ["dog", "cat", "dog"]
    assert len(found.filter(classes=[])) == 0
    assert len(found.filter(max_detections=9)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["dgo"]}, "classes: the detector has no class 'dgo'; did you mean 'dog'?"),
        ({"classes": "zebra"}, "has no class 'zebra'; known: cat, dog, traffic light"),
        ({"classes": [0]}, "has no class 0; known: cat, dog, traffic light"),
        ({"classes": 1}, "classes=1: must be a list of class names"),
        ({"threshold": 35}, "threshold=35: must be a number from 0 to 1"),
        ({"threshold": float("nan")}, "threshold=nan: must be a number from 0 to 1"),
        ({"threshold": "0.5"}, "threshold='0.5': must be a number from 0 to 1"),
        ({"max_detections": 0}, "max_detections=0: must be an integer of at least 1"),
        ({"max_detections": 1.5}, "max_detections=1.5: must be an integer of at least 1"),
    ],
)
def test_filter_names_an_invalid_value(found, options, message):
    with pytest.raises(UserError) as caught:
        found.filter(**options)
    assert message in str(caught.value)


def test_draw_shows_one_class_per_object_above_the_threshold(found):
    def expected(threshold, **options):
        return draw_detections(PIXELS, BOXES, SCORES, LABELS, NAMES, threshold, **options)

    np.testing.assert_array_equal(found.draw(), expected(0.35))
    np.testing.assert_array_equal(found.draw(draw_all=True), expected(0.35, draw_all=True))
    np.testing.assert_array_equal(found.filter(threshold=0.1).draw(), expected(0.1))
    assert np.any(expected(0.1) != expected(0.35))


def test_draw_accepts_every_kind_of_image(found, tmp_path):
    expected = found.draw()
    cv2.imwrite(str(tmp_path / "a.png"), PIXELS)
    empty = replace(found, image=None)
    pillow = Image.fromarray(PIXELS[..., ::-1])
    for image in (PIXELS, tmp_path / "a.png", str(tmp_path / "a.png"), pillow):
        np.testing.assert_array_equal(empty.draw(image), expected)
    rgb = empty.draw(PIXELS[..., ::-1], color="rgb")
    np.testing.assert_array_equal(rgb, expected[..., ::-1])
    np.testing.assert_array_equal(found.draw(color="rgb"), rgb)
    np.testing.assert_array_equal(replace(found, image=tmp_path / "a.png").draw(), expected)


def test_draw_without_the_image_names_the_fix(found, tmp_path):
    with pytest.raises(UserError, match=r"not kept; pass it, as in draw\(image\)"):
        replace(found, image=None).draw()
    with pytest.raises(UserError, match="is 60x50, but the boxes are for 100x70 pixels"):
        found.draw(noise(50, 60))
    cv2.imwrite(str(tmp_path / "a.png"), noise(71, 100))
    with pytest.raises(UserError, match=r"a\.png.*100x71"):
        replace(found, image=tmp_path / "a.png").draw()


def test_save_writes_the_drawn_picture_but_never_over_the_image(found, tmp_path):
    found.save(tmp_path / "new" / "drawn.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "drawn.png")), found.draw())
    rgb = PIXELS[..., ::-1]
    found.save(str(tmp_path / "rgb.png"), rgb, color="rgb")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "rgb.png")), found.draw())

    original = tmp_path / "a.png"
    cv2.imwrite(str(original), PIXELS)
    before = original.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for kept, given in ((original, None), (None, str(original)), (tmp_path / "link/a.png", None)):
        with pytest.raises(UserError, match=r"a\.png: is the original image"):
            replace(found, image=kept).save(original, given)
    assert original.read_bytes() == before
    with pytest.raises(UserError, match=r"use \.jpg or \.png"):
        found.save(tmp_path / "drawn.xyz")


def test_notebook_shows_a_picture_of_bounded_size_or_the_text(found):
    shown = cv2.imdecode(np.frombuffer(found._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown, found.draw())
    large = replace(found, image=np.zeros((600, 3000, 3), np.uint8), size=(600, 3000))
    shown = cv2.imdecode(np.frombuffer(large._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (round(600 * NOTEBOOK_SIDE / 3000), NOTEBOOK_SIDE, 3)
    assert replace(found, image=None)._repr_png_() is None


def test_repr_counts_classes_in_one_short_line(found):
    assert repr(found) == (
        "<4 detections in 100x70 pixels: 2 dog, 1 cat, 1 traffic light; best score 0.88>"
    )
    assert repr(found[:0]) == "<0 detections in 100x70 pixels>"


def test_to_dict_is_json(found):
    content = json.loads(json.dumps(found[:1].to_dict()))
    expected = {"class": "dog", "score": float(SCORES[0]), "box_xyxy": [5.0, 5.0, 40.0, 30.0]}
    assert content == {"height": 70, "width": 100, "objects": [expected]}
