"""Content of the wheel, and training with the wheel installed outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.runs import ONE_DEVICE, TINY_DATA

REPO = Path(__file__).parents[1]
SOURCES = ("nanodet_jax", "configs", "tests", "benchmarks", "train.py", "eval.py")
METADATA = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
IMPORTS = """
import nanodet_jax
from nanodet_jax.configs import custom, voc
print(nanodet_jax.__file__)
print(voc.__file__)
print(custom.get_config().name)
"""

pytestmark = pytest.mark.slow


def run(*command, **options):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build an sdist in a copy of the repository, and a wheel from the sdist."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(
                REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
    for name in (*SOURCES, *METADATA):
        if (REPO / name).is_file():
            shutil.copy(REPO / name, source)
    out = tmp_path_factory.mktemp("out")
    run("-m", "build", "--no-isolation", "--outdir", out, source)
    [path] = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """Install the wheel without its dependencies in an empty folder."""
    folder = tmp_path_factory.mktemp("site")
    run("-m", "pip", "install", "--no-index", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture
def installed(site, tmp_path):
    """Run Python with the installed package, in an empty folder, on one device."""
    environment = os.environ | ONE_DEVICE | {"PYTHONPATH": str(site)}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(REPO / ".jax_cache")

    def call(*command):
        return run(*command, cwd=tmp_path, env=environment)

    return call


def test_wheel_contains_package_and_configs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"nanodet_jax"}
    configs = {name for name in names if name.startswith("nanodet_jax/configs/")}
    assert configs == {f"nanodet_jax/configs/{path.name}" for path in REPO.glob("configs/*.py")}
    assert "nanodet_jax/py.typed" in names


def test_installed_package_is_imported_with_its_configs(installed, site):
    package, config, name = installed("-c", IMPORTS).splitlines()
    assert Path(package) == site / "nanodet_jax" / "__init__.py"
    assert Path(config) == site / "nanodet_jax" / "configs" / "voc.py"
    assert name == "custom"


def test_installed_command_trains_a_config_by_name(installed, site, tmp_path):
    steps = "--config.training.steps=2"
    output = installed(
        site / "bin" / "nanodet-jax", "train", "--config", "shapes", *TINY_DATA, steps
    )
    assert "AP50" in output
    assert (tmp_path / "runs" / "shapes" / "checkpoints" / "2").is_dir()
