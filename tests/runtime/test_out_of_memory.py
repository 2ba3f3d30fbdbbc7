"""Errors for a batch or a cache that does not fit in memory: one line that names a fix."""

import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import train_and_evaluate
from nanodet_jax.config import Config
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.image_files import imdecode
from nanodet_jax.errors import UserError
from nanodet_jax.inference.predict import detect_batch
from nanodet_jax.runtime import memory, out_of_memory
from nanodet_jax.runtime.memory import host_memory
from nanodet_jax.runtime.out_of_memory import (
    exhausted_memory,
    reporting_image_out_of_memory,
    reporting_out_of_memory,
)
from nanodet_jax.training import build
from tests.builders import tiny_config

# Messages of XLA: at run time on each platform, and at compile time on a TPU.
CPU = "RESOURCE_EXHAUSTED: Out of memory allocating 64500000000 bytes."
GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.50GiB."
TPU = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm."
ALL_OF_IT = 1 << 47  # bytes: the whole address space of a process, which no machine has


def no_memory_in_opencv():
    error = cv2.error("OpenCV: Insufficient memory")
    error.code = cv2.Error.StsNoMem
    return error


@pytest.fixture
def place(monkeypatch):
    """Set the platform and the memory statistics of a single device; the host has 32 GB."""

    def call(platform, **stats):
        device = types.SimpleNamespace(platform=platform, memory_stats=lambda: stats or None)
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
        monkeypatch.setattr(jax, "local_device_count", lambda: 1)
        monkeypatch.setattr(jax, "default_backend", lambda: platform)

    monkeypatch.setattr(out_of_memory, "host_memory", lambda: int(32e9))
    return call


def config_of(**changes):
    config = Config(input_size=(320, 640))
    config.data.batch_size = 32
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(config, section) if section else config, field, value)
    return config


def message(error, config=None, training=True):
    with (
        pytest.raises(UserError) as caught,
        reporting_out_of_memory(config or config_of(), training),
    ):
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


ASKED = (
    "out of memory: batches of 32 images of 320 x 640 in float32 with training.accumulate=1, "
    "data.cache=ram and data.workers=2 do not fit"
)
BATCH = (
    "--config.training.accumulate=2 or --config.precision=bf16 or --config.data.batch_size=16 or "
    "--config.input_size=256,512"
)
LOADER = "--config.data.cache_gb=2 or --config.data.cache=none or --config.data.workers=1"


@pytest.mark.parametrize(
    ("platform", "stats", "text", "memory"),
    [
        ("gpu", {"bytes_limit": int(16e9), "bytes_in_use": int(9.5e9)}, GPU,
         " (allocating 12.50GiB failed) in the memory of the gpu device, 16.0 GB with 9.5 GB in "
         f"use (host, 32.0 GB); set {BATCH}"),
        ("tpu", {"bytes_limit": int(16e9)}, TPU,
         f" in the memory of the tpu device, 16.0 GB (host, 32.0 GB); set {BATCH}"),
        ("gpu", {}, GPU, " (allocating 12.50GiB failed) in the memory of the gpu device (host, "
                         f"32.0 GB); set {BATCH}"),
        ("cpu", {}, CPU, " (allocating 64.5 GB failed) in the memory of the host, 32.0 GB; set "
                         f"{BATCH} or {LOADER}"),
    ],
)  # fmt: skip
def test_batch_that_does_not_fit_names_request_memory_and_flags(
    place, platform, stats, text, memory
):
    place(platform, **stats)
    assert message(jax.errors.JaxRuntimeError(text)) == ASKED + memory


@pytest.mark.parametrize("error", [MemoryError(), no_memory_in_opencv()])
def test_host_out_of_memory_names_the_flags_of_the_loader_first(place, error):
    place("gpu", bytes_limit=int(16e9))
    expected = f"{ASKED} in the memory of the host, 32.0 GB; set {LOADER} or {BATCH}"
    assert message(error) == expected


