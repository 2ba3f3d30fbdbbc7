"""Groups of prepared images: every image once, in few shapes, with bounded memory."""

import numpy as np
import pytest

from nanodet_jax.data.pipeline import Prepared
from nanodet_jax.inference import batches as module
from nanodet_jax.inference.batches import batches_by_shape


def prepared(index, height, width):
    image = np.full((height, width, 3), index, np.float32)
    return Prepared(image, np.eye(3), np.array([height, width]))


def shapes(images):
    return [batch.images.shape[:3] for batch in batches_by_shape(images)]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (2, [2]), (3, [4]), (5, [8]), (8, [8]), (9, [8, 1]), (19, [8, 8, 4])],
)
def test_batches_have_a_power_of_two_of_images(count, sizes):
    assert shapes(prepared(i, 32, 32) for i in range(count)) == [(n, 32, 32) for n in sizes]


def test_batches_contain_every_image_once_with_its_index():
    random = np.random.default_rng(0)
    sides = 32 * random.integers(1, 4, (50, 2))
    found = {}
    for batch in batches_by_shape(prepared(i, *side) for i, side in enumerate(sides)):
        for row, index in enumerate(batch.indices):
            assert np.all(batch.images[row] == index)
            assert index not in found
            found[index] = batch.images.shape[1:3]
    assert found == {index: tuple(side) for index, side in enumerate(sides)}


def test_batches_of_large_images_have_at_most_the_pixel_limit():
    assert module.BATCH_PIXELS == 2048 * 2048
    assert shapes([prepared(0, 2048, 2048)] * 2) == [(1, 2048, 2048)] * 2
    assert shapes([prepared(0, 1024, 1056)] * 4) == [(2, 1024, 1056)] * 2
    assert shapes([prepared(0, 2048, 2080)]) == [(1, 2048, 2080)]


def test_batches_hold_back_a_bounded_number_of_pixels(monkeypatch):
    monkeypatch.setattr(module, "WAITING_PIXELS", 8 * 32 * 32)
    read = []

    def images():
        for index in range(70):
            read.append(index)
            yield prepared(index, 32, 32 * (1 + index % 7))

    held, yielded = [], 0
    for batch in batches_by_shape(images()):
        held.append(len(read) - yielded)
        yielded += len(batch.indices)
    assert yielded == 70
    assert max(held) <= 9  # 8 of the narrowest, and the one that exceeds the limit
