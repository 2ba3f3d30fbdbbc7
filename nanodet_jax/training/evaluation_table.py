"""Notebook table with one row for each evaluation of a run."""

import html
from typing import Any

from nanodet_jax.evaluation.coco_metrics import METRIC_DESCRIPTIONS, format_value


class EvaluationTable:
    """Table in the output of a notebook cell. It needs IPython, which every notebook has."""

    def __init__(self) -> None:
        self._rows: list[list[str]] = []
        self._shown: Any = None

    def add(self, step: int, epoch: int, metrics: dict[str, Any]) -> None:
        """Show the metrics of one more evaluation."""
        from IPython.display import HTML, display

        numbers = [format_value(metrics[name]) for name in METRIC_DESCRIPTIONS]
        self._rows.append([str(step), str(epoch), *numbers])
        table = HTML(self._html())
        if self._shown is None:
            self._shown = display(table, display_id=True)
        else:
            self._shown.update(table)

    def _html(self) -> str:
        heading = ["step", "epoch", *METRIC_DESCRIPTIONS]
        rows = [_row("th", heading), *(_row("td", row) for row in self._rows)]
        return f"<table>{''.join(rows)}</table>"


def _row(tag: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell.strip())}</{tag}>' for cell in cells)}</tr>"
