"""Report the results as text, as a Markdown table and as JSON."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.timing import Row
from nanodet_jax.errors import UserError


class Column(NamedTuple):
    """Column of the table."""

    title: str
    number_format: str


# Columns by row key. Other row keys appear only in the JSON file.
COLUMNS = {
    "wall_ms": Column("ms", ".1f"),
    "wall_min_ms": Column("min", ".1f"),
    "cpu_ms": Column("cpu ms", ".1f"),
    "images_per_second": Column("images/s", ".1f"),
    "images_per_cpu_second": Column("per core", ".1f"),
    "waiting": Column("waiting", ".1%"),
    "first_s": Column("first s", ".1f"),
    "start_s": Column("start s", ".1f"),
    "plan_mb": Column("plan MB", ".0f"),
    "resident_mb": Column("host MB", ".0f"),
    "device_mb": Column("dev. MB", ".0f"),
    "of_limit": Column("of limit", ".1%"),
    "original_wall_ms": Column("orig. ms", ".1f"),
    "original_wall_min_ms": Column("min", ".1f"),
    "speedup": Column("faster", ".2f"),
}
LEGEND = """\
ms, min, cpu ms: median and minimum wall time and median CPU time of a batch; per core: images per
second of CPU time; waiting: fraction of time spent waiting for data; first s: from tracing to the
first result; start s: from the start of the process to the end of its first step (end to end: to
its first log line); plan MB: memory planned by the compiler; host MB, dev. MB: peak memory of the
process; of limit: fraction of the images/s that the device's memory and arithmetic allow; orig.:
the original, run alternately; faster: its ms divided by ours."""
NAME_WIDTH, WIDTH = 72, 9  # characters
BUSY_LOAD = 0.5  # load average
# Rows of the Markdown table: a regular expression for the row's name after the colon.
MARKDOWN_ROWS = "first step|training step, batch [0-9]+$|network|image files|training, batch"


def columns(accelerator: bool, reference: bool) -> list[str]:
    """Return the keys of COLUMNS that have numbers on this kind of machine."""
    absent = {"device_mb", "of_limit"} if not accelerator else set()
    if not reference:
        absent |= {"original_wall_ms", "original_wall_min_ms", "speedup"}
    return [key for key in COLUMNS if key not in absent]


def header(columns: Collection[str]) -> str:
    """Format the titles of the columns."""
    return f"{'':{NAME_WIDTH}s}" + "".join(f"{COLUMNS[key].title:>{WIDTH}s}" for key in columns)


def line(name: str, row: Row, columns: Collection[str]) -> str:
    """Format a row of the table, with a dash for missing numbers."""
    cells = (format(row[key], COLUMNS[key].number_format) if key in row else "-" for key in columns)
    return f"{name:{NAME_WIDTH}s}" + "".join(f"{cell:>{WIDTH}s}" for cell in cells)


def write(path: Path, machine: dict[str, Any], rows: dict[str, Row]) -> None:
    """Write {"machine": {...}, "rows": {name: {...}}}.

    Raises:
      UserError: if the file cannot be written.
    """
    try:
        path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {error.strerror}") from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, Row]]:
    """Read the machine and the rows from a file that `write` wrote.

    Raises:
      UserError: if the file was not written by `write`.
    """
    try:
        content = json.loads(path.read_text())
        return content["machine"], content["rows"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a file from `python -m benchmarks --json` ({error!r})"
        ) from error


def describe(machine: dict[str, Any]) -> str:
    """Describe the machine in one line, and warn if it is busy."""
    device = "no accelerator"
    if machine["platform"] != "cpu":
        device = f"{machine['devices']} x {machine['device']}"
    text = (
        f"{device}, {machine['cpus']} cores of {machine['cpu'] or 'an unnamed CPU'}, "
        f"{machine['system']}, jax {machine['jax']}, Python {machine['python']}"
    )
    if machine.get("load", 0) > BUSY_LOAD:
        text += (
            f"\nnote: load {machine['load']:.1f} in the last minute; other processes make times "
            "longer and ratios uncertain"
        )
    return text


def markdown(rows: dict[str, Row]) -> str:
    """Format a Markdown table: one line per measurement, one column per network and precision."""
    cells: dict[str, dict[str, str]] = {}
    networks: dict[str, None] = {}
    for name, row in rows.items():
        network, _, measurement = name.partition(": ")
        if re.match(MARKDOWN_ROWS, measurement):
            networks[network] = None
            cells.setdefault(measurement, {})[network] = _cell(row)
            if measurement.startswith("training step") and "resident_mb" in row:
                memory = f"{max(row['resident_mb'], row.get('device_mb', 0)) / 1e3:.1f} GB"
                cells.setdefault(f"{measurement}: peak memory", {})[network] = memory
    lines = ["| " + " | ".join(["", *networks]) + " |", "|---" * (len(networks) + 1) + "|"]
    for measurement, by_network in cells.items():
        line = [measurement, *(by_network.get(network, "") for network in networks)]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    """Format the most informative number of a row."""
    if "waiting" in row:
        return f"{row['images_per_second']:.1f} images/s, waits {row['waiting']:.0%}"
    if "start_s" in row:
        return f"{row['start_s']:.1f} s"
    digits = 0 if row["wall_ms"] >= 100 else 1
    text = f"{row['wall_ms']:.{digits}f} ms"
    if "original_wall_ms" in row:
        text += f" (original {row['original_wall_ms']:.{digits}f} ms)"
    return text
