"""Write `tests/reference/legacy/`: files of a run, as an earlier commit wrote them.

    git worktree add OLD 0d63cb3
    PYTHONPATH=OLD python tests/tools/make_legacy_run.py tests/reference/legacy

Commit 0d63cb3 is the last one before config fields were renamed and `TrainState.average` became
`TrainState.ema`. `tests/test_legacy.py` checks that its files still load. The folder contains:

- `files.tar.xz`, with `run/`, a workdir after STEPS steps of SGD with momentum and an average of
  the weights, and `weights.npz`, the same weights as `nanodet-jax convert` writes them. The config
  in both sets the fields that are now `training.lr_base_batch_size` and `training.lr_multipliers`.
- `expected.json`: what the earlier code read from both, and its losses after resuming.

The archive is small because the backbone is frozen, its last stage is zero, and its other kernels
have two bits of mantissa.
"""

import argparse
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

STEPS, MORE = 3, 3  # steps of the saved run, and steps after resuming
SIDE, BATCH = 64, 4  # pixels of a side of the square input, images per batch
IMAGES = {"train": 8, "val": 4}
CLASSES = ("disc", "box", "ring")
SHOWN = 8  # number of recorded detections of one image


def write_data(folder: Path) -> None:
    """Write images and COCO json files to `folder`, using a formula that depends on no library."""
    for split, count in IMAGES.items():
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(count):
            name = f"{index}.png"
            cv2.imwrite(str(folder / split / name), make_image(index))
            images.append({"id": index, "file_name": name, "width": SIDE, "height": SIDE})
            for label in range(1 + index % 2):
                box = [4 + 5 * index % 20, 6 + 20 * label, 24 + index, 18 + 3 * label]
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": index,
                        "category_id": 1 + (index + label) % len(CLASSES),
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": 1 + label, "name": name} for label, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))


def make_image(index: int) -> np.ndarray:
    """Return a pattern of `SIDE` x `SIDE` pixels, uint8 BGR."""
    y, x, channel = np.mgrid[:SIDE, :SIDE, :3]
    return ((x * (3 + index) + y * y // 7 + 50 * channel + 90 * (x // 16 % 2)) % 256).astype(
        np.uint8
    )


def digest(tree: Any) -> str:
    """Return one SHA-256 of all arrays (dtype, shape, bytes), in the order of `jax.tree.leaves`."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf, order="C")
        total.update(f"{array.dtype.name}{array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def detections(detector: Any) -> dict[str, Any]:
    """Return what a detector finds in one image, as json values."""
    found = detector(make_image(11))
    return {
        "count": len(found.scores),
        "boxes": found.boxes[:SHOWN].tolist(),
        "scores": found.scores[:SHOWN].tolist(),
        "class_names": found.class_names[:SHOWN],
    }


def losses(workdir: Path) -> list[float]:
    """Return the loss of every step in `metrics.jsonl`."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # paths in the config are relative
        _make(out)


def _make(out: Path) -> None:
    from nanodet_jax import train_and_evaluate
    from nanodet_jax.inference.detector import Detector
    from nanodet_jax.io.weights import load_weights, save_weights
    from tests.runs import final_state

    write_data(Path("data"))
    config = _config()
    save_weights("start.npz", _first_weights(config))
    run = Path("run")
    train_and_evaluate(config, run)
    for name in ("tensorboard", "pictures"):
        shutil.rmtree(run / name)
    shutil.copytree(run, "saved")
    save_weights("weights.npz", load_weights(run))
    state = final_state(run, STEPS)
    config.training.steps = STEPS + MORE
    train_and_evaluate(config, run)
    expected = {
        "params": digest(state.params),
        "batch_stats": digest(state.batch_stats),
        "ema": digest(state.average),
        "opt_state": digest(state.opt_state),
        "run": detections(Detector.load("saved")),
        "npz": detections(Detector.load("weights.npz")),
        "losses": losses(run),
    }
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / "files.tar.xz", "w:xz") as archive:
        archive.add("saved", "run", filter=_anonymous)
        archive.add("weights.npz", filter=_anonymous)
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uname = entry.gname = ""
    entry.uid = entry.gid = entry.mtime = 0
    return entry


def _config() -> Any:
    from nanodet_jax.config import Augment, Config, Data, Model, Rates, Training

    return Config(
        name="legacy",
        input_size=(SIDE, SIDE),
        data=Data(
            format="coco",
            train_images="data/train",
            train_annotations="data/train.json",
            val_images="data/val",
            val_annotations="data/val.json",
            batch_size=BATCH,
        ),
        augment=Augment(scale=(0.9, 1.1), translate=0.1, flip=0.5),
        model=Model(width=0.5, channels=16, stacked_convs=1),
        training=Training(
            steps=STEPS,
            optimizer="sgd",
            learning_rate=0.02,
            rate_batch=2 * BATCH,
            rates=Rates(backbone=0.0, head=0.5),
            weight_decay=0.0,
            ema_decay=0.9,
            init_weights="start.npz",
            log_every=1,
            checkpoint_every=10,  # no checkpoint before the last step
        ),
    )


def _first_weights(config: Any) -> Any:
    """Return weights that detect something everywhere, and compress well."""
    from dataclasses import replace

    from nanodet_jax.io import torch_names
    from nanodet_jax.io.weights import Weights
    from nanodet_jax.models.nanodet import build_model
    from nanodet_jax.state import abstract_variables

    config = replace(config, model=replace(config.model, num_classes=len(CLASSES)))
    random = np.random.default_rng(0)
    flat = {}
    for name, leaf in torch_names.flatten(abstract_variables(build_model(config.model))).items():
        value = np.zeros(leaf.shape, np.float32)
        if name.endswith(("scale", "var")):
            value += 1 + random.integers(0, 2, leaf.shape) / 4
        if name.endswith("kernel") and "stage4" not in name:
            value = random.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        if "backbone" in name:
            value = np.asarray(value, np.float32).view(np.uint32) & 0xFFE00000  # 2 bits of mantissa
            value = value.view(np.float32)
        flat[name] = np.asarray(value, np.float32)
    return Weights(torch_names.unflatten(flat), config, CLASSES)


if __name__ == "__main__":
    main()
