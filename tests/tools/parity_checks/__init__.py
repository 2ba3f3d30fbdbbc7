"""Checks of `tests/parity.py`: from fixture files to named checks."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.tools.parity_checks.comparison import Worst

Check = Callable[[], Worst]


def find_checks(folder: Path, weights: Path, images: Path) -> Iterator[tuple[str, Check | None]]:
    """Yield the name and the check of every fixture in `folder`.

    The check is None if this project lacks the part that the fixture tests.
    """
    from tests.tools.parity_checks import assignment, backbones, data, detections, gfl, networks

    for path in sorted(folder.iterdir()):
        name = path.stem
        kind = name.split("_")[0]
        if path.suffix not in (".npz", ".json") or name in ("manifest", "formula"):
            continue
        match kind:
            case "assign" | "postprocess" | "head" | "forward" | "trajectory" if "gfl" in name:
                yield from gfl.checks(path)
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
                yield name, backbones.backbone_check(path) or networks.forward_check(path)
            case "neck":
                yield name, partial(backbones.check_fpn, path)
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
