"""Writer of TensorBoard event files."""

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

FLUSH_S = 30  # seconds between flushes, which block on the disk
FILE_NAME = re.compile(r"events\.out\.tfevents\.(\d{1,12})\.")


class EventWriter:
    """Write a new event file, which hides the events of older files from `first_step` on.

    This class writes in the calling thread. tensorboardX's `SummaryWriter` writes in a separate
    thread, which hides its first error. Ten values later, the queue of that thread is full, and the
    run blocks forever.

    TensorBoard reads the files of a folder in the order of their names, which contain the time of
    creation. The name of a new file sorts after all existing names, and the times in the file never
    decrease, even if the system clock is set back.

    Args:
      folder: created if it is missing.
      first_step: first step that will be written.

    Raises:
      UserError: if the folder cannot be created or is a symbolic link.
      OSError: from every method that writes, for example if the disk is full.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        make_folder(folder)
        self._start = time.time() - time.monotonic()
        self._file = RecordWriter(str(_new_file(folder)))
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Write scalars, given by tag."""
        for name, value in values.items():
            self._write(step, summary=summary.scalar(name, value))

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Write an image, uint8 RGB [H, W, 3]."""
        self._write(step, summary=summary.image(name, image, dataformats="HWC"))

    def _write(self, step: int, **content: summary.Summary | SessionLog | str) -> None:
        event = Event(wall_time=self._start + time.monotonic(), step=step, **content)
        self._file.write(event.SerializeToString())
        if time.monotonic() > self._flushed + FLUSH_S:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        try:
            self._file.flush()
        finally:
            self._file.close()


def _new_file(folder: Path) -> Path:
    """Create an empty event file whose name sorts after all others in the folder."""
    taken = [int(match[1]) for path in folder.iterdir() if (match := FILE_NAME.match(path.name))]
    number = max([int(time.time()), *(other + 1 for other in taken)])
    name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{secrets.token_hex(4)}"
    path = folder.absolute() / name  # tensorboardX takes a relative path like "s3:x" for a bucket
    path.touch(exist_ok=False)
    return path