@pytest.mark.parametrize(
    ("changes", "training", "fixes"),
    [
        ({"precision": "bf16", "training__accumulate": 4, "input_size": (32, 32)}, True,
         "--config.training.accumulate=8 or --config.data.batch_size=16"),
        ({"data__batch_size": 5, "precision": "bf16", "input_size": (32, 64)}, True,
         "--config.data.batch_size=2 or --config.input_size=32,32"),
        ({"data__cache": "device", "data__batch_size": 1, "input_size": (32, 32)}, True,
         "--config.data.cache=ram or --config.precision=bf16"),
        ({}, False, "--config.precision=bf16 or --config.data.batch_size=16 or "
                    "--config.input_size=256,512"),
    ],
)  # fmt: skip
def test_only_flags_that_can_help_are_named(place, changes, training, fixes):
    place("gpu")
    text = message(jax.errors.JaxRuntimeError(GPU), config_of(**changes), training)
    assert text.endswith(f"; set {fixes}")


def test_nothing_that_can_be_smaller_needs_another_device(place):
    place("gpu")
    config = config_of(data__batch_size=1, precision="bf16", input_size=(32, 32))
    text = message(jax.errors.JaxRuntimeError(GPU), config, training=False)
    assert text.endswith("32.0 GB); use a device with more memory")


def test_smaller_batches_are_divisible_by_the_devices(place, monkeypatch):
    place("gpu")
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    config = config_of(data__batch_size=12, precision="bf16", input_size=(32, 32))
    text = message(jax.errors.JaxRuntimeError(GPU), config)
    assert text.endswith("; set --config.training.accumulate=2 or --config.data.batch_size=6")


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes differ"),
        cv2.error("OpenCV: bad argument"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_left_unchanged(error):
    assert exhausted_memory(error) is None
    for context in (
        reporting_out_of_memory(Config(), training=True),
        reporting_image_out_of_memory(1, 32, 32),
    ):
        with pytest.raises(type(error)) as caught, context:
            raise error
        assert caught.value is error


def test_real_error_of_jax_is_recognized():
    with pytest.raises(UserError) as caught, reporting_image_out_of_memory(1, 32, 32):
        jnp.zeros(ALL_OF_IT, jnp.uint8).block_until_ready()
    assert "do not fit (allocating 140737.5 GB failed) in the memory of the" in str(caught.value)


def test_training_step_that_does_not_fit_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(
        build, "make_adjustable_step", lambda **_: lambda *_: jnp.zeros(ALL_OF_IT, jnp.uint8)
    )
    with pytest.raises(
        UserError, match=r"^out of memory: batches of 4 images of 64 x 64 in float32"
    ):
        train_and_evaluate(tiny_config(), tmp_path)


def test_loader_thread_that_runs_out_of_memory_is_one_error(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(TrainingImages, "describe", lambda _: "")
    monkeypatch.setattr(TrainingImages, "_read", fail)
    with pytest.raises(UserError, match=r"; set --config.data.cache_gb=2 or --config"):
        train_and_evaluate(tiny_config(), tmp_path)


def test_detection_that_does_not_fit_when_its_result_is_fetched_is_one_error(place, monkeypatch):
    place("gpu", bytes_limit=int(16e9))

    def fetch(_):
        raise jax.errors.JaxRuntimeError(GPU)

    monkeypatch.setattr(jax, "device_get", fetch)
    batch = types.SimpleNamespace(
        images=np.zeros((2, 32, 64, 3)),
        inverse_warps=None,
        sizes=None,
        padded_sizes=None,
        indices=[0, 1],
    )
    with pytest.raises(UserError) as caught:
        list(detect_batch(lambda *_: None, None, batch))
    assert str(caught.value) == (
        "out of memory: 2 image(s) of 32 x 64 at once do not fit (allocating 12.50GiB failed) in "
        "the memory of the gpu device, 16.0 GB (host, 32.0 GB); pass fewer images at once, or use "
        "weights that were trained with a smaller input"
    )


def test_image_that_opencv_has_no_memory_for_is_not_unreadable(monkeypatch):
    def fail(*_):
        raise no_memory_in_opencv()

    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(MemoryError):
        imdecode(b"x", cv2.IMREAD_COLOR)


def test_host_memory_is_at_most_the_limit_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    total = host_memory()
    assert total > 1e8
    for text, expected in (("max\n", total), ("1000000\n", 1_000_000), (f"{total * 2}\n", total)):
        (tmp_path / "memory.max").write_text(text)
        assert host_memory() == expected
