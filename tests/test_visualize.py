"""What is drawn, what is left alone, and what must not crash."""

import cv2
import numpy as np
import pytest

from nanodet_jax import visualize
from nanodet_jax.errors import UserError
from nanodet_jax.visualize import class_color, draw_detections, draw_ground_truth, grid, save_image

NAMES = ["cat", "dog", "bird"]


def photo(height=240, width=320, seed=0):
    # Up to 99: no pixel has the colour of a class, of a dash or of a letter by chance.
    return np.random.default_rng(seed).integers(1, 100, (height, width, 3), np.uint8)


def draw(image, boxes, scores=None, labels=None, names=NAMES, **options):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.full(len(boxes), 0.9) if scores is None else np.array(scores)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    return draw_detections(image, boxes, scores, labels, names, **options)


def changed(before, after):
    return np.any(before != after, axis=-1)


def test_only_the_box_and_its_name_change():
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


def test_input_is_not_changed():
    image = photo()
    arrays = [np.array([[5.0, 5, 90, 90]]), np.array([0.9]), np.array([1])]
    kept = [image.copy(), *(array.copy() for array in arrays)]
    draw_detections(image, *arrays, NAMES)
    draw_ground_truth(image, arrays[0], arrays[2], NAMES)
    for before, after in zip(kept, [image, *arrays]):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("step", [1, -1])
def test_views_that_are_not_contiguous(step):
    image = photo()[:, ::step, ::-1]
    image.setflags(write=False)
    assert changed(image, draw(image, [[50, 50, 150, 150]])).any()


def test_nothing_to_draw_gives_an_equal_copy():
    image = photo()
    for drawn in (
        draw(image, []),
        draw(image, [[10, 10, 50, 50]], scores=[0.34]),
        draw_ground_truth(image, np.zeros((0, 4)), np.zeros(0, int), NAMES),
    ):
        np.testing.assert_array_equal(drawn, image)
        assert not np.shares_memory(drawn, image)


def test_threshold_is_included():
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
def test_boxes_partly_outside_are_cut_at_the_edge(box):
    image = photo()
    touched = changed(image, draw(image, [box]))
    x1, y1, x2, y2 = np.clip(box, 0, [319, 239, 319, 239]).astype(int)
    assert touched[y1 : y2 + 1, (x1, x2)].all() and touched[(y1, y2), x1 : x2 + 1].all()
    assert changed(image, draw_ground_truth(image, np.array([box]))).any()


@pytest.mark.parametrize(
    "box", [[-50, -50, -10, -10], [400, 10, 500, 60], [50, 50, 40, 60], [np.nan, 1, 50, 50]]
)
def test_boxes_without_visible_area_are_left_out(box):
    image = photo()
    np.testing.assert_array_equal(draw(image, [box]), image)
    np.testing.assert_array_equal(draw_ground_truth(image, np.array([box])), image)


def test_the_better_box_lies_on_top_whatever_the_order():
    image = photo()
    boxes, scores, labels = [[50, 50, 150, 150], [50, 50, 150, 200]], [0.9, 0.5], [0, 1]
    drawn = draw(image, boxes, scores, labels)
    assert tuple(drawn[100, 50]) == class_color(0)
    np.testing.assert_array_equal(draw(image, boxes[::-1], scores[::-1], labels[::-1]), drawn)


def test_names_do_not_cover_names():
    image = np.zeros((240, 320, 3), np.uint8)
    box = [100, 100, 200, 180]
    alone = changed(image, draw(image, [box])).sum()
    pair = changed(image, draw(image, [box, box])).sum()
    many = [changed(image, draw(image, [box] * count)).sum() for count in (30, 60)]
    assert pair > 1.3 * alone  # a second name in a second place
    assert many[0] == many[1] < changed(image, image + 1).sum() / 4  # then no place is left


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (5, 300), (300, 5), (40, 30), (64, 64), (2160, 3840)]
)
def test_images_of_any_size(height, width):
    image = photo(height, width)
    boxes = [[0, 0, width, height], [width / 4, height / 4, width / 2, height / 2]]
    drawn = draw(image, boxes, labels=[0, 1], names=["a very long name of a class" * 3, "dog"])
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert changed(image, drawn).any()
    assert changed(image, draw_ground_truth(image, np.array(boxes), [0, 1], NAMES)).any()


