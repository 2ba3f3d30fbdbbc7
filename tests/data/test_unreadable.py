"""Unreadable images: their replacement, the messages, and the limit that stops a run."""

from itertools import islice

import cv2
import jax
import numpy as np
import pytest

from nanodet_jax.config import Augment, Config, Data
from nanodet_jax.data import unreadable
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.pipeline import evaluation_batches, training_batches
from nanodet_jax.data.records import decode, make_record
from nanodet_jax.errors import UserError
from tests.builders import one_class_source

COUNT = 12


def album(bad=(), prefix=""):
    """Return a source of gray images of value i with i % 3 boxes; those in `bad` are broken."""

    def record(index):
        pixels = np.full((40, 40, 3), index, np.uint8)
        data = b"broken" if index in bad else cv2.imencode(".png", pixels)[1].tobytes()
        boxes = [[2.0, 3, 20 + index, 30]] * (index % 3)
        zeros = np.zeros(len(boxes))
        name = f"{prefix}{index}.png"
        return make_record(index, name, data, (40, 40), boxes, zeros, zeros, zeros)

    return one_class_source([record(index) for index in range(COUNT)])


def make_config(max_unreadable=1.0, **data):
    values = {"batch_size": 3, "workers": 2, "max_unreadable": max_unreadable} | data
    augment = Augment(translate=0.1, flip=0.5, contrast=(0.5, 1.5))
    return Config(input_size=(32, 32), data=Data(**values), augment=augment)


@pytest.fixture
def messages(monkeypatch):
    lines = []
    monkeypatch.setattr(unreadable, "say", lines.append)
    return lines


def test_unreadable_training_image_is_replaced_by_the_next_readable_one(messages):
    images = TrainingImages(album(bad={3, 4, 11}), make_config())
    for index, replacement in ((3, 5), (4, 5), (11, 0), (7, 7)):
        record, expected = images[index], album()[replacement]
        assert (decode(record) == replacement).all() and record.name == expected.name
        np.testing.assert_array_equal(record.boxes, expected.boxes)
    assert [line.split(": ")[1] for line in messages] == [
        "3.png (image 3)",
        "4.png (image 4)",
        "11.png (image 11)",
    ]
    assert messages[2].endswith("(unreadable images so far: 3; at most 12 of 12 are allowed)")


@pytest.mark.parametrize("augment", ["host", "device"])
def test_batches_with_unreadable_images_depend_on_data_and_step_alone(augment, messages):
    """Cache, number of workers and the step of resuming make no difference."""
    source = album(bad={0, 1, 6, 11})

    def batches(start, count, **data):
        config = make_config(augment=augment, **data)
        return list(islice(training_batches(source, config, 2, start), count))

    expected = batches(0, 9, cache="none", workers=1)
    pixels = expected[0].canvases if augment == "device" else expected[0].images
    assert pixels.any()
    for data in ({"cache": "ram", "workers": 3}, {"cache": "none", "workers": 4}):
        for ours, theirs in zip(batches(0, 9, **data), expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        for ours, theirs in zip(batches(5, 4, **data), expected[5:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_unreadable_image_is_reported_once(messages):
    source, config = album(bad={2, 8}, prefix="own"), make_config(cache="none")
    images = TrainingImages(source, config)
    for _ in islice(training_batches(images, config, 2), 12):  # three epochs
        pass
    # Loader threads of other tests read ahead, and may still report something.
    own = sorted(line.split(": ")[1] for line in messages if "own" in line)
    assert own == ["own2.png (image 2)", "own8.png (image 8)"]


@pytest.mark.parametrize(("fraction", "allowed"), [(0.0, 0), (0.1, 1), (0.25, 3)])
def test_too_many_unreadable_images_are_an_error(fraction, allowed, messages):
    config = make_config(fraction, cache="none")
    list(islice(training_batches(album(bad=range(allowed)), config, 2), 4))
    assert len(messages) == allowed
    message = (
        rf"^{allowed + 1} of 12 images are unreadable: .*\.png \(image \d+\): not an image that "
        rf"OpenCV can read.*max_unreadable={fraction:g} allows {allowed}; `nanodet-jax doctor`"
    )
    with pytest.raises(UserError, match=message):
        list(islice(training_batches(album(bad=range(allowed + 1)), config, 2), 4))


def test_all_images_unreadable_is_an_error_whatever_the_limit(messages):
    config = make_config(1.0)
    for read in (training_batches(album(range(COUNT)), config, 2),
                 evaluation_batches(album(range(COUNT)), config)):  # fmt: skip
        with pytest.raises(UserError, match="12 of 12 images are unreadable"):
            next(read)


def test_evaluation_skips_and_reports_unreadable_images(messages):
    config = make_config(0.2)
    found = [i for b in evaluation_batches(album(bad={0, 5}), config) for i in b.indices]
    assert sorted(found) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert [line.split(": ")[1] for line in messages] == ["0.png (image 0)", "5.png (image 5)"]
    with pytest.raises(UserError, match="3 of 12 images are unreadable"):
        list(evaluation_batches(album(bad={0, 5, 6}), config))


def test_unreadable_image_is_replaced_in_the_device_cache(messages):
    images = TrainingImages(album(bad={1, 2}), make_config(augment="device", cache="device"))
    (canvases,) = images.canvases()
    assert canvases[:, 0, 0, 0].tolist() == [0, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert len(images[1].boxes) == len(album()[3].boxes) == 0
