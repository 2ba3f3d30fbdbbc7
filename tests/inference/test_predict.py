"""`detect_batches`: order, padding, and overlap of device and host."""

import jax
import numpy as np

from nanodet_jax.data.pipeline import Prepared, stack
from nanodet_jax.inference.predict import detect_batch, detect_batches
from nanodet_jax.structures import Detections

SLOTS = 3


def batches(count, size):
    """Return `count` images in batches of `size`; every pixel of image k has the value k."""
    images = [np.full((32, 32, 3), k, np.float32) for k in range(count)]
    prepared = [Prepared(image, np.eye(3), np.array([32, 32])) for image in images]
    return [
        stack([(k, prepared[k]) for k in range(start, min(start + size, count))], size)
        for start in range(0, count, size)
    ]


def detect(variables, images, inverse_warps, sizes, padded_sizes):
    """Return k % 4 detections for image k, and all slots for the images that pad a batch."""
    first = images[:, 0, 0, 0]
    count = np.where(sizes[:, 0] > 0, first % 4, SLOTS)
    valid = np.arange(SLOTS) < count[:, None]
    scores = np.where(valid, first[:, None] / 100, 0).astype(np.float32)
    return Detections(
        boxes=np.repeat(scores[..., None], 4, axis=-1),
        scores=scores,
        labels=np.zeros(valid.shape, np.int32),
        valid=valid,
        truncated=first > 5,
    )


def test_detect_batches_yields_each_image_once_for_any_batch_size():
    for size in (1, 2, 3, 7, 10):
        detected = list(detect_batches(detect, None, batches(7, size)))
        assert [index for index, _ in detected] == list(range(7))
        for k, one in detected:
            assert len(one.boxes) == len(one.labels) == len(one.valid) == k % 4
            np.testing.assert_array_equal(one.scores, np.full(k % 4, np.float32(k / 100)))
            assert one.truncated == (k > 5)
    assert list(detect_batches(detect, None, [])) == []
    assert [index for index, _ in detect_batch(detect, None, batches(3, 4)[0])] == [0, 1, 2]


def test_detect_batches_dispatches_a_batch_before_fetching_the_previous(monkeypatch):
    events = []

    def device_get(tree):
        assert isinstance(tree, Detections)  # one transfer per batch
        events.append("read")
        return tree

    def logged(*args):
        events.append("detect")
        return detect(*args)

    monkeypatch.setattr(jax, "device_get", device_get)
    for index, _ in detect_batches(logged, None, batches(5, 2)):
        events.append(index)
    assert events == ["detect", "detect", "read", 0, 1, "detect", "read", 2, 3, "read", 4]
