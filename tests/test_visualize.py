"""Drawing of detections, ground truth and grids, and saving of images."""

import cv2
import numpy as np
import pytest

from nanodet_jax import visualize
from nanodet_jax.errors import UserError
from nanodet_jax.visualize import (
    class_color,
    draw_detections,
    draw_ground_truth,
    grid,
    save_image,
    select_detections,
)

NAMES = ["cat", "dog", "bird"]


def photo(height=240, width=320, seed=0):
    # Values below 100, so that no pixel has the color of a class, a dash or a letter by chance.
    return np.random.default_rng(seed).integers(1, 100, (height, width, 3), np.uint8)


def draw(image, boxes, scores=None, labels=None, names=NAMES, **options):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.full(len(boxes), 0.9) if scores is None else np.array(scores)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    return draw_detections(image, boxes, scores, labels, names, **options)


def changed(before, after):
    return np.any(before != after, axis=-1)


def test_draw_detections_changes_only_box_and_name():
    image = photo()
    touched = changed(image, draw(image, [[100, 100, 200, 180]]))
    inside = np.zeros_like(touched)
    inside[102:179, 102:199] = True
    assert not touched[inside].any()
    near = np.zeros_like(touched)
    near[99:182, 99:202] = True
    rows, columns = np.nonzero(touched & ~near)
    assert rows.min() > 70 and rows.max() < 101  # the name, above
    assert columns.min() >= 99
    for x, y in ((150, 180), (100, 150), (200, 150)):
        assert touched[y, x]


def test_drawing_does_not_change_its_input():
    image = photo()
    arrays = [np.array([[5.0, 5, 90, 90]]), np.array([0.9]), np.array([1])]
    kept = [image.copy(), *(array.copy() for array in arrays)]
    draw_detections(image, *arrays, NAMES)
    draw_ground_truth(image, arrays[0], arrays[2], NAMES)
    for before, after in zip(kept, [image, *arrays]):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("step", [1, -1])
def test_draw_detections_accepts_non_contiguous_views(step):
    image = photo()[:, ::step, ::-1]
    image.setflags(write=False)
    assert changed(image, draw(image, [[50, 50, 150, 150]])).any()


def test_drawing_nothing_returns_an_equal_copy():
    image = photo()
    for drawn in (
        draw(image, []),
        draw(image, [[10, 10, 50, 50]], scores=[0.34]),
        draw_ground_truth(image, np.zeros((0, 4)), np.zeros(0, int), NAMES),
    ):
        np.testing.assert_array_equal(drawn, image)
        assert not np.shares_memory(drawn, image)


def test_draw_detections_includes_a_score_equal_to_the_threshold():
    image = photo()
    assert changed(image, draw(image, [[10, 10, 50, 50]], scores=[0.5], threshold=0.5)).any()


@pytest.mark.parametrize(
    "box",
    [
        [-50, -50, 30, 30],
        [300, 200, 400, 300],
        [-1e9, -1e9, 1e9, 1e9],
        [0, 0, 320, 240],
        [-np.inf, 10, np.inf, 60],
    ],
)
def test_box_partly_outside_the_image_is_clipped(box):
    image = photo()
    touched = changed(image, draw(image, [box]))
    x1, y1, x2, y2 = np.clip(box, 0, [319, 239, 319, 239]).astype(int)
    assert touched[y1 : y2 + 1, (x1, x2)].all() and touched[(y1, y2), x1 : x2 + 1].all()
    assert changed(image, draw_ground_truth(image, np.array([box]))).any()


@pytest.mark.parametrize(
    "box", [[-50, -50, -10, -10], [400, 10, 500, 60], [50, 50, 40, 60], [np.nan, 1, 50, 50]]
)
def test_box_without_visible_area_is_not_drawn(box):
    image = photo()
    np.testing.assert_array_equal(draw(image, [box]), image)
    np.testing.assert_array_equal(draw_ground_truth(image, np.array([box])), image)


