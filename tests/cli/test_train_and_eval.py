"""train.py and eval.py as they are called: in a process of their own, or in this one."""

import json
import os
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver

import nanodet_jax
from nanodet_jax import config as configs
from nanodet_jax.evaluation.coco_metrics import MEANINGS
from nanodet_jax.io import torch_names
from nanodet_jax.io.weights import Weights, save_weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables

app.define_help_flags()  # absl does so once; what a door defines is undone after each call
# How ml_collections reads a config's file.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")
REPO = Path(__file__).parents[2]
CLASSES = ("circle", "triangle", "square", "star")
TINY = (
    "--config.input_size=64,64",
    "--config.model.channels=32",
    "--config.model.stacked_convs=1",
    "--config.data.train_size=16",
    "--config.data.val_size=6",
    "--config.data.batch_size=4",
    "--config.training.steps=2",
    "--config.training.log_every=1",
)
ONE_IMAGE = {
    "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 64}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [8, 8, 20, 20],
            "area": 400,
            "iscrowd": 0,
        }
    ],
    "categories": [{"id": 1, "name": "cat"}],
}


def process(*arguments):
    """A door in a process of its own, on one device."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(REPO / ".jax_cache")
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def door(monkeypatch, capsys):
    """A door in this process: exit code, standard output and standard error."""
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)

    def call(*arguments):
        arguments = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the config read before
        before = flagsaver.save_flag_values()
        try:
            with pytest.raises(SystemExit) as left:
                runpy.run_path(arguments[0], run_name="__main__")
        finally:
            flagsaver.restore_flag_values(before)
        return left.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def eager_weights(tmp_path_factory):
    """Random weights that find something everywhere."""
    model = configs.Model(num_classes=4, width=0.5, channels=32, stacked_convs=1)
    random = np.random.default_rng(0)
    flat = {}
    for name, leaf in torch_names.flatten(abstract_variables(build_model(model))).items():
        value = np.ones(leaf.shape) if name.endswith(("scale", "var")) else np.zeros(leaf.shape)
        if name.endswith("kernel"):
            value = random.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        flat[name] = value.astype(np.float32)
    config = configs.Config(input_size=(64, 64), model=model)
    path = tmp_path_factory.mktemp("weights") / "eager.npz"
    save_weights(
        path, Weights(torch_names.unflatten(flat), config, ("circle", "triangle", "square", "star"))
    )
    return path


def assert_evaluated(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    judge, version = metrics.pop("judge").split()
    assert version == metadata.version(judge)
    assert set(metrics) == {*MEANINGS, "per_class"}
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} <= set(metrics)
    assert {"AR1", "AR10", "AR100", "ARs", "ARm", "ARl"} <= set(metrics)
    assert tuple(metrics["per_class"]) == CLASSES
    assert all(-1 <= metrics[name] <= 1 for name in MEANINGS)
    detections = json.loads((folder / "detections.json").read_text())
    assert {row["image_id"] for row in detections} == set(range(1, 7))
    for row in detections:
        assert set(row) == {"image_id", "category_id", "bbox", "score"}
        assert row["category_id"] in (1, 2, 3, 4)
        x, y, width, height = row["bbox"]
        assert min(x, y, width, height) >= 0
        assert max(x + width, y + height) <= 64.001
        assert 0.05 < row["score"] <= 1
    assert (folder / "pictures" / "detections.jpg").stat().st_size > 1000
    return metrics


@pytest.mark.slow
def test_train_then_evaluate(tmp_path, eager_weights):
    workdir, out = tmp_path / "run", tmp_path / "out"
    start = f"--config.training.init_weights={eager_weights}"
    done = process("train.py", *TINY, start, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"starting from {eager_weights}" in done.stdout
    assert "AP50" in done.stdout and "circle" in done.stdout
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["step"]) == ("eval", 2)

    done = process("eval.py", *TINY, f"--workdir={workdir}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout and "circle" in done.stdout
    metrics = assert_evaluated(out)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if line["kind"] == "eval"), key=lambda line: line["AP"])
    assert {name: best[name] for name in metrics} == metrics


def test_evaluate_weights(door, tmp_path, eager_weights):
    arguments = f"--weights={eager_weights}", f"--out={tmp_path}", "--judge=pycocotools"
    code, said, _ = door("eval.py", *TINY, *arguments)
    assert code == 0
    assert "pycocotools" in json.loads((tmp_path / "metrics.json").read_text())["judge"]
    assert f"metrics.json, detections.json and pictures are in {tmp_path}" in said
    assert_evaluated(tmp_path)


@pytest.fixture
def bad_files(tmp_path):
    """Files and folders that are not what they should be."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "1.png"), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "good.json").write_text(json.dumps(ONE_IMAGE))
    (tmp_path / "broken.json").write_text(json.dumps(ONE_IMAGE)[:-9])
    (tmp_path / "text.pth").write_text("these are no weights")
    (tmp_path / "no_config.py").write_text("x = 1\n")
    (tmp_path / "no_python.py").write_text("def get_config(:\n")
    (tmp_path / "one.py").write_text("def get_config():\n    return None\n")
    return tmp_path


