"""Estimate the memory that training needs, on the device and for the image cache.

Compiling the training step would give the exact plan, but takes a minute. The estimate was fitted
to XLA's plans for a CPU, for all networks of `configs.coco`, inputs of 320 to 640 pixels and
batches of 1 to 32 images. It deviates from these plans by at most 20%. It was not compared with
plans for a GPU.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax

from nanodet_jax.config import Config
from nanodet_jax.data.cache import GB, MB, canvas_size, reduced_size
from nanodet_jax.data.records import Record
from nanodet_jax.doctor.findings import Finding, Severity
from nanodet_jax.runtime.memory import free_device_memory, free_host_memory
from nanodet_jax.summary import summarize

# Bytes that a training step keeps for each element that a convolution outputs: its value in
# float32, normalized values, and gradients. On a CPU, XLA computes bf16 in float32 and keeps both.
BYTES_PER_OUTPUT = 9.6
BF16 = {"cpu": 1.25}  # factor with precision=bf16; 0.5 on other platforms
FRACTION = 0.8  # fraction of the free memory that an estimate may fill


class Memory(NamedTuple):
    """Memory in bytes. `None` means unknown."""

    step: int  # of a training step on each device, including images cached there
    state: int  # part of `step` that does not depend on the batch
    image: int  # part of `step` for each image of a device's micro-batch
    device_free: int | None  # free on each device; for a CPU, free RAM of the host
    largest_batch: int | None  # largest config.data.batch_size that fits, 0 if none does
    cache: int  # of all images, as cached in RAM or on the device; 0 without a cache
    cache_limit: int  # from config.data.cache_gb
    host_free: int | None  # free RAM


def estimate_memory(config: Config, records: Sequence[Record], num_classes: int) -> Memory:
    """Return an estimate for training on the images of records, whose sizes must be known."""
    training = config.training
    devices = training.devices or jax.local_device_count()
    parts = devices * config.distributed.num_processes * training.accumulate
    network = replace(config.model, num_classes=num_classes)
    cost = summarize(network, config.input_size).training
    slots = {"sgd": 1, "adamw": 2}[training.optimizer]  # arrays of the optimizer per parameter
    copies = 2 + slots + (training.ema_decay > 0)  # parameters, gradients, optimizer, average
    host_free = free_host_memory()
    cache, on_device = cache_bytes(config, records), config.data.cache == "device"
    state = 4 * copies * cost.params + (cache if on_device else 0)
    factor = 1.0
    if config.precision == "bf16":
        factor = BF16.get(jax.default_backend(), 0.5)
    image = round(factor * BYTES_PER_OUTPUT * cost.outputs)
    device_free = free_device_memory(host_free)
    largest = None
    if device_free is not None:
        shared = min(cache, int(config.data.cache_gb * GB))
        if on_device or jax.default_backend() != "cpu":
            shared = 0
        left = max(FRACTION * device_free - state - shared, 0)
        largest = int(left / image) * parts
    return Memory(
        step=state + image * max(1, config.data.batch_size // parts),
        state=state,
        image=image,
        device_free=device_free,
        largest_batch=largest,
        cache=cache,
        cache_limit=int(config.data.cache_gb * GB),
        host_free=host_free,
    )


def cache_bytes(config: Config, records: Sequence[Record]) -> int:
    """Return the bytes of all decoded images in the cache of `config.data`."""
    data = config.data
    if data.cache == "none" or not records:
        return 0
    sizes = [(record.height, record.width) for record in records]
    if data.augment == "device":
        height, width = config.input_size
        largest = round(data.canvas * height), round(data.canvas * width)
        if data.cache == "device":
            canvas = canvas_size(sizes, largest)
            return 3 * len(sizes) * canvas[0] * canvas[1]
        sizes = [reduced_size(size, largest) for size in sizes]
    return sum(3 * height * width for height, width in sizes)


def findings_of_memory(memory: Memory, config: Config) -> list[Finding]:
    """Return findings about a batch or a cache that does not fit in memory."""
    found = []
    size = config.data.batch_size
    if memory.largest_batch is not None and size > memory.largest_batch:
        assert memory.device_free is not None
        smaller = f"--config.data.batch_size={memory.largest_batch}, "
        found.append(
            Finding(
                Severity.COSTLY,
                "memory",
                f"a step of {size} images takes about {_gb(memory.step)} of device memory; "
                f"{_gb(memory.device_free)} is free",
                (smaller if memory.largest_batch else "")
                + f"--config.training.accumulate={2 * config.training.accumulate}, or a smaller "
                "--config.input_size",
            )
        )
    if config.data.cache != "ram" or not memory.cache:
        return found
    kept = min(memory.cache, memory.cache_limit)
    if memory.host_free is not None and kept > FRACTION * memory.host_free:
        fits = FRACTION * memory.host_free / GB
        found.append(
            Finding(
                Severity.COSTLY,
                "cache",
                f"the image cache takes {_gb(kept)} of RAM; {_gb(memory.host_free)} is free",
                f"--config.data.cache_gb={fits:.1f}, or --config.data.cache=none",
            )
        )
    elif memory.cache > memory.cache_limit:
        found.append(
            Finding(
                Severity.NOTE,
                "cache",
                f"the decoded images take {_gb(memory.cache)}, but config.data.cache_gb="
                f"{config.data.cache_gb:g} limits the cache; each epoch decodes the rest again",
                f"--config.data.cache_gb={memory.cache / GB + 0.05:.1f}, if enough RAM is free",
            )
        )
    return found


def describe_memory(memory: Memory, config: Config) -> str:
    """Return a line about the memory of the step and of the cache."""
    line = (
        f"memory: a step of {config.data.batch_size} images takes about {_gb(memory.step)} on each "
        "device (an estimate)"
    )
    if memory.device_free is not None:
        line += (
            f"; {_gb(memory.device_free)} is free, enough for batches of about "
            f"{memory.largest_batch} images"
        )
    if memory.cache:
        place = "device memory" if config.data.cache == "device" else "RAM"
        kept = min(memory.cache, memory.cache_limit)
        line += f"; the image cache takes {_gb(kept)} of {place}"
        line += f" ({_gb(memory.cache)} for all images)" if kept < memory.cache else ""
    return line


def _gb(count: int) -> str:
    return f"{count / GB:.2f} GB" if count >= 0.1 * GB else f"{count / MB:.1f} MB"
