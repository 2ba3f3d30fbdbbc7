"""TensorBoard's event files."""

import re
import secrets
import socket
import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from nanodet_jax.files import make_folder

FLUSH_S = 30  # between flushes, which wait for the disk
NAME = re.compile(r"events\.out\.tfevents\.(\d{1,12})\.")


class EventWriter:
    """Writes an event file; what others of the same folder have from `first_step` on is hidden.

    Nothing but a file: tensorboardX's `SummaryWriter` writes in a thread, whose first error nobody
    hears of, and whose queue, ten values later, would stop the run for good.

    TensorBoard reads the files of a folder by name, which begins with the time. The name of a new
    one follows all that are there, and the times in it never go backwards, whatever the clock does.

    Raises:
      UserError: if the folder cannot be made or is a symbolic link.
      OSError: from all methods, if the disk is full, for one.
    """

    def __init__(self, folder: Path, first_step: int):
        make_folder(folder)
        self._start = time.time() - time.monotonic()
        self._file = RecordWriter(str(_new_file(folder)))
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, numbers: dict[str, float], step: int) -> None:
        """Add a value to each curve."""
        for name, value in numbers.items():
            self._write(step, summary=summary.scalar(name, value))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Add a picture, uint8 RGB [H, W, 3]."""
        self._write(step, summary=summary.image(name, image, dataformats="HWC"))

    def _write(self, step: int, **what: summary.Summary | SessionLog | str) -> None:
        event = Event(wall_time=self._start + time.monotonic(), step=step, **what)
        self._file.write(event.SerializeToString())
        if time.monotonic() > self._flushed + FLUSH_S:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush everything."""
        try:
            self._file.flush()
        finally:
            self._file.close()


def _new_file(folder: Path) -> Path:
    """An event file that was not there before, last by name."""
    taken = [int(match[1]) for path in folder.iterdir() if (match := NAME.match(path.name))]
    number = max([int(time.time()), *(one + 1 for one in taken)])
    name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{secrets.token_hex(4)}"
    path = folder.absolute() / name  # tensorboardX takes "s3:x" for a bucket
    path.touch(exist_ok=False)
    return path
