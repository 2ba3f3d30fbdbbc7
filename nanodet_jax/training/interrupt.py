"""Ctrl-C and `kill`: finish the step, save, then leave."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """A signal came within `Interrupt.at_once`."""


class Interrupt:
    """Between `catch` and the end of its context SIGINT and SIGTERM set `received`.

    Before, and from the second one on, they act as they did, at once in `train.py`: Python runs a
    handler only when XLA returns, and a compilation may take a minute. Outside the main thread,
    where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        return self

    def catch(self) -> None:
        """From now on there is something to save."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For long work that may be dropped anywhere: a signal raises `Stopped` where it comes."""
        self._at_once = True
        try:
            if self.received is not None:
                raise Stopped
            yield
        finally:
            self._at_once = False

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self._restore()
        if self._at_once:
            raise Stopped

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def leave(self) -> None:
        """End as the signal would have: KeyboardInterrupt, or exit status 143."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + int(self.received or signal.SIGTERM))
