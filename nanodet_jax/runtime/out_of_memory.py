"""Errors for a batch or a cache that does not fit in memory.

They name what was requested, how much memory there is, and a fix.

JAX dispatches a computation before it runs, so its error may be raised where its result is used.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import cv2
import jax

from nanodet_jax.config import Config
from nanodet_jax.errors import UserError
from nanodet_jax.runtime.memory import host_memory

Place = Literal["device", "host"]

GB = 1e9
# Messages of XLA, its allocators and CUDA, at compile time and at run time.
DEVICE_TEXTS = re.compile("RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY", re.IGNORECASE)
ALLOCATION = re.compile(r"allocat\w+ (?:(\d+) bytes|([\d.]+ ?[KMGT]i?B))", re.IGNORECASE)
SMALLER = 0.8  # suggested sides of the input, as a fraction of the current ones
STRIDE = 32  # sides of the input must be multiples of this


@contextmanager
def reporting_out_of_memory(config: Config, training: bool) -> Iterator[None]:
    """Turn out-of-memory errors into a UserError that names the flags that help.

    Args:
      config: config of the run or evaluation.
      training: True for a training run, False for an evaluation.
    """
    data, (height, width) = config.data, config.input_size
    request = f"batches of {data.batch_size} images of {height} x {width} in {config.precision}"
    if training:
        request += (
            f" with training.accumulate={config.training.accumulate}, data.cache={data.cache} "
            f"and data.workers={data.workers}"
        )

    def advice(where: Place) -> str:
        fixes = _fixes(config, where, training)
        return f"set {' or '.join(fixes)}" if fixes else "use a device with more memory"

    with _reporting_exhaustion(request, advice):
        yield


@contextmanager
def reporting_image_out_of_memory(count: int, height: int, width: int) -> Iterator[None]:
    """Turn out-of-memory errors into a UserError, for inference on a batch of images.

    Args:
      count: number of images in the batch.
      height, width: size of the network's input.
    """
    advice = "pass fewer images at once, or use weights that were trained with a smaller input"
    with _reporting_exhaustion(
        f"{count} image(s) of {height} x {width} at once", lambda where: advice
    ):
        yield


@contextmanager
def _reporting_exhaustion(request: str, advice: Callable[[Place], str]) -> Iterator[None]:
    """Turn out-of-memory errors into a UserError that names what was requested and gives advice."""
    try:
        yield
    except Exception as error:
        where = exhausted_memory(error)
        if where is None:
            raise
        raise UserError(f"{_described(error, where, request)}; {advice(where)}") from error


def exhausted_memory(error: BaseException) -> Place | None:
    """Return the place whose memory an error reports as exhausted; None for other errors."""
    if isinstance(error, MemoryError):
        return "host"
    if isinstance(error, cv2.error):
        return "host" if getattr(error, "code", None) == cv2.Error.StsNoMem else None
    if isinstance(error, jax.errors.JaxRuntimeError) and DEVICE_TEXTS.search(str(error)):
        return "device"
    return None


def _described(error: BaseException, where: Place, request: str) -> str:
    """Describe what was requested, the allocation that failed, and the total memory."""
    failed = ""
    if match := ALLOCATION.search(str(error)):
        failed = (
            f" (allocating {int(match[1]) / GB:.1f} GB failed)"
            if match[1]
            else (f" (allocating {match[2]} failed)")
        )
    return f"out of memory: {request} do not fit{failed} in the memory of the {_memory(where)}"


def _memory(where: Place) -> str:
    """Describe the memory of `where`. For a device with its own memory, add the host's."""
    total = host_memory()
    host = "host" if total is None else f"host, {total / GB:.1f} GB"
    if where == "host" or jax.default_backend() == "cpu":
        return host
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}  # some devices report none
    text = f"{device.platform} device"
    if "bytes_limit" in stats:
        text += f", {stats['bytes_limit'] / GB:.1f} GB"
    if "bytes_in_use" in stats:
        text += f" with {stats['bytes_in_use'] / GB:.1f} GB in use"
    return f"{text} ({host})"


def _fixes(config: Config, where: Place, training: bool) -> list[str]:
    """Return flags that reduce the memory needed in the place that is full."""
    batch = _fixes_of_batch(config, training)
    if not training:
        return batch
    if where == "host":
        return [*_fixes_of_loader(config), *batch]
    if config.data.cache == "device":
        return ["--config.data.cache=ram", *batch]
    return [*batch, *_fixes_of_loader(config)] if jax.default_backend() == "cpu" else batch


def _fixes_of_loader(config: Config) -> list[str]:
    data, fixes = config.data, []
    if data.cache == "ram":
        fixes += [f"--config.data.cache_gb={data.cache_gb / 2:g}", "--config.data.cache=none"]
    if data.workers > 1:
        fixes.append(f"--config.data.workers={data.workers // 2}")
    return fixes


def _fixes_of_batch(config: Config, training: bool) -> list[str]:
    """Return flags that reduce the memory of a batch, by ascending effect on the results."""
    fixes = []
    batch_size, accumulate = config.data.batch_size, config.training.accumulate
    devices = (config.training.devices or jax.local_device_count()) * jax.process_count()
    divisor = accumulate * devices if training else 1
    if training and batch_size % (2 * divisor) == 0:
        fixes.append(f"--config.training.accumulate={2 * accumulate}")
    if config.precision != "bf16":
        fixes.append("--config.precision=bf16")
    smaller = batch_size // 2 // divisor * divisor
    if smaller:
        fixes.append(f"--config.data.batch_size={smaller}")
    sides = [max(STRIDE, int(side * SMALLER) // STRIDE * STRIDE) for side in config.input_size]
    if sides != list(config.input_size):
        fixes.append(f"--config.input_size={sides[0]},{sides[1]}")
    return fixes