def test_better_box_is_drawn_on_top_in_any_input_order():
    image = photo()
    boxes, scores, labels = [[50, 50, 150, 150], [50, 50, 150, 200]], [0.9, 0.5], [0, 1]
    drawn = draw(image, boxes, scores, labels, draw_all=True)
    assert tuple(drawn[100, 50]) == class_color(0)
    swapped = draw(image, boxes[::-1], scores[::-1], labels[::-1], draw_all=True)
    np.testing.assert_array_equal(swapped, drawn)


def test_names_do_not_overlap():
    image = np.zeros((240, 320, 3), np.uint8)
    box = [100, 100, 200, 180]
    alone = changed(image, draw(image, [box])).sum()
    pair = changed(image, draw(image, [box, box], draw_all=True)).sum()
    many = [changed(image, draw(image, [box] * n, draw_all=True)).sum() for n in (30, 60)]
    assert pair > 1.3 * alone  # the second name moves to another position
    assert many[0] == many[1] < changed(image, image + 1).sum() / 4  # no free position is left


def test_select_detections_keeps_the_best_class_of_each_object():
    # An object detected as three classes, with iou 1 and 0.8 to the best; another object, iou 1/3.
    boxes = np.array([[0, 0, 10, 8], [0, 0, 10, 10], [0, 0, 10, 10], [5, 0, 15, 10]], np.float32)
    scores = np.array([0.5, 0.51, 0.9, 0.4], np.float32)
    assert select_detections(boxes, scores).tolist() == [2, 3]
    assert select_detections(boxes, scores, draw_all=True).tolist() == [2, 1, 0, 3]
    assert select_detections(boxes, scores, threshold=0.41).tolist() == [2]
    assert select_detections(boxes, scores, threshold=0.95).tolist() == []
    assert select_detections(np.zeros((0, 4)), np.zeros(0)).tolist() == []


@pytest.mark.parametrize(("height", "kept"), [(49, [0, 1]), (50, [0, 1]), (51, [0]), (100, [0])])
def test_select_detections_drops_iou_above_the_threshold(height, kept):
    boxes = [[0, 0, 100, 100], [0, 0, 100, height]]  # iou: height / 100
    assert select_detections(np.array(boxes, np.float32), np.array([0.9, 0.8])).tolist() == kept


def test_select_detections_compares_with_kept_boxes_only():
    # Each box has iou 2/3 with the next; the first and last have 3/7. The second is dropped, so the
    # third is kept.
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10]], np.float32)
    assert select_detections(boxes, np.array([0.9, 0.8, 0.7])).tolist() == [0, 2]
    assert select_detections(boxes, np.array([0.8, 0.9, 0.7])).tolist() == [1]


def test_select_detections_keeps_the_first_of_equal_scores_and_drops_nan():
    boxes = np.array([[0, 0, 9, 9]] * 3, np.float32)
    assert select_detections(boxes, np.array([0.7, 0.7, 0.7])).tolist() == [0]
    assert select_detections(boxes, np.array([np.nan, 0.7, 0.7])).tolist() == [1]
    assert select_detections(boxes, np.array([0.0, 0.0, np.nan]), threshold=0).tolist() == [0]


def test_draw_detections_draws_one_class_per_object_unless_all_are_requested():
    image = photo()
    boxes = [[50, 50, 150, 150], [52, 50, 150, 152], [200, 50, 300, 150]]
    scores, labels = [0.51, 0.52, 0.4], [0, 1, 2]
    drawn = draw(image, boxes, scores, labels)
    np.testing.assert_array_equal(drawn, draw(image, boxes[1:], scores[1:], labels[1:]))
    everything = draw(image, boxes, scores, labels, draw_all=True)
    assert changed(drawn, everything).sum() > 500  # the second name


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (5, 300), (300, 5), (40, 30), (64, 64), (2160, 3840)]
)
def test_drawing_accepts_images_of_any_size(height, width):
    image = photo(height, width)
    boxes = [[0, 0, width, height], [width / 4, height / 4, width / 2, height / 2]]
    drawn = draw(image, boxes, labels=[0, 1], names=["a very long name of a class" * 3, "dog"])
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert changed(image, drawn).any()
    assert changed(image, draw_ground_truth(image, np.array(boxes), [0, 1], NAMES)).any()


