"""`nanodet-jax train` and `eval`, and the scripts that call them."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from nanodet_jax import config as configs
from nanodet_jax.cli import train
from nanodet_jax.cli.main import main
from nanodet_jax.configs import coco as coco_config
from nanodet_jax.evaluation.coco_metrics import METRIC_DESCRIPTIONS
from nanodet_jax.io import torch_names
from nanodet_jax.io.weights import Weights, save_weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables
from tests.runs import ONE_DEVICE, TINY_DATA

REPO = Path(__file__).parents[2]
CLASSES = ("circle", "triangle", "square", "star")
TINY = (
    *TINY_DATA,
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


def script(*arguments):
    """Run a script of the repository in a new process, with one device."""
    environment = os.environ | ONE_DEVICE
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
def command(monkeypatch, capsys):
    """Run a command in this process: return exit code, standard output and standard error."""
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)

    def call(*arguments):
        return main([str(argument) for argument in arguments]), *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def eager_weights(tmp_path_factory):
    """Random weights that find objects everywhere."""
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
    evaluator, version = metrics.pop("evaluator").split()
    assert version == metadata.version(evaluator)
    assert set(metrics) == {*METRIC_DESCRIPTIONS, "per_class"}
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} <= set(metrics)
    assert {"AR1", "AR10", "AR100", "ARs", "ARm", "ARl"} <= set(metrics)
    assert tuple(metrics["per_class"]) == CLASSES
    numbers = [metrics[name] for name in METRIC_DESCRIPTIONS]
    assert all(number is None or 0 <= number <= 1 for number in numbers)
    assert metrics["APl"] is None  # the images are too small for a large object
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
def test_scripts_train_and_evaluate_the_best_checkpoint(tmp_path, eager_weights):
    workdir, out = tmp_path / "run", tmp_path / "out"
    start = f"--config.training.init_weights={eager_weights}"
    done = script("train.py", *TINY, start, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"starting from {eager_weights}" in done.stdout
    assert "AP50" in done.stdout and "circle" in done.stdout
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["step"]) == ("eval", 2)

    done = script("eval.py", *TINY, f"--workdir={workdir}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout and "circle" in done.stdout
    metrics = assert_evaluated(out)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if line["kind"] == "eval"), key=lambda line: line["AP"])
    assert {name: best[name] for name in metrics} == metrics


def test_eval_of_weights_writes_metrics_detections_and_pictures(command, tmp_path, eager_weights):
    arguments = f"--weights={eager_weights}", f"--out={tmp_path}", "--evaluator=pycocotools"
    code, output, _ = command("eval", "--config=shapes", *TINY, *arguments)
    assert code == 0
    assert "pycocotools" in json.loads((tmp_path / "metrics.json").read_text())["evaluator"]
    assert f"{tmp_path} contains metrics.json, detections.json and pictures" in output
    assert_evaluated(tmp_path)


@pytest.fixture
def bad_files(tmp_path):
    """A folder with damaged files and configs."""
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


# Flags, and what the error must name. {} is the folder of `bad_files`.
BAD_FLAGS = {
    "unknown field": (["--config.data.batchsize=3"], "batchsize"),
    "unknown section of a named config": (
        ["--config=configs/voc.py", "--config.trainin.seed=3"],
        "trainin",
    ),
    "wrong type": (["--config.data.batch_size=abc"], "config.data.batch_size"),
    "fraction for an integer": (["--config.data.batch_size=3.5"], "config.data.batch_size"),
    "text for a number": (
        ["--config.training.learning_rate=fast"],
        "config.training.learning_rate",
    ),
    "not a number": (["--config.training.momentum=nan"], "config.training.momentum"),
    "empty batch": (["--config.data.batch_size=0"], "config.data.batch_size"),
    "batch larger than the data": (
        ["--config.data.train_size=3", "--config.data.batch_size=4"],
        "config.data.batch_size",
    ),
    "side not a multiple of the stride": (["--config.input_size=100,100"], "config.input_size"),
    "one side for two": (["--config.input_size=64"], "config.input_size"),
    "one bound for two": (["--config.augment.scale=0.5"], "config.augment.scale"),
    "negative translation": (["--config.augment.translate=-1"], "config.augment.translate"),
    "negative number of images": (["--config.data.train_size=-1"], "config.data.train_size"),
    "number of classes that differs from the data": (
        ["--config.model.num_classes=7"],
        "config.model.num_classes",
    ),
    "unsupported width": (["--config.model.width=0.7"], "config.model.width"),
    "unknown format": (
        ["--config.data.format=zip"],
        "config.data.format='zip': must be one of coco, voc, yolo, tfds, shapes",
    ),
    "limit of 0 megapixels": (["--config.data.max_megapixels=0"], "config.data.max_megapixels"),
    "fraction over 1": (["--config.data.max_unreadable=1.5"], "config.data.max_unreadable"),
    "unknown cache": (["--config.data.cache=disk"], "config.data.cache='disk'"),
    "cache of 0 GB": (["--config.data.cache_gb=0"], "config.data.cache_gb"),
    "too many devices": (["--config.training.devices=64"], "config.training.devices=64"),
    "address without a port": (
        ["--config.distributed.coordinator=here"],
        "config.distributed.coordinator='here'",
    ),
    "port out of range": (
        ["--config.distributed.coordinator=localhost:99999"],
        "config.distributed.coordinator='localhost:99999'",
    ),
    "processes without a coordinator": (
        ["--config.distributed.num_processes=2"],
        "config.distributed.num_processes=2: needs config.distributed.coordinator",
    ),
    "process index out of range": (
        ["--config.distributed.coordinator=a:1", "--config.distributed.process_index=1"],
        "config.distributed.process_index=1",
    ),
    "negative base batch size": (
        ["--config.training.lr_base_batch_size=-1"],
        "config.training.lr_base_batch_size=-1",
    ),
    "old name of a field": (
        ["--config.training.processes=2"],
        "config.distributed.num_processes=2: needs config.distributed.coordinator",
    ),
    "device cache with several processes": (
        [
            "--config.data.augment=device",
            "--config.data.cache=device",
            "--config.distributed.coordinator=a:1",
        ],
        "config.data.cache='device': needs a single process",
    ),
    "unknown place of augmentation": (["--config.data.augment=gpu"], "config.data.augment='gpu'"),
    "device cache with augmentation on the host": (
        ["--config.data.cache=device"],
        "needs data.augment=device",
    ),
    "device cache that is too small": (
        [
            "--config.data.cache=device",
            "--config.data.augment=device",
            "--config.data.cache_gb=1e-6",
        ],
        "config.data.cache_gb=1e-06: 3600 images of 160x160 need 0.28 GB",
    ),
    "canvas smaller than the input": (["--config.data.canvas=0.9"], "config.data.canvas"),
    "unknown flag": (["--batch_size=3"], "batch_size"),
    "positional argument": (["configs/voc.py"], "configs/voc.py"),
    "unknown variant": (["--config=configs/coco.py:nope"], "nope"),
    "variant of a config without variants": (["--config={}/one.py:nope"], "{}/one.py:nope"),
    "missing config": (["--config=configs/nope.py"], "configs/nope.py"),
    "missing config with an override": (
        ["--config=configs/nope.py", "--config.data.batch_size=3"],
        "configs/nope.py",
    ),
    "config without get_config": (["--config={}/no_config.py"], "get_config"),
    "config with a syntax error": (["--config={}/no_python.py"], "no_python.py"),
    "no data folder": (["--config=configs/voc.py"], "config.data.root"),
    "missing folder": (["--config=configs/voc.py", "--config.data.root={}/nope"], "{}/nope"),
    "missing images": (coco("{}", images="nope"), "{}/nope"),
    "missing annotations": (coco("{}", annotations="nope.json"), "{}/nope.json"),
    "broken json": (coco("{}", annotations="broken.json"), "{}/broken.json"),
}
BAD_WEIGHTS = {
    "missing weights": ("{}/nope.pth", "{}/nope.pth"),
    "weights that are a text file": ("{}/text.pth", "{}/text.pth"),
    "folder that is not a workdir": ("{}/images", "{}/images"),
}


def assert_one_line(code, error, named):
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1 and error.endswith("\n")
    assert "Traceback" not in error
    assert named in error


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_train_with_bad_flags_prints_one_line_and_writes_nothing(command, bad_files, case):
    given, named = BAD_FLAGS[case]
    given = [argument.format(bad_files) for argument in given]
    before = sorted(bad_files.rglob("*"))
    code, _, error = command("train", *given, f"--workdir={bad_files / 'run'}")
    assert_one_line(code, error, named.format(bad_files))
    assert sorted(bad_files.rglob("*")) == before


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_give_one_line_and_write_nothing(command, bad_files, case):
    path, named = (text.format(bad_files) for text in BAD_WEIGHTS[case])
    before = sorted(bad_files.rglob("*"))
    start = f"--config.training.init_weights={path}"
    code, _, error = command("train", *TINY, start, f"--workdir={bad_files / 'run'}")
    assert_one_line(code, error, named)
    code, _, error = command("eval", *TINY, f"--weights={path}", f"--out={bad_files / 'out'}")
    assert_one_line(code, error, named)
    assert sorted(bad_files.rglob("*")) == before


def test_eval_needs_exactly_one_of_workdir_and_weights(command, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    for given in ([], ["--workdir=run", "--weights=x.pth"]):
        code, _, error = command("eval", *given, out)
        assert_one_line(code, error, "--workdir")
    code, _, error = command("eval", f"--workdir={tmp_path / 'nope'}", out)
    assert_one_line(code, error, f"--workdir={tmp_path / 'nope'}: no such folder")
    assert not list(tmp_path.iterdir())


def test_eval_refuses_weights_with_other_classes(command, bad_files, eager_weights):
    data = coco(bad_files)
    code, _, error = command("eval", *data, f"--weights={eager_weights}", f"--out={bad_files}/out")
    assert_one_line(code, error, "4 classes, but the dataset has 1 (cat)")
    assert not (bad_files / "out").exists()


def test_train_refuses_a_batch_that_devices_cannot_divide(command, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    code, _, error = command("train", *TINY, f"--workdir={tmp_path / 'run'}")
    assert_one_line(code, error, "config.data.batch_size=4: must be divisible")


def test_script_with_a_bad_flag_exits_with_2(tmp_path):
    done = script("train.py", "--config.data.batchsize=3", f"--workdir={tmp_path / 'run'}")
    assert_one_line(done.returncode, done.stderr, "batchsize")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def trained(monkeypatch):
    """Arguments of each call of `train_and_evaluate`, which only checks them."""
    calls = []

    def record(config, workdir):
        configs.check(config)
        calls.append((config, workdir))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_and_evaluate", record)
    return calls


def test_train_passes_overrides_to_the_config(command, trained):
    code, *_ = command(
        "train",
        "--config=configs/voc.py",
        "--config.data.classes=cat,dog",
        "--config.data.merge",
        "big cat:cat,2:dog",
        "--config.data.sources=voc:here and there,yolo:C:\\data,coco:/a-b/c",
        "--config.data.ignore=('crowd', 'x')",
        "--config.data.keep_ratio",
        "--config.input_size=64,96",
        "--config.augment.scale=0.5,2",
        "--config.training.learning_rate=1e-3",
        "--config.training.milestones=3,5",
    )
    assert code == 130  # the exit code of a shell after Ctrl-C
    [(config, workdir)] = trained
    assert workdir == Path("runs/voc")
    assert config.data.classes == ("cat", "dog")
    assert config.data.merge == ("big cat:cat", "2:dog")
    assert config.data.sources == ("voc:here and there", "yolo:C:\\data", "coco:/a-b/c")
    assert config.data.ignore == ("crowd", "x")
    assert config.data.keep_ratio is True
    assert config.input_size == (64, 96)
    assert config.augment.scale == (0.5, 2)
    assert config.training.learning_rate == 1e-3
    assert config.training.milestones == (3, 5)


def test_every_shipped_config_is_valid(command, trained):
    variants = coco_config.VARIANTS
    files = sorted(path.name for path in (REPO / "configs").glob("*.py"))
    for name in [*files, *(f"coco.py:{variant}" for variant in variants)]:
        code, _, error = command("train", f"--config=configs/{name}")
        assert code == 130, error
    assert [workdir.name for _, workdir in trained[len(files) :]] == list(variants)
