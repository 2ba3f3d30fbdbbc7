"""The machine that runs the benchmarks, and the roofline of its device."""

import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nanodet_jax import config
from nanodet_jax.summary import summarize


class DeviceLimits(NamedTuple):
    """Upper bounds of a device."""

    bytes_per_second: float  # of its memory
    flops_per_second: dict[str, float]  # of dense matrix products, by `config.precision`


# By the prefix of the device's name. "float32" includes TF32 where the device has it.
DEVICE_LIMITS = {
    "NVIDIA H200": DeviceLimits(4.3e12, {"highest": 67e12, "float32": 490e12, "bf16": 990e12}),
}

# Bytes read from and written to the device's memory for one image of 320 x 320 in float32, by
# config, if element-wise operations are fused with their producers. In bf16 there are half as many.
TRAFFIC = {
    "nanodet-m_320": {"training": 348e6, "inference": 100e6},
    "nanodet-plus-m_320": {"training": 777e6},
}
TRAFFIC_PIXELS = 320 * 320


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Describe the device and the software, for the table header. Initializes the device.

    `load` is the load average over the last minute, if the system provides it.
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


def roofline_seconds(
    measured: config.Config, precision: str, mode: str, device: str
) -> float | None:
    """Return the time per image if only memory or arithmetic limits it; None if unknown.

    Training counts as the arithmetic of three forward passes, since a product has two gradients.

    Args:
      measured: the config, with its number of classes.
      precision: a key of `DeviceLimits.flops_per_second`.
      mode: training | inference.
      device: name of the device in JAX.
    """
    limits = next((DEVICE_LIMITS[name] for name in DEVICE_LIMITS if device.startswith(name)), None)
    moved = TRAFFIC.get(measured.name, {}).get(mode)
    if limits is None or moved is None or precision not in limits.flops_per_second:
        return None
    summary = summarize(measured.model, measured.input_size)
    macs = 3 * summary.training.macs if mode == "training" else summary.deployed.macs
    height, width = measured.input_size
    moved *= height * width / TRAFFIC_PIXELS * (0.5 if precision == "bf16" else 1.0)
    return max(2 * macs / limits.flops_per_second[precision], moved / limits.bytes_per_second)
