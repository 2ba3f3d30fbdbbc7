"""Imports point one way: a package knows only those of lower layers."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nanodet_jax"
# From the lowest layer up. Modules of one layer do not import each other, packages apart. A module
# named with its package has a layer of its own.
LAYERS = (
    {"errors", "version", "terminal"},
    {"config", "structures", "boxes", "coco_classes", "files"},
    {"runtime", "configs"},
    {"ops", "losses", "data"},
    {"models", "visualize", "evaluation.coco_metrics"},
    {"state"},
    {"io"},
    {"inference", "doctor", "summary"},
    {"evaluation"},
    {"training"},
    {"cli"},
    {""},  # what `import nanodet_jax` offers
)


def unit(module: str) -> str:
    """The part of a module's name below `nanodet_jax` that has a layer."""
    parts = module.split(".")[1:]
    named = ".".join(parts[:2])
    return named if any(named in layer for layer in LAYERS) else (parts or [""])[0]


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def name_of(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, by dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanodet_jax"):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                place = PACKAGE.parent / module.replace(".", "/")
                is_module = place.with_suffix(".py").exists() or place.is_dir()
                found.add(module if is_module else node.module)
    return found


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = unit(name_of(path))
    for other in imports(path):
        if unit(other) != own:
            assert level(unit(other)) < level(own), f"{name_of(path)} imports {other}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_a_layer(path):
    level(unit(name_of(path)))


def test_only_device_augmentation_of_the_data_package_knows_jax():
    for path in (PACKAGE / "data").rglob("*.py"):
        assert ("import jax" in path.read_text()) == (path.name == "device_augment.py"), path.name
