"""The step over several devices against the step on one.

Batch norm normalizes within a device. With the same images on each device, its statistics are those
of the whole batch. All results must then agree with one device, whatever the boxes: losses, their
divisors, gradients, and the optimizer's state.
"""

import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nanodet_jax import boxes as geometry
from nanodet_jax import config as configs
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.pipeline import training_batches
from nanodet_jax.data.records import make_record
from nanodet_jax.losses.criterion import Criterion, build_assigner
from nanodet_jax.models.heads.nanodet_head import split_logits
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.nanodet import build_model, priors_of
from nanodet_jax.state import abstract_variables, create_state
from nanodet_jax.structures import Batch, GroundTruth
from nanodet_jax.training.parallel import (
    make_augment,
    make_place_batch,
    make_train_step,
    upload_images,
)

DOC = Path(__file__).parents[2] / "docs" / "many_devices.md"
DEVICES, EACH, SIDE, STRIDE, SLOTS, CLASSES, BINS = 2, 2, 64, 8, 3, 2, 8
MODEL = configs.Model(backbone_strides=(STRIDE,))
STEPS = 2  # the second takes the state as the first one left it, on the devices
IMAGES = np.random.default_rng(0).normal(0.3, size=(EACH, SIDE, SIDE, 3)).astype(np.float32)
MANY = [[[4, 4, 40, 40], [20, 30, 60, 62], [1, 40, 12, 60]], [[8, 8, 56, 50]]]
FEW: list[list] = [[[12, 10, 50, 53]], []]
NONE: list[list] = [[], []]
BOXES = {
    "the same on each": (MANY, MANY),
    "unlike": (MANY, FEW),
    "one without any": (NONE, FEW),
    "none at all": (NONE, NONE),
}


