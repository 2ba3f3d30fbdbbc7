"""Cache of training images: what is kept, its limits, and batches that do not depend on it."""

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import cv2
import jax
import numpy as np
import pytest

from nanodet_jax.config import Augment, Config, Data
from nanodet_jax.data.cache import GB, TrainingImages
from nanodet_jax.data.pipeline import training_batches
from nanodet_jax.data.records import Category, make_record
from nanodet_jax.data.sources.in_memory import InMemorySource
from nanodet_jax.errors import UserError

SIZES = [(40, 56), (64, 48), (30, 90), (56, 40), (33, 47)]  # height, width
SLOTS = 2


class CountingSource(InMemorySource):
    """PNG files in memory; counts how often each is read."""

    def __init__(self, sizes=SIZES, known=True):
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
        self.known, self.reads, self._lock = known, Counter(), threading.Lock()
        super().__init__((Category(1, "thing"),), [*map(self._record, range(len(sizes)))])

    def _record(self, index):
        data = cv2.imencode(".png", self.pixels[index])[1].tobytes()
        boxes = [[2.0, 3, 20, 25]] * (index % 3)
        labels, ignore = np.zeros(len(boxes)), np.zeros(len(boxes))
        return make_record(index, f"{index}.png", data, (0, 0), boxes, labels, ignore, labels)

    def __getitem__(self, index):
        with self._lock:
            self.reads[index] += 1
        return super().__getitem__(index)

    def __len__(self):
        return len(self.pixels)

    def image_size(self, index):
        return self.pixels[index].shape[:2] if self.known else (0, 0)


def make_config(**data):
    augment = Augment(scale=(0.6, 1.4), translate=0.2, rotation=10.0, flip=0.5, contrast=(0.5, 1.5))
    values = {"batch_size": 2, "workers": 2} | data
    return Config(input_size=(32, 64), data=Data(**values), augment=augment)


def nbytes(sizes):
    return sum(3 * height * width for height, width in sizes)


def test_cached_image_is_decoded_once():
    source = CountingSource()
    images = TrainingImages(source, make_config(cache="ram", cache_gb=nbytes(SIZES) / GB))
    for _ in range(3):
        for index, pixels in enumerate(source.pixels):
            record = images[index]
            np.testing.assert_array_equal(record.image, pixels)
            assert (record.height, record.width) == SIZES[index]
            assert record.image_id == index and len(record.boxes) == index % 3
    assert source.reads == Counter(range(len(SIZES)))


def test_image_beyond_the_cache_limit_is_decoded_each_time():
    source = CountingSource()
    limit = nbytes(SIZES[:2]) + nbytes(SIZES[4:]) + 100
    images = TrainingImages(source, make_config(cache="ram", cache_gb=limit / GB))
    for _ in range(3):
        for index, pixels in enumerate(source.pixels):
            np.testing.assert_array_equal(images[index].image, pixels)
    assert [source.reads[index] for index in range(5)] == [1, 1, 3, 3, 1]


def test_image_without_cache_is_decoded_each_time():
    source = CountingSource()
    images = TrainingImages(source, make_config(cache="none"))
    for _ in range(2):
        np.testing.assert_array_equal(images[3].image, source.pixels[3])
    assert source.reads[3] == 2


def test_cache_limit_holds_for_many_threads():
    source = CountingSource([(20, 20)] * 40)
    limit = 10 * 3 * 20 * 20
    images = TrainingImages(source, make_config(cache="ram", cache_gb=limit / GB))
    with ThreadPoolExecutor(8) as pool:
        for index, record in enumerate(pool.map(images.__getitem__, [*range(40)] * 5)):
            np.testing.assert_array_equal(record.image, source.pixels[index % 40])
    before = Counter(source.reads)
    for index in range(40):
        images[index]
    assert sum(source.reads[index] == before[index] for index in range(40)) == 10


def test_cached_pixels_are_a_read_only_view_of_an_array():
    pixels = np.zeros((8, 9, 3), np.uint8)
    record = make_record(0, "a", pixels, (8, 9), [], [], [], [])
    images = TrainingImages([record], make_config(cache="ram"))
    kept = images[0].image
    assert np.shares_memory(kept, pixels)
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1
    pixels[0] = 1  # the array itself stays writable


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"cache": "ram"}, "cache: 0.01 MB per image (mean of 5); 5 of 5 fit in 4 GB of RAM"),
        (
            {"cache": "ram", "cache_gb": 2.5e-5},
            "cache: 0.01 MB per image (mean of 5); 3 of 5 fit in 2.5e-05 GB of RAM",
        ),
        ({"cache": "none"}, "cache: none; 0.01 MB per image (mean of 5), decoded each time"),
        (
            {"cache": "device", "augment": "device"},
            "cache: 5 images of 96x64 take 0.00 GB of device memory",
        ),
    ],
)
def test_cache_describes_its_size(data, line):
    assert TrainingImages(CountingSource(), make_config(**data)).describe() == line


