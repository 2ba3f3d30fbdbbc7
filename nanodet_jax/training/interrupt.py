"""Ctrl-C, `kill` and a closed terminal: finish the step, save, then leave."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)  # absent on Windows


class Stopped(Exception):
    """A signal came within `Interrupt.at_once`."""


class Interrupt:
    """Between `catch` and the end of its context SIGINT, SIGTERM and SIGHUP set `received`.

    Before, and from the second one on, they act as they did, at once in `train.py`: Python runs a
    handler only when XLA returns, and a compilation may take a minute. Two exceptions: SIGHUP stays
    ignored where it is (`nohup`), and after the first signal it is ignored, since a closed terminal
    sends it twice, once by the shell and once by the kernel. Outside the main thread, where Python
    takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        return self

    def catch(self) -> None:
        """From now on there is something to save."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
            numbers.append(HANGUP)
        for number in numbers:
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
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for caught, handler in self._previous.items():
            after = signal.SIG_IGN if caught == HANGUP else handler
            signal.signal(caught, after)  # type: ignore[arg-type]
        if self._at_once:
            raise Stopped

    def leave(self) -> None:
        """End as the signal would have: KeyboardInterrupt, or exit status 128 + its number."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + int(self.received or signal.SIGTERM))
