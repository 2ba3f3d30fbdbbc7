"""Checks of `tests/parity.py`: from fixture files to named checks."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.tools.parity_checks.comparison import Worst

Check = Callable[[], Worst]


def find_checks(folder: Path, weights: Path, images: Path) -> Iterator[tuple[str, Check | None]]:
    """Yield name and check of every fixture in `folder`; None if this project lacks the part."""
    from tests.tools.parity_checks import assignment, data, detections, networks

    for path in sorted(folder.iterdir()):
        name = path.stem
        kind = name.split("_")[0]
        if path.suffix not in (".npz", ".json") or name in ("manifest", "formula"):
            continue
        match kind:
            case "trace":
                yield name, lambda p=path: assignment.check_trace(p)
            case "assign":
                check = assignment.CHECKS.get(name)
                yield name, partial(check, path) if check else None
            case "losses":
                yield name, lambda p=path: assignment.check_losses(p)
            case "head":
                for part, check in assignment.head_checks(path):
                    yield f"{name}/{part}", check
            case "forward":
                yield name, networks.forward_check(path)
            case "trajectory":
                yield name, networks.trajectory_check(path)
            case "warp":
                yield name, lambda p=path: data.check_warp(p)
            case "schedule":
                yield name, lambda p=path: data.check_schedule(p)
            case "detections":
                yield name, detections.detections_check(path, weights, images)
            case _:
                yield name, None
