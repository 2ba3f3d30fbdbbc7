"""The machine that is measured, and what its device could do at best."""

import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nanodet_jax import config
from nanodet_jax.summary import summarize


class Limits(NamedTuple):
    """Of a device."""

    bytes_per_second: float  # of its memory
    flops_per_second: dict[str, float]  # of dense products, by `config.precision`


# By the start of the device's name. "float32" lets products round to TF32 where there is such.
LIMITS = {
    "NVIDIA H200": Limits(4.3e12, {"highest": 67e12, "float32": 490e12, "bf16": 990e12}),
}

# Bytes that an image of 320 x 320 moves through the device's memory in float32, if element-wise
# operations are fused with what they follow: counted once, by config. Half of it in bf16.
TRAFFIC = {
    "nanodet-m_320": {"training": 348e6, "inference": 100e6},
    "nanodet-plus-m_320": {"training": 777e6},
}
TRAFFIC_PIXELS = 320 * 320


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Device and software, as they stand at the head of the table. Starts the device.

    `load` is how many processes wanted a CPU in the last minute, where the system tells.
    """
    load = {"load": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}
    devices = jax.devices()
    return {
        "platform": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cpu": _cpu_name(),
        "cpus": cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        **load,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def seconds_at_limit(
    measured: config.Config, precision: str, what: str, device: str
) -> float | None:
    """Seconds an image would take if memory or arithmetic alone held it up; None if not known.

    Training is taken for three forward passes' arithmetic: the gradients of a product are two.

    Args:
      measured: the config, with its number of classes.
      precision: as in `Limits`.
      what: training or inference.
      device: its name, as JAX tells it.
    """
    limits = next((LIMITS[name] for name in LIMITS if device.startswith(name)), None)
    moved = TRAFFIC.get(measured.name, {}).get(what)
    if limits is None or moved is None or precision not in limits.flops_per_second:
        return None
    summary = summarize(measured.model, measured.input_size)
    macs = 3 * summary.training.macs if what == "training" else summary.deployed.macs
    height, width = measured.input_size
    moved *= height * width / TRAFFIC_PIXELS * (0.5 if precision == "bf16" else 1.0)
    return max(2 * macs / limits.flops_per_second[precision], moved / limits.bytes_per_second)