def coco(folder, images="images", annotations="good.json"):
    files = f"{folder}/{images}", f"{folder}/{annotations}"
    pairs = zip(("images", "annotations") * 2, files * 2, ("train", "train", "val", "val"))
    return ["--config=configs/coco.py", *(f"--config.data.{s}_{k}={v}" for k, v, s in pairs)]


# What is given, and what the line must name. {} is the folder of `bad_files`.
BAD_FLAGS = {
    "unknown field": (["--config.data.batchsize=3"], "batchsize"),
    "unknown field of a named config": (
        ["--config=configs/voc.py", "--config.trainin.seed=3"],
        "trainin",
    ),
    "wrong type": (["--config.data.batch_size=abc"], "config.data.batch_size"),
    "a fraction": (["--config.data.batch_size=3.5"], "config.data.batch_size"),
    "no number": (["--config.training.learning_rate=fast"], "config.training.learning_rate"),
    "nan": (["--config.training.momentum=nan"], "config.training.momentum"),
    "batch of none": (["--config.data.batch_size=0"], "config.data.batch_size"),
    "batch larger than the data": (
        ["--config.data.train_size=3", "--config.data.batch_size=4"],
        "config.data.batch_size",
    ),
    "no multiple of the stride": (["--config.input_size=100,100"], "config.input_size"),
    "one side": (["--config.input_size=64"], "config.input_size"),
    "one bound": (["--config.augment.scale=0.5"], "config.augment.scale"),
    "negative": (["--config.augment.translate=-1"], "config.augment.translate"),
    "no images": (["--config.data.train_size=-1"], "config.data.train_size"),
    "another number of classes": (["--config.model.num_classes=7"], "config.model.num_classes"),
    "width that there is not": (["--config.model.width=0.7"], "config.model.width"),
    "unknown format": (
        ["--config.data.format=zip"],
        "config.data.format='zip': must be one of coco, voc, yolo, tfds, shapes",
    ),
    "images of no size": (["--config.data.max_megapixels=0"], "config.data.max_megapixels"),
    "more than all": (["--config.data.max_unreadable=1.5"], "config.data.max_unreadable"),
    "unknown cache": (["--config.data.cache=disk"], "config.data.cache='disk'"),
    "a cache of nothing": (["--config.data.cache_gb=0"], "config.data.cache_gb"),
    "more devices than there are": (["--config.training.devices=64"], "config.training.devices=64"),
    "no address": (
        ["--config.distributed.coordinator=here"],
        "config.distributed.coordinator='here'",
    ),
    "a port that is none": (
        ["--config.distributed.coordinator=localhost:99999"],
        "config.distributed.coordinator='localhost:99999'",
    ),
    "processes that cannot meet": (
        ["--config.distributed.num_processes=2"],
        "config.distributed.num_processes=2: needs config.distributed.coordinator",
    ),
    "one process too many": (
        ["--config.distributed.coordinator=a:1", "--config.distributed.process_index=1"],
        "config.distributed.process_index=1",
    ),
    "a rate for no batch": (
        ["--config.training.lr_base_batch_size=-1"],
        "config.training.lr_base_batch_size=-1",
    ),
    "an old name": (
        ["--config.training.processes=2"],
        "config.distributed.num_processes=2: needs config.distributed.coordinator",
    ),
    "kept on the devices of many processes": (
        [
            "--config.data.augment=device",
            "--config.data.cache=device",
            "--config.distributed.coordinator=a:1",
        ],
        "config.data.cache='device': needs a single process",
    ),
    "made nowhere": (["--config.data.augment=gpu"], "config.data.augment='gpu'"),
    "kept on the device and made elsewhere": (
        ["--config.data.cache=device"],
        "needs data.augment=device",
    ),
    "more than the device may keep": (
        [
            "--config.data.cache=device",
            "--config.data.augment=device",
            "--config.data.cache_gb=1e-6",
        ],
        "config.data.cache_gb=1e-06: 4000 images of 160x160 need 0.31 GB",
    ),
    "a canvas below the input": (["--config.data.canvas=0.9"], "config.data.canvas"),
    "unknown flag": (["--batch_size=3"], "batch_size"),
    "no flag": (["configs/voc.py"], "configs/voc.py"),
    "unknown variant": (["--config=configs/coco.py:nope"], "nope"),
    "a variant of what has none": (["--config={}/one.py:nope"], "{}/one.py:nope"),
    "missing config": (["--config=configs/nope.py"], "configs/nope.py"),
    "missing config, and a field": (
        ["--config=configs/nope.py", "--config.data.batch_size=3"],
        "configs/nope.py",
    ),
    "config without get_config": (["--config={}/no_config.py"], "get_config"),
    "config with a slip": (["--config={}/no_python.py"], "no_python.py"),
    "no folder given": (["--config=configs/voc.py"], "config.data.root"),
    "missing folder": (["--config=configs/voc.py", "--config.data.root={}/nope"], "{}/nope"),
    "missing images": (coco("{}", images="nope"), "{}/nope"),
    "missing annotations": (coco("{}", annotations="nope.json"), "{}/nope.json"),
    "broken json": (coco("{}", annotations="broken.json"), "{}/broken.json"),
}
BAD_WEIGHTS = {
    "missing weights": ("{}/nope.pth", "{}/nope.pth"),
    "weights that are text": ("{}/text.pth", "{}/text.pth"),
    "a folder that is no run": ("{}/images", "{}/images"),
}


