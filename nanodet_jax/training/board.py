"""TensorBoard's event files."""

import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

FLUSH_S = 30  # between flushes, which wait for the disk


class Board:
    """Writes an event file; what others of the same folder have from `first_step` on is hidden.

    Nothing but a file: tensorboardX's `SummaryWriter` writes in a thread, whose first error nobody
    hears of, and whose queue, ten values later, would stop the run for good.

    Raises:
      OSError: from all methods, if the disk is full, for one.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, numbers: dict[str, float], step: int) -> None:
        """Add a value to each curve."""
        for name, value in numbers.items():
            self._write(step, summary=summary.scalar(name, value))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Add a picture, uint8 RGB [H, W, 3]."""
        self._write(step, summary=summary.image(name, image, dataformats="HWC"))

    def _write(self, step: int, **what: summary.Summary | SessionLog) -> None:
        self._file.write_event(Event(wall_time=time.time(), step=step, **what))
        if time.monotonic() > self._flushed + FLUSH_S:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
