"""Inputs whose shorter side has a fixed length: sizes, buckets, and the order of images."""

import cv2
import numpy as np
import pytest

from nanodet_jax import config
from nanodet_jax.config import Augment, Config
from nanodet_jax.data.buckets import bucket_of, buckets, input_matrix, short_side_size
from nanodet_jax.data.grouped_order import GroupedOrder
from nanodet_jax.data.pipeline import (
    evaluation_batches,
    images_of_step,
    prepare_for_inference,
    training_batches,
)
from nanodet_jax.data.records import make_record
from nanodet_jax.data.transforms import resize
from tests.models.test_padding import MODEL

INPUT = (64, 107)  # a twelfth of mmdetection's 800 x 1333
# Height and width of images: two landscape ratios, two portrait ones, and a square.
SIZES = [(48, 64), (30, 80), (64, 48), (90, 30), (50, 50)] * 4


def settings(batch_size=2, **augment):
    made = Config(input_size=INPUT, model=MODEL, augment=Augment(**augment))
    made.data = config.Data(resize="short_side", batch_size=batch_size, workers=2)
    made.assigner = config.Assigner(name="gfl", anchor_scale=8.0)
    config.check(made)
    return made


class Images(list):
    """A source of images of random pixels, each with one box."""

    def __init__(self, sizes):
        rng = np.random.default_rng(0)
        super().__init__(
            make_record(
                i,
                f"{i}",
                rng.integers(0, 255, (*size, 3), np.uint8),
                size,
                np.array([[4, 6, 24, 26]], np.float32),
                np.array([0]),
                np.array([False]),
                np.ones(1),
            )
            for i, size in enumerate(sizes)
        )

    def image_size(self, index):
        return self[index].height, self[index].width


def test_short_side_size_equals_that_of_mmdetection():
    assert short_side_size((480, 640), (800, 1333)) == (800, 1067)
    assert short_side_size((640, 480), (800, 1333)) == (1067, 800)
    assert short_side_size((427, 640), (800, 1333)) == (800, 1199)
    assert short_side_size((300, 900), (800, 1333)) == (444, 1333)
    assert short_side_size((480, 640), (800, 1333), 480) == (480, 640)
    matrix, size = input_matrix((480, 640), settings_of_gfl())
    assert size == (800, 1067)
    assert (matrix[0, 0], matrix[1, 1]) == (1067 / 640, 800 / 480)  # 1.6671875, 1.6666667


def settings_of_gfl():
    made = settings()
    made.input_size = (800, 1333)
    return made


def test_buckets_contain_every_size_with_the_smallest_area():
    expected = {(800, 1088), (1088, 800), (800, 1344), (1344, 800), (1344, 1344)}
    assert set(buckets((800, 1333))) == set(buckets((1333, 800))) == expected
    rng = np.random.default_rng(0)
    for _ in range(300):
        image_size = tuple(rng.integers(1, 4000, 2).tolist())
        height, width = short_side_size(image_size, (800, 1333))
        fitting = [(h, w) for h, w in expected if height <= h and width <= w]
        found = bucket_of([(height, width)], (800, 1333))
        assert found in fitting and found[0] * found[1] == min(h * w for h, w in fitting)
    assert bucket_of([(800, 1000), (1000, 800)], (800, 1333)) == (1344, 1344)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_grouped_order_uses_each_image_once_in_batches_of_one_group(batch_size):
    groups = [(1, 2)] * 9 + [(2, 1)] * 5 + [(3, 3)]
    order = GroupedOrder(groups, batch_size, seed=5)
    used = len(groups) // batch_size * batch_size
    epochs = [[order[epoch * used + i] for i in range(used)] for epoch in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == used
        batches = [epoch[i : i + batch_size] for i in range(0, used, batch_size)]
        mixed = [len({groups[index] for index in batch}) > 1 for batch in batches]
        whole = sum(groups.count(group) // batch_size for group in set(groups))
        assert mixed.count(False) >= whole and not any(mixed[:whole])
    assert epochs[0] != epochs[1] != epochs[2]
    again = GroupedOrder(groups, batch_size, seed=5)
    assert [again[used + i] for i in range(used)] == epochs[1]
    other = GroupedOrder(groups, batch_size, seed=6)
    assert [other[i] for i in range(used)] != epochs[0]


def test_training_batches_have_the_size_of_a_bucket_and_say_what_is_padding():
    source, made = Images(SIZES), settings(flip=0.5)
    batches = training_batches(source, made, slots=1)
    shapes = set()
    for step in range(1, 11):
        images, truth = next(batches)
        shapes.add(images.shape[1:3])
        names = images_of_step(source, made, step)
        for row, name in enumerate(names):
            image_size = source.image_size(int(name))
            height, width = short_side_size(image_size, INPUT)
            assert truth.image_size[row].tolist() == [height, width]
            assert truth.padded_size[row].tolist() == [
                -(-side // 32) * 32 for side in (height, width)
            ]
            assert not images[row, height:].any() and not images[row, :, width:].any()
            x1, y1, x2, y2 = np.array([4, 6, 24, 26]) * np.tile(
                [width / image_size[1], height / image_size[0]], 2
            )
            flipped = [width - x2, y1, width - x1, y2]
            found = truth.boxes[row, 0]
            assert np.allclose(found, [x1, y1, x2, y2]) or np.allclose(found, flipped)
    assert shapes <= set(buckets(INPUT)) and len(shapes) > 2


def test_random_short_sides_are_within_their_range():
    made = settings(batch_size=1, short_side=(32, 40))
    batches = training_batches(Images([(60, 60)]), made, slots=1)
    sides = {tuple(next(batches).ground_truth.image_size[0].tolist()) for _ in range(40)}
    assert all(height == width for height, width in sides)
    found = sorted(height for height, _ in sides)
    assert found[0] >= 32 and found[-1] <= 40 and len(found) > 5


def test_resize_equals_opencv_and_moves_boxes_with_the_pixels():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    expected = cv2.resize(image, (45, 40), interpolation=cv2.INTER_LINEAR)
    resized, matrix = resize(image, (40, 45))
    np.testing.assert_array_equal(resized, expected)
    np.testing.assert_allclose(matrix @ [30, 20, 1], [45, 40, 1])
    flipped, matrix = resize(image, (40, 45), flip=True)
    np.testing.assert_array_equal(flipped, expected[:, ::-1])
    np.testing.assert_allclose(matrix @ [0, 0, 1], [45, 0, 1])
    np.testing.assert_allclose(matrix @ [30, 20, 1], [0, 40, 1])


def test_evaluation_uses_few_shapes_and_every_image_once():
    source, made = Images([(h, w) for h in range(30, 90, 7) for w in range(30, 90, 7)]), settings()
    batches = list(evaluation_batches(source, made))
    assert {batch.images.shape[1:3] for batch in batches} <= set(buckets(INPUT))
    assert sorted(index for batch in batches for index in batch.indices) == [*range(len(source))]
    for batch in batches:
        for row, index in enumerate(batch.indices):
            alone = prepare_for_inference(source[index].image, made)
            np.testing.assert_array_equal(batch.padded_sizes[row], alone.padded_size)
            np.testing.assert_array_equal(batch.images[row], alone.image)
