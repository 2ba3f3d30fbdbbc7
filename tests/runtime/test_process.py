"""Process-wide settings: importing and detecting change none, `setup_process` changes all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.io.test_hostile_weights import weights
from tests.runs import ONE_DEVICE

REPO = Path(__file__).parents[2]
# A program that embeds the package. It prints, as json, which settings differ after each stage.
PROGRAM = """
import ctypes, json, logging, os, signal, sys, threading, warnings

import absl.logging, cv2, etils.epath, filelock, flax.linen, grain, jax, numpy
import optax, orbax.checkpoint, PIL.Image, pycocotools.cocoeval
import tensorboardX, tqdm, yaml

jax.jit(lambda x: x + 1)(0.0).block_until_ready()
if len(sys.argv) > 3:
    jax.config.update("jax_compilation_cache_dir", sys.argv[3])
loaded, load = [], ctypes.CDLL
ctypes.CDLL = lambda name, *args, **options: loaded.append(name) or load(name, *args, **options)


def settings():
    loggers = {name: logging.getLogger(name) for name in [None, *logging.root.manager.loggerDict]
               if not (name or "").startswith("nanodet_jax")}
    return {
        **{f"jax {name}": value for name, value in jax.config.values.items()},
        **{f"environment {name}": value for name, value in os.environ.items()},
        **{f"logger {name}": (logger.level, logger.filters[:], logger.handlers[:], logger.disabled)
           for name, logger in loggers.items()},
        **{f"signal {number}": signal.getsignal(number) for number in signal.valid_signals()},
        "absl verbosity": absl.logging.get_verbosity(),
        "cv2 threads": cv2.getNumThreads(),
        "cv2 log level": cv2.utils.logging.getLogLevel(),
        "warnings": warnings.filters[:],
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "path": sys.path[:],
        "recursion": sys.getrecursionlimit(),
        "numpy errors": numpy.geterr(),
        "malloc": loaded.count("libc.so.6"),
    }


def report(stage):
    global before
    after = settings()
    changed = sorted(name for name in before if after.get(name) != before[name])
    stages[stage] = {name: str(after.get(name)) for name in changed}
    before = after


stages, before = {}, settings()
import importlib, pkgutil
import nanodet_jax
for module in pkgutil.walk_packages(nanodet_jax.__path__, "nanodet_jax."):
    if "tfds" not in module.name:  # an optional dependency
        importlib.import_module(module.name)
report("import")
image = numpy.zeros((48, 64, 3), numpy.uint8)
cv2.imwrite(sys.argv[2], image)
detector = nanodet_jax.Detector.load(sys.argv[1])
detector([image, sys.argv[2]])
report("detect")
nanodet_jax.setup_process()
report("set up")
nanodet_jax.setup_process()
report("set up again")
cv2.setNumThreads(3)
before = settings()
nanodet_jax.setup_process()
report("set up after a change by the program")
print(json.dumps(stages))
"""
QUIET = ("cv2 log level", "cv2 threads", "logger absl", "malloc")
THRESHOLDS = (
    "jax jax_persistent_cache_min_compile_time_secs",
    "jax jax_persistent_cache_min_entry_size_bytes",
)
CACHE = "jax jax_compilation_cache_dir"


@pytest.fixture
def stages(tmp_path):
    """Run the program; return the settings that each stage changes."""
    file = weights(
        tmp_path / "w.npz", about=lambda about: about["config"].update(input_size=[32, 32])
    )
    image = tmp_path / "image.png"

    def call(*cache, **environment):
        inherited = {name: os.environ[name] for name in os.environ if not name.startswith("JAX_")}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, file, image, *cache],
            env=inherited | ONE_DEVICE | {"PYTHONPATH": str(REPO)}
            | {"XDG_CACHE_HOME": str(tmp_path)} | environment,
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return call


def assert_only_set_up_changes(stages, expected):
    assert stages.pop("set up").keys() == set(expected)
    assert all(changed == {} for changed in stages.values()), stages


def test_only_setup_process_changes_the_process_and_only_once(stages, tmp_path):
    found = stages()
    assert found["set up"][CACHE] == str(tmp_path / "nanodet_jax")
    assert found["set up"]["cv2 threads"] == "1"  # OpenCV's answer after setNumThreads(0)
    assert_only_set_up_changes(found, (*QUIET, *THRESHOLDS, CACHE))


def test_setup_process_keeps_the_cache_folder_of_the_user(stages, tmp_path):
    found = stages(str(tmp_path / "mine"))
    assert (tmp_path / "mine").is_dir() and not (tmp_path / "nanodet_jax").exists()
    assert_only_set_up_changes(found, (*QUIET, *THRESHOLDS))


def test_setup_process_keeps_the_cache_settings_of_the_environment(stages, tmp_path):
    found = stages(
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="5",
    )
    assert (tmp_path / "mine").is_dir() and not (tmp_path / "nanodet_jax").exists()
    assert_only_set_up_changes(found, QUIET)