def test_lines_grow_with_the_image():
    def width_of_line(scale):
        image = photo(240 * scale, 320 * scale)
        touched = changed(image, draw(image, np.array([[100, 100, 200, 200]]) * scale))
        return touched[180 * scale, : 150 * scale].sum()

    assert width_of_line(1) == 1
    assert 6 <= width_of_line(8) <= 10


@pytest.mark.parametrize("unicode", [visualize.DRAWS_UNICODE, False])
@pytest.mark.parametrize("name", ["Äpfel", "猫", "🐈", "", "a\nb\t", "\ud800", "Straße", "\0"])
def test_names_that_are_not_ascii(monkeypatch, name, unicode):
    monkeypatch.setattr(visualize, "DRAWS_UNICODE", unicode)
    image = photo()
    assert changed(image, draw(image, [[50, 50, 150, 150]], names=[name])).any()


def test_letters_that_opencv_4_cannot_draw(monkeypatch):
    monkeypatch.setattr(visualize, "DRAWS_UNICODE", False)
    drawable = [visualize._drawable(name, 3) for name in ("Äpfel", "猫", "", "a\nb", "Straße")]
    assert drawable == ["Apfel", "class 3", "class 3", "a b", "Stra?e"]


def test_colours_are_distinct_and_stable():
    colors = [class_color(label) for label in range(200)]
    assert len(set(colors)) == 200
    assert colors == [class_color(label) for label in range(200)]
    assert all(0 <= part <= 255 for color in colors for part in color)
    # A data set of few classes: far apart.
    few = np.array(colors[:8], float)
    distances = np.abs(few[:, None] - few).sum(axis=-1) + 1000 * np.eye(8)
    assert distances.min() > 90


def test_text_stands_out_from_its_strip():
    for label in range(200):
        drawn = draw(photo(), [[20, 60, 300, 200]], labels=[label], names=["MMMM"] * 200)
        strip = drawn[40:59, 22:60].reshape(-1, 3).astype(float) @ [0.114, 0.587, 0.299]
        assert np.ptp(strip) > 100


def test_ground_truth_shows_on_black_and_on_white():
    for value in (0, 255):
        image = np.full((100, 100, 3), value, np.uint8)
        touched = changed(image, draw_ground_truth(image, np.array([[10, 10, 90, 90]])))
        assert 20 < touched[10, 10:91].sum() < 70  # dashes
        assert not touched[12:89, 12:89].any()


def test_grid_places_and_pads():
    images = [np.full((20, 30, 3), 200, np.uint8), np.full((10, 40, 3), 250, np.uint8)]
    sheet = grid([*images, images[0]], columns=2)
    assert sheet.shape == (2 * 20 + 3 * visualize.GAP, 2 * 40 + 3 * visualize.GAP, 3)
    assert (sheet == 200).sum() == 2 * images[0].size
    assert (sheet == 250).sum() == images[1].size
    assert tuple(sheet[0, 0]) == tuple(sheet[-1, -1]) == visualize.GREY


def test_grid_of_cells_of_one_size():
    images = [np.full(shape, 200, np.uint8) for shape in ((400, 200, 3), (10, 40, 3), (3, 999, 3))]
    sheet = grid(images, columns=5, size=(50, 60))
    assert sheet.shape == (50 + 2 * visualize.GAP, 3 * 60 + 4 * visualize.GAP, 3)
    cell = (sheet[:, : 60 + visualize.GAP] == 200).all(axis=-1)
    assert cell.sum() == 50 * 25  # its shape is kept


def test_grid_needs_images_and_columns():
    for images, columns in (([], 2), ([photo()], 0)):
        with pytest.raises(ValueError, match="needs"):
            grid(images, columns)


def test_images_of_another_kind_are_refused():
    for image in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            draw(image, [])


def test_saved_image_reads_back(tmp_path):
    path = tmp_path / "new" / "bild ä.png"
    save_image(path, photo())
    read = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read, photo())


@pytest.mark.parametrize("name", ["image", "image.xyz", "folder.png", "file/image.png"])
def test_image_that_cannot_be_saved(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=name):
        save_image(tmp_path / name, photo())
