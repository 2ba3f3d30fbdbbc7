"""Device augmentation against OpenCV on the host."""

from itertools import islice

import cv2
import jax
import numpy as np
import pytest

from nanodet_jax.config import Augment, Compat, Config, Data
from nanodet_jax.data import transforms
from nanodet_jax.data.cache import TrainingImages, stack_on_canvases
from nanodet_jax.data.device_augment import color, shrink, warp
from nanodet_jax.data.pipeline import training_batches
from nanodet_jax.data.records import make_record
from nanodet_jax.data.transforms import Color, Warp
from nanodet_jax.training.parallel import make_augment
from tests.builders import one_class_source

INPUT = (64, 96)
CANVAS = (96, 128)
SIZES = [(90, 128), (96, 64), (50, 40), (31, 100), (64, 96), (20, 17)]  # of images
SLOTS = 3
# Mean difference in gray levels. OpenCV 4 rounds positions in the image to 1/32 pixels.
CLOSE = 0.02 if int(cv2.__version__.split(".")[0]) >= 5 else 0.7
HALVED = 0.15  # OpenCV rounds an eighth of the means of 2 x 2 pixels differently
STRONG = Augment(
    perspective=1e-3, scale=(0.4, 1.6), stretch_x=(0.7, 1.3), stretch_y=(0.8, 1.2), rotation=30.0,
    shear=8.0, translate=0.2, flip=0.5, brightness=0.3, contrast=(0.5, 1.5), saturation=(0.3, 1.6),
)  # fmt: skip


def photograph(size, seed=0):
    """Return blurred noise of full contrast."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.0), None, 0, 255, cv2.NORM_MINMAX)


def on_canvas(image):
    """Put an image on a canvas with a border that must not be visible."""
    canvas = np.full((*CANVAS, 3), 255, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def draw(count):
    rng = np.random.default_rng(1)
    return [transforms.sample(rng, STRONG) for _ in range(count)]


@pytest.fixture(scope="module")
def jitted_warp():
    return jax.jit(warp, static_argnums=3)


@pytest.mark.parametrize("size", SIZES)
def test_warp_is_close_to_opencv(jitted_warp, size):
    image = photograph(size)
    for factors, _ in draw(8):
        matrix, _ = transforms.warp_matrix(factors, size, INPUT, keep_ratio=False)
        expected = cv2.warpPerspective(image, matrix, INPUT[::-1]).astype(int)
        inverse = np.linalg.inv(matrix).astype(np.float32)
        warped = jitted_warp(on_canvas(image), np.array(size, np.int32), inverse, INPUT)
        assert warped.dtype == np.uint8 and warped.shape == (*INPUT, 3)
        visible = expected.any(axis=-1)
        assert visible.sum() > 100
        assert np.abs(np.asarray(warped, int) - expected)[visible].mean() < CLOSE
        assert np.sum(np.asarray(warped)[~visible] > 0) < 0.01 * visible.size


def test_warp_by_whole_pixels_is_exact(jitted_warp):
    image = photograph((20, 30))
    matrix = transforms.translation(5, 7)
    inverse, size = np.linalg.inv(matrix).astype(np.float32), np.array([20, 30], np.int32)
    expected = np.zeros((*INPUT, 3), np.uint8)
    expected[7:27, 5:35] = image
    np.testing.assert_array_equal(jitted_warp(on_canvas(image), size, inverse, INPUT), expected)


def test_warp_with_a_line_at_infinity_is_black_there(jitted_warp):
    image = np.full((20, 30, 3), 200, np.uint8)
    inverse = np.array([[1, 0, 0], [0, 1, 0], [-0.125, 0, 1]], np.float32)  # 0 at x = 8
    warped = jitted_warp(on_canvas(image), np.array([20, 30], np.int32), inverse, INPUT)
    assert not warped[:, 8].any()
    assert warped[0, :6].all()


@pytest.mark.parametrize(
    ("size", "shrunk"),
    [
        ((90, 128), (64, 96)),
        ((96, 100), (33, 99)),
        ((60, 90), (20, 30)),
        ((61, 47), (61, 20)),
        ((33, 20), (1, 7)),
        ((33, 20), (33, 20)),
    ],
)
def test_shrink_is_close_to_area_interpolation_of_opencv(size, shrunk):
    image = photograph(size)
    expected = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA).astype(int)
    taps = max(-(-size[0] // shrunk[0]), -(-size[1] // shrunk[1])) + 1
    sizes = np.array(size, np.int32), np.array(shrunk, np.int32)
    for more in (0, 3):  # additional taps change nothing
        found = jax.jit(shrink)(on_canvas(image), *sizes, np.int32(taps + more))
        found = np.asarray(found, int)[: shrunk[0], : shrunk[1]]
        assert np.abs(found - expected).max() <= 1
        assert np.abs(found - expected).mean() < 0.02


def test_shrink_by_a_fraction_weights_pixels_by_overlap():
    """From 5 to 2 pixels, each of which overlaps two and a half."""
    row = np.array([10, 20, 40, 80, 160], float)
    image = np.zeros((8, 8, 3), np.uint8)
    image[:1, :5] = row[:, None]
    sizes = np.array([1, 5], np.int32), np.array([1, 2], np.int32)
    found = jax.jit(shrink)(image, *sizes, np.int32(4))
    # (10 + 20 + 20) / 2.5 and (20 + 80 + 160) / 2.5
    assert found[0, :2, 0].tolist() == [20, 104]


def test_colors_are_close_to_opencv():
    pixels = np.random.default_rng(2).integers(0, 256, (16, 20, 3), np.uint8)
    pixels[0] = 0  # black, and below gray, which have no hue
    pixels[1] = pixels[1, :, :1]
    negative = 0
    for _, factors in [*draw(40), (None, Color()), (None, Color(-0.9, 1.0, 0.5))]:
        expected = transforms.color_image(pixels, factors)
        negative += np.sum(expected.max(axis=-1) < 0)
        found = jax.jit(color)(pixels / np.float32(255), np.array(factors, np.float32))
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert negative > 100  # where the conversion to HSV behaves differently


def batches(records, count, config, where):
    config.data.augment = where
    images = TrainingImages(one_class_source(records), config)
    yield from islice(training_batches(images, config, SLOTS), count)


def records():
    boxes = [[1.0, 2, 15, 16], [5, 3, 16, 12]]
    return [
        make_record(i, "a", photograph(size, i), size, boxes, [0, 1], [False, i % 2 > 0], [1, 1])
        for i, size in enumerate(SIZES)
    ]


def make_config(pixel_indices, keep_ratio, augment=STRONG):
    return Config(
        input_size=INPUT,
        data=Data(batch_size=6, keep_ratio=keep_ratio),
        augment=augment,
        compat=Compat(keep_lost_boxes=False, pixel_index_warp=pixel_indices),
    )


def gray_levels(images, config):
    return np.asarray(images) * np.array(config.data.std, np.float32)


@pytest.mark.parametrize("keep_ratio", [True, False])
@pytest.mark.parametrize("pixel_indices", [True, False])
def test_device_augmentation_gives_the_images_and_boxes_of_the_host(pixel_indices, keep_ratio):
    config = make_config(pixel_indices, keep_ratio)
    hosts = list(batches(records(), 6, config, "host"))
    raws = list(batches(records(), 6, config, "device"))
    render = make_augment(config)
    for host, raw in zip(hosts, raws, strict=True):
        assert raw.canvases.dtype == np.uint8
        batch = render(raw)
        jax.tree.map(np.testing.assert_array_equal, batch.ground_truth, host.ground_truth)
        assert batch.images.dtype == host.images.dtype and batch.images.shape == host.images.shape
        ours, theirs = (gray_levels(images, config) for images in (batch.images, host.images))
        for one, other, (rows, columns) in zip(ours, theirs, raw.filled):
            assert not one[rows:].any() and not one[:, columns:].any()
            close = CLOSE if pixel_indices else CLOSE + HALVED
            assert np.abs(one - other)[:rows, :columns].mean() < close
    filled = np.concatenate([raw.filled for raw in raws])
    assert np.any(filled != INPUT) == keep_ratio
    shrunk = np.concatenate([raw.shrunk != raw.sizes for raw in raws])
    assert shrunk.any() != pixel_indices


@pytest.mark.parametrize("pixel_indices", [True, False])
def test_reduced_image_is_warped_to_the_same_position(pixel_indices):
    """The image is five times as large as the input, and smooth, so reducing it loses nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    smooth = cv2.resize(noise, (480, 320), interpolation=cv2.INTER_CUBIC)
    record = make_record(0, "a", smooth, (320, 480), [[60, 60, 200, 200]], [1], [False], [1])
    config = make_config(pixel_indices, False, Augment(scale=(0.8, 1.2), rotation=20.0, flip=0.5))
    config.data.canvas = 1.5
    hosts = batches([record] * 6, 2, config, "host")
    for host, raw in zip(list(hosts), list(batches([record] * 6, 2, config, "device"))):
        assert raw.sizes.tolist() == [[96, 144]] * 6
        batch = make_augment(config)(raw)
        jax.tree.map(np.testing.assert_array_equal, batch.ground_truth, host.ground_truth)
        ours, theirs = (gray_levels(images, config) for images in (batch.images, host.images))
        # A shift by one pixel of the input would exceed this.
        step = np.abs(np.diff(theirs, axis=2)).mean()
        assert np.abs(ours - theirs).mean() < 0.25 * step


