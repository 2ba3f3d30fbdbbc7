"""Images that cannot be read: what takes their place, what is said, and when a run stops."""

from itertools import islice

import cv2
import jax
import numpy as np
import pytest

from nanodet_jax.config import Augment, Config, Data
from nanodet_jax.data import unreadable
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.pipeline import evaluation_batches, training_batches
from nanodet_jax.data.records import Category, make_record
from nanodet_jax.errors import UserError

COUNT = 12


class Album:
    """Image i is grey of value i, with i % 3 boxes; those in `bad` are no images."""

    categories = (Category(1, "thing"),)

    def __init__(self, bad=(), prefix=""):
        self.bad, self.prefix = bad, prefix

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        pixels = np.full((40, 40, 3), index, np.uint8)
        data = b"none" if index in self.bad else cv2.imencode(".png", pixels)[1].tobytes()
        boxes = [[2.0, 3, 20 + index, 30]] * (index % 3)
        zeros = np.zeros(len(boxes))
        name = f"{self.prefix}{index}.png"
        return make_record(index, name, data, (40, 40), boxes, zeros, zeros, zeros)

    def num_boxes(self, index):
        return index % 3

    def image_size(self, index):
        return 40, 40


def make_config(share=1.0, **data):
    values = {"batch_size": 3, "workers": 2, "max_unreadable": share} | data
    augment = Augment(translate=0.1, flip=0.5, contrast=(0.5, 1.5))
    return Config(input_size=(32, 32), data=Data(**values), augment=augment)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(unreadable, "say", lines.append)
    return lines


def test_the_next_that_can_be_read_takes_its_place(said):
    images = TrainingImages(Album(bad={3, 4, 11}), make_config())
    for index, place in ((3, 5), (4, 5), (11, 0), (7, 7)):
        record, expected = images[index], Album()[place]
        assert (record.image == place).all() and record.name == expected.name
        np.testing.assert_array_equal(record.boxes, expected.boxes)
    assert [line.split(": ")[1] for line in said] == [
        "3.png (image 3)",
        "4.png (image 4)",
        "11.png (image 11)",
    ]
    assert said[2].endswith("(3 such, at most 12 of 12)")


@pytest.mark.parametrize("augment", ["host", "device"])
def test_batches_are_a_function_of_data_and_step_alone(augment, said):
    """Whatever the cache, the workers, and where a run was resumed."""
    source = Album(bad={0, 1, 6, 11})

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


def test_each_is_told_once(said):
    source, config = Album(bad={2, 8}, prefix="own"), make_config(cache="none")
    images = TrainingImages(source, config)
    for _ in islice(training_batches(images, config, 2), 12):  # three epochs
        pass
    # Threads of the loaders of other tests, which read ahead, may still have something to say.
    own = sorted(line.split(": ")[1] for line in said if "own" in line)
    assert own == ["own2.png (image 2)", "own8.png (image 8)"]


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 0), (0.1, 1), (0.25, 3)])
def test_too_many_stop_a_run(share, allowed, said):
    config = make_config(share, cache="none")
    list(islice(training_batches(Album(bad=range(allowed)), config, 2), 4))
    assert len(said) == allowed
    message = (
        rf"^{allowed + 1} of 12 images are unreadable: .*\.png \(image \d+\): no image that OpenCV "
        rf"can read; .*max_unreadable={share:g} allows {allowed}; `nanodet-jax doctor` lists"
    )
    with pytest.raises(UserError, match=message):
        list(islice(training_batches(Album(bad=range(allowed + 1)), config, 2), 4))


def test_not_all_may_be_unreadable(said):
    config = make_config(1.0)
    for read in (training_batches(Album(range(COUNT)), config, 2),
                 evaluation_batches(Album(range(COUNT)), config)):  # fmt: skip
        with pytest.raises(UserError, match="12 of 12 images are unreadable"):
            next(read)


def test_evaluation_leaves_them_out_and_says_so(said):
    config = make_config(0.2)
    found = [i for b in evaluation_batches(Album(bad={0, 5}), config) for i in b.indices]
    assert sorted(found) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert [line.split(": ")[1] for line in said] == ["0.png (image 0)", "5.png (image 5)"]
    with pytest.raises(UserError, match="3 of 12 images are unreadable"):
        list(evaluation_batches(Album(bad={0, 5, 6}), config))


def test_images_on_the_device_are_replaced_as_well(said):
    images = TrainingImages(Album(bad={1, 2}), make_config(augment="device", cache="device"))
    (canvases,) = images.canvases()
    assert canvases[:, 0, 0, 0].tolist() == [0, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert len(images[1].boxes) == len(Album()[3].boxes) == 0