def test_cache_description_decodes_only_a_sample():
    source = CountingSource([(20, 20)] * 100 + [(20, 10)] * 100)
    line = TrainingImages(source, make_config(cache="ram", cache_gb=9e-5)).describe()
    assert line == "cache: 0.00 MB per image (mean of 16); 100 of 200 fit in 9e-05 GB of RAM"
    assert len(source.reads) == 16


def test_image_larger_than_the_canvas_is_reduced_once():
    source = CountingSource([(100, 300), (40, 150), (64, 128)])
    config = make_config(cache="ram", augment="device")  # canvas 2, input 32 x 64
    images = TrainingImages(source, config)
    for index, size in enumerate([(64, 128), (40, 128), (64, 128)]):
        record = images[index]
        expected = cv2.resize(source.pixels[index], size[::-1], interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(record.image, expected)
        assert (record.height, record.width) == source.pixels[index].shape[:2]
        assert images[index] is record
    np.testing.assert_array_equal(images[2].image, source.pixels[2])


@pytest.mark.parametrize(
    ("sizes", "known", "canvas", "expected"),
    [
        (SIZES, True, 2.0, (64, 96)),  # the largest height, 64, and width, 90
        (SIZES, True, 1.0, (32, 64)),
        (SIZES, True, 1.25, (64, 96)),  # 40 x 80, rounded up
        (SIZES, False, 2.0, (64, 128)),
        ([*SIZES, (0, 0)], True, 2.0, (64, 128)),  # one unknown
        ([(10, 12)], True, 2.0, (32, 32)),
    ],
)
def test_canvas_holds_every_image_up_to_its_limit(sizes, known, canvas, expected):
    source = CountingSource([size for size in sizes if all(size)], known)
    if (0, 0) in sizes:
        source.pixels.append(np.zeros((0, 0, 3), np.uint8))
    config = make_config(cache="none", augment="device", canvas=canvas)
    assert TrainingImages(source, config).canvas == expected


def test_canvases_have_every_image_in_the_upper_left_corner():
    source = CountingSource(SIZES * 5)
    images = TrainingImages(source, make_config(cache="device", augment="device"))
    chunks = list(images.canvases())
    assert [len(chunk) for chunk in chunks] == [16, 9]
    for index, (canvas, pixels) in enumerate(zip(np.concatenate(chunks), source.pixels)):
        height, width = pixels.shape[:2]
        np.testing.assert_array_equal(canvas[:height, :width], pixels)
        assert not canvas[height:].any() and not canvas[:, width:].any()
        record = images[index]
        assert record.image == b"" and (record.height, record.width) == (height, width)
    assert set(source.reads.values()) == {1}


def test_device_cache_beyond_its_limit_is_an_error_with_a_sufficient_one():
    needed = 5 * 64 * 96 * 3 / GB
    data = {"cache": "device", "augment": "device"}
    TrainingImages(CountingSource(), make_config(**data, cache_gb=needed))
    with pytest.raises(UserError, match=r"cache_gb=5e-05: 5 images of 96x64 need 0\.00 GB"):
        TrainingImages(CountingSource(), make_config(**data, cache_gb=5e-5))
    many = CountingSource([(64, 90)] * 1000)
    with pytest.raises(UserError, match=r"need 0\.02 GB of device") as error:
        TrainingImages(many, make_config(**data, cache_gb=0.01))
    (fix,) = re.findall(r"--config\.data\.cache_gb=(\S+)", str(error.value))
    TrainingImages(many, make_config(**data, cache_gb=float(fix)))


@pytest.mark.parametrize("augment", ["host", "device"])
def test_batches_do_not_depend_on_cache_or_workers(augment):
    """Over several epochs, with a cache that holds all, some or none of the images."""

    def batches(**data):
        config = make_config(augment=augment, **data)
        return list(islice(training_batches(CountingSource(), config, SLOTS), 7))

    expected = batches(cache="none", workers=1)
    for data in (
        {"cache": "none", "workers": 3},
        {"cache": "ram", "workers": 1},
        {"cache": "ram", "workers": 4},
        {"cache": "ram", "workers": 3, "cache_gb": nbytes(SIZES[:2]) / GB},
    ):
        for ours, theirs in zip(batches(**data), expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert any(batch.ground_truth.valid.any() for batch in expected)


@pytest.mark.parametrize("workers", [1, 4])
def test_indices_into_the_device_cache_refer_to_the_same_pixels(workers):
    data = {"augment": "device", "workers": workers}
    images = TrainingImages(CountingSource(), make_config(cache="device", **data))
    stored = np.concatenate(list(images.canvases()))
    indices = training_batches(images, make_config(cache="device", **data), SLOTS)
    pixels = training_batches(CountingSource(), make_config(cache="ram", **data), SLOTS)
    for ours, theirs in islice(zip(indices, pixels), 7):
        assert ours.canvases.dtype == np.int32
        found = ours._replace(canvases=stored[ours.canvases])
        jax.tree.map(np.testing.assert_array_equal, found, theirs)
