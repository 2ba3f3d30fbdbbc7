"""Imports point one way: a room knows only those below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nanodet_jax"
# From the ground up. A room knows those of lower layers, and of its own those named below.
LAYERS = (
    {"errors", "config", "structures", "precision", "boxes", "backend", "digests", "hosts"}
    | {"coco_classes", "files", "terminal", "array_reader"},
    {"models", "losses", "assigners", "data", "render"}
    | {"npz_file", "pytorch_pickle", "pytorch_file", "zip_file"},
    {"objective", "postprocess", "evaluation", "visualize", "convert", "state", "ratings"}
    | {"checkpoint", "checkpoint_arrays", "checkpoint_files"},
    {"weights", "inference", "summary", "doctor"},
    {"scoring", "detector"},
    {"training"},
    {"doors", "cli", ""},
)
ALLOWED_WITHIN = {
    "backend": {"errors", "terminal"},
    "config": {"errors"},
    "files": {"errors"},
    "hosts": {"config", "errors", "terminal"},
    "npz_file": {"zip_file"},
    "pytorch_file": {"pytorch_pickle", "zip_file"},
    "assigners": {"losses"},  # what a prior's classes would cost it
    "postprocess": {"objective"},
    "checkpoint": {"checkpoint_arrays", "checkpoint_files", "ratings", "state"},
    "digests": {"terminal"},
    "ratings": {"evaluation"},  # the names of its metrics
    "cli": {"doors"},
}


def level(room: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


def imports(path: Path) -> set[str]:
    """Rooms of this package that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanodet_jax"):
            parts = node.module.split(".")[1:]
            rooms |= {parts[0]} if parts else {alias.name for alias in node.names}
    return rooms


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py").replace("__init__", "")
    for other in imports(path) - {room}:
        below = level(other) < level(room)
        assert below or other in ALLOWED_WITHIN.get(room, set()), f"{room} imports {other}"


def test_data_knows_no_jax():
    for path in (PACKAGE / "data").rglob("*.py"):
        assert "import jax" not in path.read_text(), path.name
