"""Signals during training: on Ctrl-C, `kill` or a closed terminal, save before exiting."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)  # absent on Windows


class Aborted(Exception):
    """A signal was received within `Interrupt.abort_on_signal`."""


class Interrupt:
    """Record SIGINT, SIGTERM and SIGHUP in `received`, from `catch` to the end of the context.

    Before `catch`, and from the second signal on, the previous handlers are in effect. In
    `train.py` these are the system's default handlers, which end the process immediately. A Python
    handler would run only when XLA returns, and a compilation may take a minute. SIGHUP is an
    exception in two ways. If it is ignored before `catch` (`nohup`), it stays ignored. It is also
    ignored after the first signal, because closing a terminal sends SIGHUP twice: from the shell
    and from the kernel. Python receives no signals outside the main thread, so there this class
    does nothing.

    Attributes:
      received: number of the first signal; None until then.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._abort = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        return self

    def catch(self) -> None:
        """Start catching signals. Call this after the first step, when there is state to save."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
            numbers.append(HANGUP)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._receive)

    @contextmanager
    def abort_on_signal(self) -> Iterator[None]:
        """Raise `Aborted` when a signal is received, for long work that can be aborted anywhere."""
        self._abort = True
        try:
            if self.received is not None:
                raise Aborted
            yield
        finally:
            self._abort = False

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for caught, handler in self._previous.items():
            restored = signal.SIG_IGN if caught == HANGUP else handler
            signal.signal(caught, restored)  # type: ignore[arg-type]
        if self._abort:
            raise Aborted

    def exit(self) -> None:
        """Raise KeyboardInterrupt after SIGINT, and otherwise SystemExit with 128 + the number."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + int(self.received or signal.SIGTERM))
