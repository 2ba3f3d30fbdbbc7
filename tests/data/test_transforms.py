"""Transforms against explicit matrices, loops over corners, and OpenCV."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from nanodet_jax.config import Augment, Compat, Config, Data
from nanodet_jax.data import pipeline, transforms
from nanodet_jax.data.records import make_record
from nanodet_jax.data.transforms import Color, Warp

AUGMENT = Augment(
    perspective=1e-4,
    scale=(0.6, 1.4),
    stretch_x=(0.8, 1.2),
    stretch_y=(0.9, 1.1),
    rotation=20.0,
    shear=5.0,
    translate=0.2,
    flip=0.5,
    brightness=0.2,
    contrast=(0.6, 1.4),
    saturation=(0.5, 1.2),
)


def expected_matrix(warp, image_size, input_size):
    """Return the matrix without keep_ratio, as a product of explicit 3 x 3 factors."""
    (h, w), (out_h, out_w) = image_size, input_size
    angle = math.radians(warp.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    tan_x, tan_y = (math.tan(math.radians(degrees)) for degrees in warp.shear)
    px, py = warp.perspective
    flip = -1 if warp.flip else 1
    to_center = [[1, 0, -w / 2], [0, 1, -h / 2], [0, 0, 1]]
    perspective = [[1, 0, 0], [0, 1, 0], [px, py, 1]]
    scale = [[warp.scale, 0, 0], [0, warp.scale, 0], [0, 0, 1]]
    stretch = [[warp.stretch[0], 0, 0], [0, warp.stretch[1], 0], [0, 0, 1]]
    rotation = [[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]
    shear = [[1, tan_x, 0], [tan_y, 1, 0], [0, 0, 1]]
    mirror = [[flip, 0, 0], [0, 1, 0], [0, 0, 1]]
    back = [[1, 0, warp.center[0] * w], [0, 1, warp.center[1] * h], [0, 0, 1]]
    resize = [[out_w / w, 0, 0], [0, out_h / h, 0], [0, 0, 1]]
    factors = (resize, back, mirror, shear, rotation, stretch, scale, perspective, to_center)
    return np.linalg.multi_dot([np.array(factor, float) for factor in factors])


def random_warps(count, seed=0):
    rng = np.random.default_rng(seed)
    return [transforms.sample(rng, AUGMENT)[0] for _ in range(count)]


def test_warp_matrix_is_the_product_of_its_factors():
    warps = random_warps(20)
    assert {warp.flip for warp in warps} == {False, True}
    for warp in warps:
        matrix, size = transforms.warp_matrix(warp, (48, 70), (64, 96), keep_ratio=False)
        assert size == (64, 96)
        np.testing.assert_allclose(matrix, expected_matrix(warp, (48, 70), (64, 96)), atol=1e-10)


@pytest.mark.parametrize(
    ("image_size", "input_size", "expected"),
    [
        ((480, 640), (320, 320), (240, 320)),
        ((640, 480), (320, 320), (320, 240)),
        ((427, 640), (320, 320), (213, 320)),  # 213.5
        ((333, 500), (416, 416), (277, 416)),  # 277.056
        ((100, 100), (64, 96), (64, 64)),
        ((37, 53), (64, 96), (64, 91)),  # 91.7
        ((2, 5000), (320, 320), (1, 320)),  # 0.128: at least one
    ],
)
def test_warp_matrix_with_keep_ratio_truncates_and_centers(image_size, input_size, expected):
    matrix, size = transforms.warp_matrix(Warp(), image_size, input_size, keep_ratio=True)
    assert size == expected
    # Both axes have the largest ratio with which the image fits the truncated size.
    (h, w), (out_h, out_w) = image_size, size
    ratio = min(out_h / h, out_w / w)
    assert matrix[0, 0] == pytest.approx(ratio) and matrix[1, 1] == pytest.approx(ratio)
    center = matrix @ [w / 2, h / 2, 1]
    np.testing.assert_allclose(center, [out_w / 2, out_h / 2, 1])
    # Random factors are applied before the resize.
    (warp,) = random_warps(1, seed=3)
    warped, _ = transforms.warp_matrix(warp, image_size, input_size, keep_ratio=True)
    np.testing.assert_allclose(warped, matrix @ expected_matrix(warp, image_size, image_size))


def test_warp_flipped_twice_is_the_identity():
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    flip, _ = transforms.warp_matrix(Warp(flip=True), (32, 48), (32, 48), keep_ratio=False)
    np.testing.assert_allclose(flip @ flip, np.eye(3))
    box = np.array([[4.0, 6, 20, 30]])
    once = transforms.warp_boxes(box, flip, (32, 48))
    assert once.tolist() == [[28, 6, 44, 30]]
    np.testing.assert_array_equal(transforms.warp_boxes(once, flip, (32, 48)), box)
    # Pixels are points: column 0 leaves the image and returns black.
    twice = transforms.warp_image(transforms.warp_image(image, flip, (32, 48)), flip, (32, 48))
    np.testing.assert_array_equal(twice[:, 1:], image[:, 1:])
    assert not np.any(twice[:, 0])


def test_warped_boxes_are_bounds_of_their_warped_corners():
    random = np.random.default_rng(1)
    low = random.uniform(-20, 60, (12, 2))
    boxes = np.concatenate([low, low + random.uniform(0, 40, (12, 2))], axis=1)
    boxes[0] = [10, 12, 10, 12]
    size = (64, 96)
    for warp in random_warps(5, seed=2):
        matrix, _ = transforms.warp_matrix(warp, (48, 70), size, keep_ratio=False)
        warped = transforms.warp_boxes(boxes, matrix, size)
        assert warped.dtype == np.float32
        for (x1, y1, x2, y2), box in zip(boxes, warped):
            xs, ys = [], []
            for corner in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)):
                x, y, w = matrix @ [*corner, 1]
                xs.append(min(max(x / w, 0), size[1]))
                ys.append(min(max(y / w, 0), size[0]))
            np.testing.assert_allclose(box, [min(xs), min(ys), max(xs), max(ys)], rtol=1e-5)
    assert transforms.warp_boxes(np.zeros((0, 4)), np.eye(3), size).shape == (0, 4)


def test_warped_boxes_outside_have_no_area():
    outside = transforms.warp_boxes([[-30, 5, -10, 20], [10, 70, 20, 90]], np.eye(3), (64, 96))
    assert outside.tolist() == [[0, 5, 0, 20], [10, 64, 20, 64]]


def test_warped_image_and_boxes_agree():
    image = np.zeros((48, 70, 3), np.uint8)
    image[10:31, 20:51] = 255  # its corner pixels are at 20, 10 and 50, 30
    for warp in (Warp(scale=1.5), Warp(rotation=90, shear=(0, 3)), Warp(flip=True, scale=0.8)):
        matrix, size = transforms.warp_matrix(warp, (48, 70), (64, 96), keep_ratio=False)
        warped = transforms.warp_image(image, matrix, size)
        (box,) = transforms.warp_boxes([[20, 10, 50, 30]], matrix, size)
        rows, columns = np.nonzero(warped[..., 0])
        seen = [columns.min(), rows.min(), columns.max(), rows.max()]
        np.testing.assert_allclose(seen, box, atol=2.1)


def test_warped_image_is_that_of_opencv():
    image = np.random.default_rng(2).integers(0, 256, (48, 70, 3), np.uint8)
    (warp,) = random_warps(1, seed=5)
    matrix, size = transforms.warp_matrix(warp, (48, 70), (64, 96), keep_ratio=False)
    warped = transforms.warp_image(image, matrix, size)
    options = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_CONSTANT, "borderValue": 0}
    expected = cv2.warpPerspective(image, matrix, (96, 64), **options)
    assert warped.dtype == np.uint8
    np.testing.assert_array_equal(warped, expected)
    # Halving takes every second pixel, not the mean of its neighbors.
    half, size = transforms.warp_matrix(Warp(), (48, 70), (24, 35), keep_ratio=False)
    np.testing.assert_array_equal(transforms.warp_image(image, half, size), image[::2, ::2])


@pytest.mark.parametrize("size", [(24, 36), (16, 24), (30, 50), (48, 36), (31, 71)])
def test_warp_without_pixel_indices_shrinks_to_means(size):
    image = np.random.default_rng(6).integers(0, 256, (48, 72, 3), np.uint8)
    matrix, _ = transforms.warp_matrix(Warp(), (48, 72), size, keep_ratio=False)
    shrunk = transforms.warp_image(image, matrix, size, pixel_indices=False).astype(float)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk - expected).max() <= 1
    if size == (16, 24):
        means = image.reshape(16, 3, 24, 3, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - means).max() <= 1
    # The original takes single pixels instead.
    taken = transforms.warp_image(image, matrix, size, pixel_indices=True).astype(float)
    assert np.abs(taken - expected).mean() > 10


@pytest.mark.parametrize("size", [(96, 144), (48, 144), (96, 72)])
def test_warp_without_pixel_indices_interpolates_between_pixel_centers(size):
    image = np.random.default_rng(7).integers(0, 256, (48, 72, 3), np.uint8)
    matrix, _ = transforms.warp_matrix(Warp(), (48, 72), size, keep_ratio=False)
    grown = transforms.warp_image(image, matrix, size, pixel_indices=False).astype(float)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    # At the border the warp sees black where a resize repeats the edge.
    inside = np.s_[1:-1, 1:-1]
    assert np.abs(grown - expected)[inside].max() <= 1
    taken = transforms.warp_image(image, matrix, size, pixel_indices=True).astype(float)
    assert np.abs(taken - expected)[inside].mean() > 10


SLOPES = np.array([4.0, 3.0])  # gray levels per pixel, to the right and down


def apply(matrix, points):
    """Apply a matrix [3, 3] to points [..., 2]."""
    x, y, w = np.moveaxis(points @ matrix[:, :2].T + matrix[:, 2], -1, 0)
    return np.stack([x / w, y / w], axis=-1)


def errors_on_a_slope(warp, size, pixel_indices):
    """Return the errors of a warped image at pixel centers away from the border, and the matrix.

    The gray level of the image at a point, in box coordinates, is SLOPES @ point.
    """
    shape = (20, 30)
    columns, rows = np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5)
    gray = np.stack([columns, rows], axis=-1) @ SLOPES
    image = np.repeat(np.round(gray)[..., None], 3, axis=-1).astype(np.uint8)
    matrix, _ = transforms.warp_matrix(warp, shape, size, keep_ratio=False)
    warped = transforms.warp_image(image, matrix, size, pixel_indices)[..., 0].astype(float)
    columns, rows = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    source = apply(np.linalg.inv(matrix), np.stack([columns, rows], axis=-1))
    # Averaging may involve two pixels of the input, and interpolation two of the image.
    margin = 2 * np.linalg.norm(np.linalg.inv(matrix)[:2, :2], axis=1) + 2
    inside = np.all((source > margin) & (source < np.array([30, 20]) - margin), axis=-1)
    assert inside.sum() > 10
    return (warped - source @ SLOPES)[inside], matrix


@pytest.mark.parametrize(
    ("warp", "size"),
    [
        (Warp(scale=2.0), (20, 30)),
        (Warp(scale=0.5, center=(0.57, 0.43)), (20, 30)),
        (Warp(scale=1.5, center=(0.4, 0.5)), (32, 64)),
        (Warp(stretch=(0.4, 1.5)), (20, 30)),
        (Warp(flip=True, scale=0.7), (40, 30)),
        (Warp(rotation=90), (40, 20)),
        (Warp(rotation=-35, shear=(5, -10)), (15, 25)),
    ],
)
def test_warp_without_pixel_indices_is_consistent_with_boxes(warp, size):
    errors, matrix = errors_on_a_slope(warp, size, pixel_indices=False)
    assert np.abs(errors).max() <= 1.25  # rounding, at most twice, and positions in 1/32 pixels
    assert abs(errors.mean()) < 0.5
    # The original uses the corner of a pixel as its center, before and after the warp.
    errors, _ = errors_on_a_slope(warp, size, pixel_indices=True)
    backward = np.linalg.inv(matrix)[:2, :2]
    offset = SLOPES @ ([0.5, 0.5] - backward @ [0.5, 0.5])
    assert abs(offset) > 0.8
    assert abs(errors.mean() - offset) < 0.5


def test_warp_with_perspective_without_pixel_indices_is_consistent_with_boxes():
    warp = Warp(perspective=(4e-3, -3e-3), scale=1.3, rotation=15, center=(0.55, 0.5))
    errors, _ = errors_on_a_slope(warp, (24, 36), pixel_indices=False)
    assert np.abs(errors).max() <= 1.25


def test_flip_without_pixel_indices_keeps_every_column():
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    flip, size = transforms.warp_matrix(Warp(flip=True), (32, 48), (32, 48), keep_ratio=False)
    flipped = transforms.warp_image(image, flip, size, pixel_indices=False)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    smaller, size = transforms.warp_matrix(Warp(flip=True), (32, 48), (16, 24), keep_ratio=False)
    np.testing.assert_array_equal(
        transforms.warp_image(image, smaller, size, pixel_indices=False),
        cv2.resize(image, (24, 16), interpolation=cv2.INTER_AREA)[:, ::-1],
    )


def test_outside_is_black_in_a_warp_and_zero_in_padding():
    # A warp is black outside, before normalization; padding is zero, after normalization.
    data = Data()
    matrix, _ = transforms.warp_matrix(Warp(scale=0.5), (8, 8), (8, 8), keep_ratio=False)
    warped = transforms.warp_image(np.full((8, 8, 3), 200, np.uint8), matrix, (8, 8))
    pixels = transforms.color_image(warped, Color())
    image = transforms.normalize(pixels, data.mean, data.std)
    np.testing.assert_allclose(image[0, 0], [-1.8044, -2.0358, -2.1179], atol=1e-4)
    padded = transforms.pad(image, (10, 9))
    assert padded.shape == (10, 9, 3) and padded.dtype == np.float32
    np.testing.assert_array_equal(padded[:8, :8], image)
    assert not np.any(padded[8:]) and not np.any(padded[:, 8:])
    np.testing.assert_array_equal(transforms.pad(image, (8, 8)), image)
    # Brightness also applies to the black pixels.
    pixels = transforms.color_image(warped, Color(brightness=0.1))
    assert pixels[0, 0, 0] == np.float32(0.1)


def test_padded_size_is_a_multiple_of_32():
    sizes = {(1, 32): (32, 32), (33, 64): (64, 64), (213, 320): (224, 320)}
    assert {size: transforms.padded_size(size) for size in sizes} == sizes


def test_color_image_follows_the_formula_without_clipping():
    random = np.random.default_rng(3)
    image = random.integers(0, 256, (16, 20, 3), np.uint8)
    plain = image.astype(np.float32) / 255
    np.testing.assert_array_equal(transforms.color_image(image, Color()), plain)
    brighter = transforms.color_image(image, Color(brightness=0.2))
    np.testing.assert_allclose(brighter, plain + 0.2, rtol=1e-6)
    assert brighter.max() > 1 and brighter.dtype == np.float32  # nothing is clipped
    darker = transforms.color_image(image, Color(brightness=-0.2, contrast=1.4))
    np.testing.assert_allclose(darker, (plain - np.float32(0.2)) * np.float32(1.4), atol=1e-6)
    assert darker.min() < 0
    for color in (Color(saturation=0.5), Color(0.15, 0.7, 1.2), Color(-0.2, 1.0, 1.2)):
        adjusted = (plain + np.float32(color.brightness)) * np.float32(color.contrast)
        hsv = cv2.cvtColor(adjusted, cv2.COLOR_BGR2HSV)
        hsv[..., 1] *= np.float32(color.saturation)
        expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        np.testing.assert_allclose(transforms.color_image(image, color), expected, atol=1e-6)


def test_saturation_scales_the_distance_to_the_largest_channel():
    # By the definition of HSV, value and hue stay, and the distance to the value is scaled.
    image = np.random.default_rng(4).integers(20, 200, (8, 8, 3), np.uint8)
    plain = image / 255
    value = plain.max(axis=-1, keepdims=True)
    expected = value - 0.6 * (value - plain)
    saturated = transforms.color_image(image, Color(saturation=0.6))
    np.testing.assert_allclose(saturated, expected, atol=1e-5)
    gray = np.full((4, 4, 3), 77, np.uint8)
    np.testing.assert_allclose(
        transforms.color_image(gray, Color(saturation=1.2)), gray / 255, atol=1e-6
    )


def test_normalize_subtracts_mean_and_divides_by_std():
    pixels = np.random.default_rng(5).uniform(0, 1, (4, 5, 3)).astype(np.float32)
    data = Data()
    expected = (255 * pixels.astype(np.float64) - data.mean) / data.std
    actual = transforms.normalize(pixels, data.mean, data.std)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert actual.dtype == np.float32


def flat(drawn):
    warp, color = drawn
    geometry = (*warp.perspective, warp.scale, *warp.stretch, warp.rotation, *warp.shear)
    return np.array([*geometry, float(warp.flip), *warp.center, *color])


def test_sample_covers_the_ranges_of_all_factors_independently():
    rng = np.random.default_rng(0)
    drawn = np.stack([flat(transforms.sample(rng, AUGMENT)) for _ in range(2000)])
    ranges = [
        *[(-1e-4, 1e-4)] * 2,
        AUGMENT.scale,
        AUGMENT.stretch_x,
        AUGMENT.stretch_y,
        (-20, 20),
        *[(-5, 5)] * 2,
        (0, 1),
        *[(0.3, 0.7)] * 2,
        (-0.2, 0.2),
        AUGMENT.contrast,
        AUGMENT.saturation,
    ]
    for column, (low, high) in zip(drawn.T, ranges, strict=True):
        assert low <= column.min() and column.max() <= high
        assert column.min() < low + 0.02 * (high - low)
        assert column.max() > high - 0.02 * (high - low)
    # Every factor is drawn separately; flip and colors are each applied with probability 1/2.
    always = drawn[:, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]]
    assert all(len(np.unique(column)) == len(drawn) for column in always.T)
    coins = np.stack([drawn[:, 8], *(drawn[:, 11:] != flat((Warp(), Color()))[11:]).T])
    assert np.all(np.abs(coins.mean(axis=1) - 0.5) < 0.05)
    together = np.corrcoef(np.concatenate([always.T, coins]))
    assert np.abs(together - np.eye(len(together))).max() < 0.1
    off = replace(AUGMENT, flip=0.0), replace(AUGMENT, flip=1.0)
    assert [transforms.sample(rng, augment)[0].flip for augment in off] == [False, True]


def test_sample_depends_on_the_generator_alone():
    first, again, other = (
        transforms.sample(np.random.default_rng(seed), AUGMENT) for seed in (7, 7, 8)
    )
    assert first == again and first != other
    neutral = transforms.sample(np.random.default_rng(0), Augment())
    assert neutral == (Warp(), Color())


def test_fill_slots_orders_objects_ignore_regions_and_padding():
    boxes = np.arange(20, dtype=np.float32).reshape(5, 4)
    labels, ignore = np.array([3, 9, 5, 7, 8]), np.array([False, True, False, True, False])
    truth = transforms.fill_slots(boxes, labels, ignore, 7)
    np.testing.assert_array_equal(truth.boxes[:5], boxes[[0, 2, 4, 1, 3]])
    assert not np.any(truth.boxes[5:])
    assert truth.labels.tolist() == [3, 5, 8, 0, 0, 0, 0]
    assert truth.valid.tolist() == [True] * 3 + [False] * 4
    assert truth.ignore.tolist() == [False] * 3 + [True] * 2 + [False] * 2
    assert [leaf.dtype for leaf in truth[:4]] == [np.float32, np.int32, bool, bool]


def test_fill_slots_drops_ignore_regions_first():
    boxes = np.arange(20, dtype=np.float32).reshape(5, 4)
    labels, ignore = np.arange(5), np.array([False, True, False, True, False])
    four = transforms.fill_slots(boxes, labels, ignore, 4)
    assert four.boxes[:, 0].tolist() == [0, 8, 16, 4]
    assert four.valid.sum() == 3 and four.ignore.sum() == 1
    two = transforms.fill_slots(boxes, labels, ignore, 2)
    assert two.labels.tolist() == [0, 2] and two.valid.all() and not two.ignore.any()
    none = transforms.fill_slots(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), 2)
    assert not any(leaf.any() for leaf in none[:4])


def test_is_visible_needs_sides_of_one_pixel():
    boxes = {
        (3, 4, 4, 5): True,
        (3, 4, 3.99, 9): False,
        (3, 4, 9, 4.99): False,
        (0, 5, 0, 20): False,
        (0, 0, 320, 1): True,
    }
    visible = transforms.is_visible(np.array(list(boxes), np.float32))
    assert visible.tolist() == list(boxes.values())
    assert transforms.is_visible(np.zeros((0, 4), np.float32)).tolist() == []


# Box, label, whether it is an ignore region, and the box scaled by 2 about the center of 32 x 32
# pixels.
MOVED = (
    ([1, 1, 6, 6], 3, False, [0, 0, 0, 0]),  # lost
    ([10, 10, 20, 20], 1, False, [4, 4, 24, 24]),
    ([26, 2, 31, 7], 0, True, [32, 0, 32, 0]),  # lost
    ([4, 10, 8.25, 20], 4, False, [0, 4, 0.5, 24]),  # clipped to half a pixel
    ([12, 12, 12.5, 20], 2, False, [8, 8, 9, 24]),
    ([14.0, 9, 14.25, 20], 5, False, [12, 2, 12.5, 24]),  # half a pixel wide
    ([20, 20, 30, 30], 0, True, [24, 24, 32, 32]),
)
SLOTS = 9


@pytest.mark.parametrize(
    ("keep", "objects", "regions"), [(True, (0, 1, 3, 4, 5), (2, 6)), (False, (1, 4), (6,))]
)
def test_boxes_lost_by_augmentation_are_kept_only_with_compat(keep, objects, regions):
    config = Config(
        input_size=(32, 32),
        data=Data(batch_size=2, workers=1),
        augment=Augment(scale=(2.0, 2.0)),
        compat=Compat(keep_lost_boxes=keep),
    )
    boxes, labels, ignore, moved = zip(*MOVED)
    pixels = np.full((32, 32, 3), 90, np.uint8)
    record = make_record(0, "a", pixels, (32, 32), boxes, labels, ignore, np.ones(len(MOVED)))
    batch = next(pipeline.training_batches([record, record], config, SLOTS))
    kept = [*objects, *regions]
    expected = np.zeros((SLOTS, 4))
    expected[: len(kept)] = [moved[i] for i in kept]
    padding = [0] * (SLOTS - len(objects))
    for truth in zip(*batch.ground_truth[:4]):
        truth = type(batch.ground_truth)(*truth)
        np.testing.assert_array_equal(truth.boxes, expected)
        assert truth.labels.tolist() == [labels[i] for i in objects] + padding
        assert truth.valid.sum() == len(objects) and truth.valid[: len(objects)].all()
        assert np.flatnonzero(truth.ignore).tolist() == list(range(len(objects), len(kept)))


@pytest.mark.parametrize("pixel_indices", [True, False])
def test_config_selects_how_images_are_resampled(pixel_indices):
    pixels = np.random.default_rng(8).integers(0, 256, (48, 70, 3), np.uint8)
    config = Config(input_size=(32, 32), compat=Compat(pixel_index_warp=pixel_indices))
    matrix, size = transforms.warp_matrix(Warp(), (48, 70), (32, 32), keep_ratio=False)
    warped = transforms.warp_image(pixels, matrix, size, pixel_indices)
    expected = transforms.normalize(
        transforms.color_image(warped, Color()), config.data.mean, config.data.std
    )
    prepared = pipeline.prepare_for_inference(pixels, config)
    np.testing.assert_array_equal(prepared.image, expected)
    record = make_record(0, "a", pixels, (48, 70), [], [], [], [])
    config.data.batch_size = 1
    batch = next(pipeline.training_batches([record], config, slots=1))
    np.testing.assert_array_equal(batch.images[0], expected)
