"""Estimates of memory, against plans of XLA that were recorded."""

import jax
import numpy as np
import pytest

from nanodet_jax.cli.config_flags import load_config
from nanodet_jax.config import Config
from nanodet_jax.data.cache import GB
from nanodet_jax.data.records import Record, make_record
from nanodet_jax.doctor import memory
from nanodet_jax.doctor.findings import Severity
from nanodet_jax.doctor.memory import (
    Memory,
    cache_bytes,
    describe_memory,
    estimate_memory,
    findings_of_memory,
)
from nanodet_jax.runtime import memory as runtime_memory
from nanodet_jax.runtime.memory import free_host_memory

MB = 1e6
ENOUGH = Memory(
    step=400_000_000, state=10_000_000, image=50_000_000, device_free=8_000_000_000,
    largest_batch=127, cache=0, cache_limit=4_000_000_000, host_free=8_000_000_000,
)  # fmt: skip


def record(height: int, width: int) -> Record:
    return make_record(1, "a", b"", (height, width), np.zeros((0, 4)), [], [], [])


# `compiled.memory_analysis()` of a training step on a CPU, with 80 classes and 30 box slots.
@pytest.mark.parametrize(
    ("name", "size", "batch", "flags", "plan_mb"),
    [
        ("nanodet-m_320", 320, 1, [], 56),
        ("nanodet-m_320", 320, 8, [], 388),
        ("nanodet-m_320", 320, 32, [], 1544),
        ("nanodet-m_320", 416, 8, [], 654),
        ("nanodet-m_320", 320, 8, ["--config.training.accumulate=2"], 209),
        ("nanodet-m_320", 640, 8, ["--config.training.accumulate=4"], 421),
        ("nanodet-m_320", 320, 8, ["--config.precision=bf16"], 491),
        ("nanodet-m-0.5x", 320, 8, [], 252),
        ("nanodet-m-1.5x", 320, 4, [], 275),
        ("nanodet-plus-m_320", 320, 8, [], 1079),
        ("nanodet-plus-m-1.5x_416", 416, 2, [], 705),
    ],
)
def test_estimate_is_within_20_percent_of_the_plan(name, size, batch, flags, plan_mb):
    config = load_config(f"coco:{name}", flags)
    config.input_size, config.data.batch_size = (size, size), batch
    config.training.devices = 1
    assert 1 / 1.2 < estimate_memory(config, [], 80).step / MB / plan_mb < 1.2


def test_estimate_names_the_largest_batch_that_fits(monkeypatch):
    config = Config(input_size=(64, 64))
    config.training.devices, config.data.batch_size = 1, 8
    monkeypatch.setattr(memory, "free_host_memory", lambda: 1_000_000_000)
    estimate = estimate_memory(config, [], 4)
    assert estimate.step == estimate.state + 8 * estimate.image
    assert estimate.largest_batch == int((0.8e9 - estimate.state) / estimate.image)
    assert findings_of_memory(estimate, config) == []
    config.training.accumulate = 4
    assert estimate_memory(config, [], 4).largest_batch == 4 * estimate.largest_batch
    monkeypatch.setattr(memory, "free_host_memory", lambda: None)
    assert estimate_memory(config, [], 4).largest_batch is None


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices do not use the RAM")
def test_cache_in_ram_leaves_less_for_a_batch_on_a_cpu(monkeypatch):
    config = Config(input_size=(64, 64))
    config.training.devices = 1
    monkeypatch.setattr(memory, "free_host_memory", lambda: 1_000_000_000)
    without = estimate_memory(config, [], 4)
    cached = estimate_memory(config, [record(1000, 1000)] * 100, 4)
    assert cached.cache == 300_000_000
    fewer = without.largest_batch - cached.largest_batch
    assert fewer == pytest.approx(300_000_000 / without.image, abs=1)


def test_cache_bytes_follow_from_the_sizes_and_the_kind_of_cache():
    config = Config(input_size=(64, 64))
    records = [record(100, 200), record(300, 100)]
    assert cache_bytes(config, records) == 3 * (100 * 200 + 300 * 100)
    config.data.augment, config.data.canvas = "device", 2.0  # reduced to 128 x 128
    assert cache_bytes(config, records) == 3 * (100 * 128 + 128 * 100)
    config.data.cache = "device"
    assert cache_bytes(config, records) == 3 * 2 * 128 * 128
    config.data.cache = "none"
    assert cache_bytes(config, records) == 0


def test_findings_name_the_flags_of_a_batch_that_does_not_fit():
    config = Config()
    config.data.batch_size = 200
    [found] = findings_of_memory(ENOUGH._replace(step=10_010_000_000), config)
    assert (found.kind, found.severity) == ("memory", Severity.COSTLY)
    assert found.title == (
        "a step of 200 images takes about 10.01 GB of device memory; 8.00 GB is free"
    )
    assert found.fix == (
        "--config.data.batch_size=127, --config.training.accumulate=2, or a smaller "
        "--config.input_size"
    )


def test_findings_name_the_flags_of_a_cache_that_does_not_fit():
    config = Config()
    large = ENOUGH._replace(cache=int(9 * GB))
    [found] = findings_of_memory(large, config)
    assert (found.kind, found.severity) == ("cache", Severity.NOTE)
    assert found.fix == "--config.data.cache_gb=9.1, if enough RAM is free"
    [found] = findings_of_memory(large._replace(host_free=int(2 * GB)), config)
    assert (found.kind, found.severity) == ("cache", Severity.COSTLY)
    assert found.title == "the image cache takes 4.00 GB of RAM; 2.00 GB is free"
    assert found.fix == "--config.data.cache_gb=1.6, or --config.data.cache=none"


def test_description_has_the_step_the_batch_and_the_cache():
    config = Config()
    config.data.batch_size = 8
    assert describe_memory(ENOUGH._replace(cache=int(5 * GB)), config) == (
        "memory: a step of 8 images takes about 0.40 GB on each device (an estimate); 8.00 GB is "
        "free, enough for batches of about 127 images; the image cache takes 4.00 GB of RAM "
        "(5.00 GB for all images)"
    )


def test_free_host_memory_is_that_of_the_container_if_it_is_less(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(runtime_memory, "CONTAINER", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert free_host_memory() == 4000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1024\n")
    assert free_host_memory() == 4000 * 1024
    (tmp_path / "memory.max").write_text("11264\n")
    assert free_host_memory() == 10240