@pytest.mark.parametrize("pixel_indices", [True, False])
def test_images_of_the_device_cache_give_the_same_batch(pixel_indices):
    config = make_config(pixel_indices, False)
    (raw,) = batches(records(), 1, config, "device")
    stored = stack_on_canvases([record.image for record in records()], CANVAS)
    indices = np.array([4, 1, 0, 0, 3, 5], np.int32)
    pixels = raw._replace(canvases=stored[indices])
    expected = make_augment(config)(pixels)
    found = make_augment(config, stored=jax.device_put(stored))(raw._replace(canvases=indices))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_batch_of_host_augmentation_is_returned_unchanged():
    config = make_config(True, True)
    (batch,) = batches(records(), 1, config, "host")
    assert make_augment(config)(batch) is batch


def test_augmentation_does_not_change_the_records():
    before = records()
    config = make_config(False, True)
    for where in ("host", "device"):
        list(batches(before, 3, config, where))
    for record, fresh in zip(before, records()):
        np.testing.assert_array_equal(record.image, fresh.image)


def test_device_augmentation_without_transforms_gives_the_image():
    config = make_config(False, False, Augment())
    image = photograph(INPUT)
    (batch,) = batches([make_record(0, "a", image, INPUT, [], [], [], [])] * 6, 1, config, "device")
    rendered = gray_levels(make_augment(config)(batch).images, config) + config.data.mean
    np.testing.assert_allclose(rendered[0], image, atol=1e-3)
    assert Warp() == transforms.sample(np.random.default_rng(0), Augment())[0]