def assert_one_line(code, error, named):
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1 and error.endswith("\n")
    assert "Traceback" not in error
    assert named in error


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(door, bad_files, case):
    given, named = BAD_FLAGS[case]
    given = [argument.format(bad_files) for argument in given]
    before = sorted(bad_files.rglob("*"))
    code, _, error = door("train.py", *given, f"--workdir={bad_files / 'run'}")
    assert_one_line(code, error, named.format(bad_files))
    assert sorted(bad_files.rglob("*")) == before


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights(door, bad_files, case):
    path, named = (text.format(bad_files) for text in BAD_WEIGHTS[case])
    before = sorted(bad_files.rglob("*"))
    start = f"--config.training.init_weights={path}"
    code, _, error = door("train.py", *TINY, start, f"--workdir={bad_files / 'run'}")
    assert_one_line(code, error, named)
    code, _, error = door("eval.py", *TINY, f"--weights={path}", f"--out={bad_files / 'out'}")
    assert_one_line(code, error, named)
    assert sorted(bad_files.rglob("*")) == before


def test_evaluation_of_nothing_or_of_two(door, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    for given in ([], ["--workdir=run", "--weights=x.pth"]):
        code, _, error = door("eval.py", *given, out)
        assert_one_line(code, error, "--workdir")
    code, _, error = door("eval.py", f"--workdir={tmp_path / 'nope'}", out)
    assert_one_line(code, error, f"{tmp_path / 'nope'}")
    assert not list(tmp_path.iterdir())


def test_classes_that_are_not_the_weights(door, bad_files, eager_weights):
    data = coco(bad_files)
    code, _, error = door("eval.py", *data, f"--weights={eager_weights}", f"--out={bad_files}/out")
    assert_one_line(code, error, "4 classes, the data has 1 (cat)")
    assert not (bad_files / "out").exists()


def test_batch_and_devices(door, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    code, _, error = door("train.py", *TINY, f"--workdir={tmp_path / 'run'}")
    assert_one_line(code, error, "config.data.batch_size=4: must be divisible")


def test_a_bad_flag_in_a_process(tmp_path):
    done = process("train.py", "--config.data.batchsize=3", f"--workdir={tmp_path / 'run'}")
    assert_one_line(done.returncode, done.stderr, "batchsize")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def trained(monkeypatch):
    """Calls of `train_and_evaluate`, which does nothing but check what it is given."""
    calls = []

    def record(config, workdir):
        configs.check(config)
        calls.append((config, workdir))
        raise KeyboardInterrupt

    monkeypatch.setattr(nanodet_jax, "train_and_evaluate", record)
    return calls


def test_flags_reach_the_config(door, trained):
    code, *_ = door(
        "train.py",
        "--config=configs/voc.py",
        "--config.data.classes=cat,dog",
        "--config.data.root=somewhere",
        "--config.data.keep_ratio",
        "--config.input_size=64,96",
        "--config.augment.scale=0.5,2",
        "--config.training.learning_rate=1e-3",
        "--config.training.milestones=3,5",
    )
    assert code == 130  # as a shell has it after Ctrl-C
    [(config, workdir)] = trained
    assert workdir == Path("runs/voc")
    assert config.data.classes == ("cat", "dog")
    assert config.data.root == "somewhere"
    assert config.data.keep_ratio is True
    assert config.input_size == (64, 96)
    assert config.augment.scale == (0.5, 2)
    assert config.training.learning_rate == 1e-3
    assert config.training.milestones == (3, 5)


def test_every_config_is_possible(door, trained):
    variants = runpy.run_path(str(REPO / "configs" / "coco.py"))["VARIANTS"]
    files = sorted(path.name for path in (REPO / "configs").glob("*.py"))
    for name in [*files, *(f"coco.py:{variant}" for variant in variants)]:
        code, _, error = door("train.py", f"--config=configs/{name}")
        assert code == 130, error
    assert [workdir.name for _, workdir in trained[len(files) :]] == list(variants)
