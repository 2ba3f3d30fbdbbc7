"""Progress on a terminal, in a notebook, and in whole lines elsewhere."""

import io
import sys
import types

import pytest

from nanodet_jax import progress
from nanodet_jax.progress import MainBar, output, track
from nanodet_jax.training.evaluation_table import EvaluationTable


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Let time pass only by assignment to the first item."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def notebook(monkeypatch):
    """Pretend to run in a Jupyter kernel without widgets; return what is displayed."""
    shown = []

    class Handle:
        def update(self, content):
            shown.append(("update", content))

    def display(content, display_id):
        assert display_id is True
        shown.append(("display", content))
        return Handle()

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.HTML, ipython.display.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    return shown


def test_bytes_are_shown_with_a_prefix(clock, capsys, monkeypatch):
    with progress.progress(35_470_891, "download", progress.BYTES) as shown:
        clock[0] = 11
        shown.update(1_234_000)
    assert capsys.readouterr().err == "download: 1.23MB of 35.5MB\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress(2000, "download", progress.BYTES) as shown:
        shown.update(1000)
        shown.refresh()
    assert "1.00k/2.00k" in terminal.getvalue()


def test_output_is_the_terminal_a_notebook_or_lines(monkeypatch, request):
    assert output() == "lines"
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert output() == "terminal"
    monkeypatch.setattr(sys, "stderr", None)
    assert output() == "lines"
    request.getfixturevalue("notebook")
    assert output() == "notebook"


def test_ipython_without_a_kernel_is_no_notebook(notebook, monkeypatch):
    shell = types.SimpleNamespace(config={"TerminalIPythonApp": {}})
    for running in (shell, None):
        monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda running=running: running)
        assert output() == "lines"


def test_lines_come_at_most_every_ten_seconds(clock, capsys):
    for item in track(range(100), 100, "evaluate", "images"):
        assert item in range(100)
        clock[0] += 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[:2] == ["evaluate: 4 of 100 images", "evaluate: 8 of 100 images"]
    assert len(err.splitlines()) == 25


def test_short_loop_and_invisible_loop_print_nothing(clock, capsys):
    assert list(track(range(3), 3, "evaluate", "images")) == [0, 1, 2]
    for _ in track(range(3), 3, "evaluate", "images", visible=False):
        clock[0] += 60
    main = MainBar(3, 0, "step")
    main.update()
    main.set_text("loss 1")
    main.close()
    assert capsys.readouterr() == ("", "")


def test_terminal_has_bars(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    main = MainBar(8, 2, "step")
    assert list(track(range(3), 3, "evaluate", "images")) == [0, 1, 2]
    main.close()
    assert "evaluate:   0%|" in terminal.getvalue() and "| 2/8 [" in terminal.getvalue()


def test_notebook_has_one_bar_which_shows_inner_loops_as_text(notebook, clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", text := io.StringIO())
    main = MainBar(8, 2, "step")
    for _ in track(range(3), 3, "evaluate", "images"):
        clock[0] += 1
    main.close()
    assert "evaluate: 3 of 3 images" in text.getvalue() and "evaluate:   0%|" not in text.getvalue()


def test_evaluation_table_of_a_notebook_gains_rows(notebook):
    table = EvaluationTable()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    table.add(4, 1, dict.fromkeys(names, 0.25) | {"APs": -1})
    table.add(8, 2, dict.fromkeys(names, 0.5))
    (first, one), (second, two) = notebook
    assert (first, second) == ("display", "update")
    assert one.startswith("<table><tr><th>step</th><th>epoch</th><th>AP</th>")
    assert "<tr><td>4</td><td>1</td><td>0.250</td><td>0.250</td><td>0.250</td><td>-</td>" in one
    assert two.startswith(one.removesuffix("</table>"))
    assert "<tr><td>8</td><td>2</td><td>0.500</td>" in two