class Tiny(nn.Module):
    """A network as a step sees it, in two layers: parameters, batch norm, predictions."""

    model = MODEL  # without a type, an attribute of the class and not a field
    is_random = False

    @nn.compact
    def branches(self, images, detach=False, train=True, axis_name=None, padded_sizes=None):
        side = SIDE // STRIDE
        x = images.reshape(-1, side, STRIDE, side, STRIDE, 3).transpose(0, 1, 3, 2, 4, 5)
        x = nn.Dense(16, use_bias=False)(x.reshape(-1, side, side, STRIDE * STRIDE * 3))
        x = nn.tanh(BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.Dense(CLASSES + 4 * BINS)(x).reshape(-1, side * side, CLASSES + 4 * BINS)
        return (split_logits(x, CLASSES),)


def parts_of(model, priors, assigner="atss"):
    """Arguments of `make_train_step`."""
    policy = build_assigner(configs.Assigner(assigner), configs.Compat())
    schedule = optax.linear_schedule(0.1, 0.05, 10)
    return {
        "model": model,
        "criterion": Criterion(priors, policy, configs.Loss()),
        "optimizer": optax.sgd(schedule, momentum=0.9),
        "schedule": schedule,
    }


PARTS = parts_of(Tiny(), geometry.make_priors((SIDE, SIDE), (STRIDE,), 0.5))


@pytest.fixture(scope="module", autouse=True)
def devices():
    if jax.local_device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices, and XLA_FLAGS was set otherwise")


@pytest.fixture(scope="module")
def steps():
    """The step on one device, and on two."""
    return tuple(make_train_step(num_devices=number, **PARTS) for number in (1, DEVICES))


def make_state():
    variables = Tiny().init(jax.random.key(0), jnp.asarray(IMAGES), method="branches")
    return create_state(variables, PARTS["optimizer"])


def make_batch(boxes):
    """IMAGES once for each device, with the boxes of each."""
    flat = [image for device in boxes for image in device]
    table = np.zeros((len(flat), SLOTS, 4), np.float32)
    for row, image in zip(table, flat):
        row[: len(image)] = np.reshape(image, (-1, 4))
    valid = np.arange(SLOTS) < np.asarray([len(image) for image in flat])[:, None]
    labels = np.where(valid, np.arange(SLOTS) % CLASSES, 0).astype(np.int32)
    truth = GroundTruth(table, labels, valid, np.zeros_like(valid))
    return Batch(np.concatenate([IMAGES] * len(boxes)), truth)


def train(step, batch):
    state = make_state()
    for _ in range(STEPS):
        state, metrics = step(state, batch)
    return jax.device_get((state, metrics))


def assert_close(ours, theirs, tolerance=1e-5):
    """Equal to 1e-5 of the largest number of each array: some ten roundings of these sums."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(theirs), jax.tree.leaves(ours)):
        scale = max(float(np.abs(leaf).max()), 1e-6)
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(other, leaf, rtol=0, atol=tolerance * scale, err_msg=name)


def biased(batch_stats, images):
    """Batch statistics without the correction for the number of samples, which depends on it."""
    samples = images * (SIDE // STRIDE) ** 2
    keep = BatchNorm.momentum**STEPS
    norm = batch_stats["norm"]
    return {"mean": norm["mean"], "var": (norm["var"] - keep) * (samples - 1) / samples}


@pytest.mark.parametrize("boxes", BOXES)
def test_step_of_two_devices_agrees_with_that_of_one(steps, boxes):
    batch = make_batch(BOXES[boxes])
    (one, expected), (two, metrics) = (train(step, batch) for step in steps)
    assert_close(metrics, expected)
    assert_close((two.params, two.opt_state), (one.params, one.opt_state))
    assert_close(biased(two.batch_stats, EACH), biased(one.batch_stats, EACH * DEVICES))
    assert two.step == one.step == STEPS
    assert (expected["positives"] > 0) == (boxes != "none at all")


def test_step_of_two_devices_with_equal_parts_agrees_with_that_of_one_part(steps):
    (one, expected), (two, metrics) = (
        train(step, make_batch([MANY] * number)) for step, number in zip(steps, (1, DEVICES))
    )
    assert metrics.pop("positives") == DEVICES * expected.pop("positives")
    assert_close(metrics, expected)
    assert_close(two, one)  # the running variance as well


def step_of_the_document(parts, state, batch):
    """State and metrics that the example in docs/many_devices.md computes."""
    code = re.search(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)[1]
    names = {"parts": parts, "state": state, "batch": batch}
    exec(code, names)
    return jax.device_get((names["state"], names["metrics"]))


@pytest.mark.filterwarnings("ignore:The function jit.*includes a pmap:UserWarning")  # of jax 0.7
def test_step_under_pmap_as_documented_is_equal_to_the_last_bit():
    """The step runs under a named axis, whichever transformation defines it."""
    count = jax.local_device_count()
    batch = make_batch((MANY, FEW, NONE, MANY) * (count // 4))
    found = step_of_the_document(PARTS, make_state(), batch)
    expected = jax.device_get(make_train_step(num_devices=count, **PARTS)(make_state(), batch))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert expected[1]["positives"] > 0


@pytest.mark.parametrize("plus", [False, True])
def test_step_of_the_network_can_be_traced_over_two_devices(plus):
    """The network's custom gradients must work under the axis; tracing shows that in seconds."""
    settings = configs.Model(num_classes=CLASSES, width=0.5, channels=32, stacked_convs=1)
    if plus:
        settings.neck, settings.guidance_channels, settings.guidance_convs = "ghost_pan", 32, 1
    model = build_model(settings)
    assigner = "dynamic_soft_label" if plus else "atss"
    parts = parts_of(model, priors_of(settings, (SIDE, SIDE)), assigner)
    if plus:
        parts |= {"ema_decay": 0.9998}
    state = jax.eval_shape(
        partial(create_state, optimizer=parts["optimizer"], ema=plus),
        abstract_variables(model, guided=True),
    )
    step = make_train_step(num_devices=DEVICES, **parts)
    after, metrics = jax.eval_shape(step, state, make_batch((MANY, FEW)))
    assert after == state
    assert metrics["loss"].shape == ()


class Noise(list):
    """Records of noise, each of a different size."""

    def __init__(self, count):
        rng = np.random.default_rng(0)
        for index in range(count):
            size = (40 + 3 * index, 60 - 2 * index)
            pixels = rng.integers(0, 256, (*size, 3), np.uint8)
            boxes = [[3.0, 4, 20, 30]] * (index % 3)
            none = np.zeros(len(boxes))
            self.append(make_record(index, f"{index}", pixels, size, boxes, none, none, none))

    def image_size(self, index):
        return self[index].height, self[index].width


@pytest.mark.parametrize("cache", ["ram", "device"])
def test_images_augmented_on_two_devices_equal_those_of_one(cache):
    config = configs.Config(
        input_size=(32, 64),
        data=configs.Data(batch_size=4, augment="device", cache=cache),
        augment=configs.Augment(scale=(0.5, 1.5), rotation=20.0, saturation=(0.5, 1.5)),
        compat=configs.Compat(pixel_index_warp=False),
    )
    made = []
    for number in (1, DEVICES):
        images = TrainingImages(Noise(9), config)
        stored = upload_images(images, number) if cache == "device" else None
        if stored is not None:
            assert stored.shape == (9, *images.canvas, 3)
            assert len(stored.sharding.device_set) == number
            for record, canvas in zip(Noise(9), np.asarray(stored)):
                shown = canvas[: record.height, : record.width]
                np.testing.assert_array_equal(shown, record.image)
        place, augment = make_place_batch(number), make_augment(config, number, stored)
        batches = training_batches(images, config, slots=2)
        batch = [augment(place(next(batches))) for _ in range(3)][-1]
        assert len(batch.images.sharding.device_set) == number
        assert batch.images.sharding.shard_shape(batch.images.shape)[0] == 4 // number
        made.append(jax.device_get(batch))
    np.testing.assert_allclose(made[1].images, made[0].images, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, made[1].ground_truth, made[0].ground_truth)


@pytest.mark.parametrize("number", [1, DEVICES])
def test_placed_batch_is_split_over_the_devices(number):
    batch = make_batch((MANY, FEW))
    placed = make_place_batch(number)(batch)
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding.shard_shape(leaf.shape)[0] == len(leaf) // number
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
