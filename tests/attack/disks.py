"""File systems of a few megabytes, for tests that fill them or make them read-only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILLER = "filler"


def mount(*arguments: object) -> None:
    """Run `mount`, or skip the test if this is not permitted."""
    try:
        done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("mounting is not possible here: there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system at `folder` for the duration of the context."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder)
    try:
        yield folder
    finally:
        while folder.is_mount():  # several mounts may be stacked
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> None:
    """Fill the disk completely."""
    size = 1 << 20
    with (disk / FILLER).open("ab", buffering=0) as file:
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def empty(disk: Path) -> None:
    """Delete the file of `fill`."""
    (disk / FILLER).unlink()
