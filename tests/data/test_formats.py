"""Each format and export of the same images gives the same records and the same training."""

from pathlib import Path

import jax
import numpy as np
import pytest

from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.faults import FaultKind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import training_batches
from nanodet_jax.data.records import decode
from nanodet_jax.data.sources.shapes import NAMES, ShapesSource
from nanodet_jax.training import build
from nanodet_jax.training.parallel import make_place_batch
from tests.builders import tiny_config
from tests.formats import FORMATS

COUNT, SIZE, STEPS = 40, 64, 10
RECORDS = list(ShapesSource("train", SIZE, COUNT))
ROUNDING = SIZE * 1e-6  # pixels; half the last digit of center and side


# In an image of this size, six digits are exact for boxes of whole pixels. A box that is rounded in
# the text may be assigned differently, which changes the loss by a percent.
EXACT_SIZE = 80


def config_of(write, root: Path, records=RECORDS):
    write(root, records)
    config = tiny_config(steps=STEPS)
    config.data.format, config.data.root = FORMATS[write][0], str(root)
    config.data.classes, config.data.val = NAMES, "none"
    return config


@pytest.fixture(params=FORMATS, ids=lambda write: write.__name__.removeprefix("write_"))
def write(request):
    return request.param


def test_format_gives_the_records_that_were_written(write, tmp_path):
    faults = []
    source = open_source(config_of(write, tmp_path), "train", faults.append)
    tolerated = {FaultKind.DERIVED, FaultKind.SUPER_CATEGORY, FaultKind.RENAMED}
    assert {fault.kind for fault in faults} <= tolerated
    assert [category.name for category in source.categories] == list(NAMES)
    assert len(source) == COUNT
    exact = FORMATS[write][1]
    for found, expected in zip(source, RECORDS):
        assert found.labels.tolist() == expected.labels.tolist()
        assert (found.height, found.width) == (SIZE, SIZE)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0 if exact else ROUNDING)
        sides = expected.boxes[:, 2:] - expected.boxes[:, :2]
        np.testing.assert_allclose(found.areas, sides.prod(axis=1), rtol=1e-4)
        assert not found.ignore.any()
    for found, expected in zip([source[0], source[COUNT - 1]], [RECORDS[0], RECORDS[-1]]):
        np.testing.assert_array_equal(decode(found), expected.image)
    truth = source.ground_truth()
    assert len(truth["images"]) == COUNT
    assert len(truth["annotations"]) == sum(len(record.boxes) for record in RECORDS)


@pytest.mark.slow
def test_format_of_the_same_images_gives_the_same_loss(tmp_path, monkeypatch):
    """Each format is trained with the step that was compiled for the first format."""
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    records = list(ShapesSource("train", EXACT_SIZE, COUNT))
    configs = {}
    for write in FORMATS:
        configs[write] = config_of(write, tmp_path / write.__name__, records)
    first, *_ = configs.values()
    place = make_place_batch(1)
    losses = {}
    with build.build(first, tmp_path / "run") as run:
        start = jax.device_get(run.state)
        for write, config in configs.items():
            source = open_source(config, "train")
            slots = max(len(record.boxes) for record in records)
            batches = training_batches(TrainingImages(source, config), config, slots)
            state = jax.device_put(start)
            for _ in range(STEPS):
                state, metrics = run.train_step(state, run.augment(place(next(batches))))
            losses[write] = float(metrics["loss"])
    expected = losses[next(iter(FORMATS))]
    assert np.isfinite(expected)
    for write, loss in losses.items():
        assert abs(loss - expected) <= 1e-6 * expected, write.__name__
