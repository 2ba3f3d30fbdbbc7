"""Progress of long loops: a bar on a terminal or in a notebook, and lines of text elsewhere."""

import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar

import tqdm

from nanodet_jax.terminal import say

T = TypeVar("T")

BYTES = "B"
LINE_EVERY_S = 10  # seconds between lines if there is no bar


class Progress(Protocol):
    """Progress of a running loop."""

    n: float
    """Number of finished items."""

    def update(self, n: float = 1) -> object:
        """Count more items as finished."""

    def close(self) -> object:
        """Stop showing the progress."""


def output() -> Literal["terminal", "notebook", "lines"]:
    """Return how this process shows progress: as bars in a terminal or notebook, or as lines."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None and "IPKernelApp" in shell.config:
        return "notebook"
    return "terminal" if sys.stderr is not None and sys.stderr.isatty() else "lines"


@contextmanager
def progress(total: int, what: str, unit: str, visible: bool = True) -> Iterator[Progress]:
    """Show the progress of a loop while the context is active.

    In a notebook, while a `MainBar` is open, the progress is shown as text after that bar.

    Args:
      total: number of items.
      what: name of the work, such as "evaluate".
      unit: unit of the items, such as "img". Bytes, "B", are shown as kB or MB.
      visible: if False, show nothing.
    """
    kind = output()
    shown: Progress
    if not visible:
        shown = _Lines(total, what, unit, every=float("inf"))
    elif kind == "lines":
        shown = _Lines(total, what, unit)
    elif kind == "notebook" and _main_bars:
        shown = _Postfix(total, what, unit, _main_bars[-1])
    else:
        shown = _bar(total=total, desc=what, unit=unit, unit_scale=unit == BYTES, leave=False)
    try:
        yield shown
    finally:
        shown.close()


def track(
    items: Iterable[T], total: int, what: str, unit: str, visible: bool = True
) -> Iterator[T]:
    """Yield items and show the progress of the loop over them; see `progress` for the arguments."""
    with progress(total, what, unit, visible) as shown:
        for item in items:
            yield item
            shown.update()


class MainBar:
    """Progress bar of the main loop of a process. It stays visible after the loop has ended.

    If the output is neither a terminal nor a notebook, no bar is shown.
    Args:
      total: number of items.
      done: number of items that are finished at the start.
      unit: unit of the items.
    """

    def __init__(self, total: int, done: int, unit: str) -> None:
        self._bar: Any = None
        if output() != "lines":
            self._bar = _bar(total=total, initial=done, unit=unit)
            _main_bars.append(self._bar)

    def update(self) -> None:
        """Count one more item as finished."""
        if self._bar is not None:
            self._bar.update()

    def set_text(self, text: str) -> None:
        """Show a text after the bar, from its next update on."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Stop updating the bar."""
        if self._bar is not None:
            self._bar.close()
            _main_bars.remove(self._bar)
            self._bar = None


_main_bars: list[Any] = []  # the open bars, outermost first


class _Lines:
    """Print a line to stderr every few seconds."""

    def __init__(self, total: int, what: str, unit: str, every: float = LINE_EVERY_S) -> None:
        self.n: float = 0
        self._total, self._what, self._unit = total, what, unit
        self._every, self._last = every, time.monotonic()

    def update(self, n: float = 1) -> None:
        self.n += n
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._show(f"{self._what}: {self._progress_text()}")

    def _progress_text(self) -> str:
        if self._unit != BYTES:
            return f"{self.n} of {self._total} {self._unit}"
        done, total = (tqdm.tqdm.format_sizeof(size, BYTES) for size in (self.n, self._total))
        return f"{done} of {total}"

    def _show(self, text: str) -> None:
        say(text, sys.stderr)

    def close(self) -> None:
        pass


class _Postfix(_Lines):
    """Show the progress after the bar of an outer loop."""

    def __init__(self, total: int, what: str, unit: str, outer: Any) -> None:
        super().__init__(total, what, unit, every=0.5)
        self._outer = outer

    def _show(self, text: str) -> None:
        self._outer.set_postfix_str(text)


def _bar(**options: Any) -> Any:
    """Return a tqdm bar: a widget in a notebook with ipywidgets, else text."""
    if output() == "notebook" and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget(mininterval=0.5, **options)
    return tqdm.tqdm(mininterval=0.5, dynamic_ncols=True, **options)