def test_line_width_scales_with_the_image():
    def line_width(scale):
        image = photo(240 * scale, 320 * scale)
        touched = changed(image, draw(image, np.array([[100, 100, 200, 200]]) * scale))
        return touched[180 * scale, : 150 * scale].sum()

    assert line_width(1) == 1
    assert 6 <= line_width(8) <= 10


@pytest.mark.parametrize("unicode", [visualize.DRAWS_UNICODE, False])
@pytest.mark.parametrize("name", ["Äpfel", "猫", "🐈", "", "a\nb\t", "\ud800", "Straße", "\0"])
def test_draw_detections_accepts_non_ascii_names(monkeypatch, name, unicode):
    monkeypatch.setattr(visualize, "DRAWS_UNICODE", unicode)
    image = photo()
    assert changed(image, draw(image, [[50, 50, 150, 150]], names=[name])).any()


def test_drawable_replaces_letters_unknown_to_opencv_4(monkeypatch):
    monkeypatch.setattr(visualize, "DRAWS_UNICODE", False)
    drawable = [visualize._drawable(name, 3) for name in ("Äpfel", "猫", "", "a\nb", "Straße")]
    assert drawable == ["Apfel", "class 3", "class 3", "a b", "Stra?e"]


def test_class_colors_are_distinct_and_stable():
    colors = [class_color(label) for label in range(200)]
    assert len(set(colors)) == 200
    assert colors == [class_color(label) for label in range(200)]
    assert all(0 <= part <= 255 for color in colors for part in color)
    # The first classes are far apart.
    few = np.array(colors[:8], float)
    distances = np.abs(few[:, None] - few).sum(axis=-1) + 1000 * np.eye(8)
    assert distances.min() > 90


def test_name_contrasts_with_its_background():
    for label in range(200):
        drawn = draw(photo(), [[20, 60, 300, 200]], labels=[label], names=["MMMM"] * 200)
        brightness = drawn[40:59, 22:60].reshape(-1, 3).astype(float) @ [0.114, 0.587, 0.299]
        assert np.ptp(brightness) > 100


def test_ground_truth_is_visible_on_black_and_on_white():
    for value in (0, 255):
        image = np.full((100, 100, 3), value, np.uint8)
        touched = changed(image, draw_ground_truth(image, np.array([[10, 10, 90, 90]])))
        assert 20 < touched[10, 10:91].sum() < 70  # dashes
        assert not touched[12:89, 12:89].any()


def test_grid_without_size_pads_to_the_largest_image():
    images = [np.full((20, 30, 3), 200, np.uint8), np.full((10, 40, 3), 250, np.uint8)]
    sheet = grid([*images, images[0]], columns=2)
    assert sheet.shape == (2 * 20 + 3 * visualize.GAP, 2 * 40 + 3 * visualize.GAP, 3)
    assert (sheet == 200).sum() == 2 * images[0].size
    assert (sheet == 250).sum() == images[1].size
    assert tuple(sheet[0, 0]) == tuple(sheet[-1, -1]) == visualize.GRAY


def test_grid_with_size_scales_images_with_their_aspect_ratio():
    images = [np.full(shape, 200, np.uint8) for shape in ((400, 200, 3), (10, 40, 3), (3, 999, 3))]
    sheet = grid(images, columns=5, size=(50, 60))
    assert sheet.shape == (50 + 2 * visualize.GAP, 3 * 60 + 4 * visualize.GAP, 3)
    cell = (sheet[:, : 60 + visualize.GAP] == 200).all(axis=-1)
    assert cell.sum() == 50 * 25  # the aspect ratio is kept


def test_grid_without_images_or_columns_raises():
    for images, columns in (([], 2), ([photo()], 0)):
        with pytest.raises(ValueError, match="needs"):
            grid(images, columns)


def test_draw_detections_rejects_other_dtypes_and_shapes():
    for image in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            draw(image, [])


def test_save_image_writes_the_same_pixels(tmp_path):
    path = tmp_path / "new" / "bild ä.png"
    save_image(path, photo())
    read = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read, photo())


@pytest.mark.parametrize("name", ["image", "image.xyz", "folder.png", "file/image.png"])
def test_failed_save_image_raises_an_error_with_the_path(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=name):
        save_image(tmp_path / name, photo())
