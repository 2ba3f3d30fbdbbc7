"""Import directions: a package imports only packages of lower layers."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nanodet_jax"
# From the lowest layer to the highest. Units of one layer do not import each other; modules of one
# package may. A module that is listed with its package is a separate unit.
LAYERS = (
    {"errors", "version", "terminal"},
    {"config", "structures", "boxes", "coco_classes", "files", "progress"},
    {"runtime", "configs"},
    {"ops", "losses", "data"},
    {"models", "visualize", "evaluation.coco_metrics"},
    {"state", "summary"},
    {"io"},
    {"inference", "doctor"},
    {"evaluation"},
    {"training"},
    {"cli"},
    {"", "__main__"},  # "": nanodet_jax/__init__.py
)


def unit(module: str) -> str:
    """Return the unit of a module: the part of its name below `nanodet_jax` that has a layer."""
    parts = module.split(".")[1:]
    named = ".".join(parts[:2])
    return named if any(named in layer for layer in LAYERS) else (parts or [""])[0]


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def name_of(path: Path) -> str:
    """Return the dotted module name of a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Return the dotted names of modules of this package that a file imports."""
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
def test_module_imports_only_lower_layers(path):
    own = unit(name_of(path))
    for other in imports(path):
        if unit(other) != own:
            assert level(unit(other)) < level(own), f"{name_of(path)} imports {other}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_a_layer(path):
    level(unit(name_of(path)))


def test_data_package_imports_jax_only_for_device_augmentation():
    for path in (PACKAGE / "data").rglob("*.py"):
        assert ("import jax" in path.read_text()) == (path.name == "device_augment.py"), path.name
