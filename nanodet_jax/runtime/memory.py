"""Memory of the host, or of its container, and of the device."""

import os
from pathlib import Path

import jax

MEMINFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")  # in a Linux container; without a limit, memory.max is "max"


def host_memory() -> int | None:
    """Return the total memory of this machine or container in bytes; None if it is unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
    try:
        return min(total, int((CONTAINER / "memory.max").read_text()))
    except (OSError, ValueError):
        return total


def free_device_memory(host_free: int | None) -> int | None:
    """Return the free memory of the first device in bytes; None if it is unknown.

    A CPU uses the memory of the host, of which `host_free` bytes are free.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_free
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def free_host_memory() -> int | None:
    """Return the free memory of the host or its container in bytes; None if it is unknown."""
    free = []
    try:
        fields = dict(line.partition(":")[::2] for line in MEMINFO.read_text().splitlines())
        free.append(1024 * int(fields["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):  # not Linux
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            free.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        limit = int((CONTAINER / "memory.max").read_text())
        free.append(limit - int((CONTAINER / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or no limit
        pass
    return max(min(free), 0) if free else None
