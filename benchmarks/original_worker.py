"""Run the original NanoDet once, and then once more for every line of standard input.

    python original_worker.py CHECKOUT CONFIG step|network|onnxruntime|ncnn BATCH.npz THREADS

This script imports nothing from nanodet_jax. For onnxruntime and ncnn, the network is exported
first, with PyTorch's ONNX exporter or with pnnx. BATCH.npz has images [B, 3, H, W], the fields of a
`GroundTruth` and the learning rate. After each run, a line of JSON with the wall and CPU seconds is
printed. Modules that the original imports but does not need here (Lightning, torchvision, plotting)
may be missing.
"""

import copy
import importlib.abc
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch

# Modules that a network and its loss do not need. The last one exists only in torch 1.
OPTIONAL = ("pytorch_lightning", "lightning_fabric", "torchvision", "matplotlib", "imagesize",
            "pycocotools", "termcolor", "tabulate", "tqdm", "timm", "torch._six")  # fmt: skip


class _MockFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import finder that mocks the modules in OPTIONAL that are not installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in OPTIONAL or name.partition(".")[0] in OPTIONAL:
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> Any:
        return mock.MagicMock(__spec__=spec, __path__=[], __name__=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def training_step(
    cfg: Any, model: torch.nn.Module, batch: dict, device: torch.device
) -> Callable[[], None]:
    """Build a step as in the original's `TrainingTask` and Lightning, without logs or warm-up."""
    from nanodet.model.weight_averager import build_weight_averager
    from nanodet.optim import build_optimizer

    optimizer_config = copy.deepcopy(cfg.schedule.optimizer)
    optimizer_config.lr = float(batch.pop("learning_rate"))
    optimizer = build_optimizer(model, optimizer_config)
    averager = None
    if "weight_averager" in cfg.model:
        averager = build_weight_averager(cfg.model.weight_averager, device=device)
        averager.load_from(model)
    clip = cfg.get("grad_clip", 0)
    model.train()
    model.set_epoch(0)
    steps = 0

    def step() -> None:
        nonlocal steps
        _, loss, _ = model.forward_train(dict(batch))
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if averager is not None:
            averager.update(model, steps)

    return step


def network(model: torch.nn.Module, batch: dict) -> Callable[[], None]:
    """Build the forward pass in eager PyTorch."""
    model.eval()

    def forward() -> None:
        with torch.no_grad():
            model(batch["img"])

    return forward


def in_onnxruntime(
    model: torch.nn.Module, batch: dict, folder: Path, threads: int
) -> Callable[[], None]:
    """Build the forward pass in ONNX Runtime."""
    import onnxruntime

    path = str(folder / "network.onnx")
    torch.onnx.export(model, batch["img"], path, dynamo=False, input_names=["images"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = batch["img"].numpy()
    return lambda: session.run(None, {"images": images})


def in_ncnn(model: torch.nn.Module, batch: dict, folder: Path, threads: int) -> Callable[[], None]:
    """Build the forward pass for one image in ncnn."""
    import ncnn
    import pnnx

    pnnx.export(model, str(folder / "network.pt"), batch["img"])
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.load_param(str(folder / "network.ncnn.param"))
    net.load_model(str(folder / "network.ncnn.bin"))
    image = batch["img"][0].numpy()

    def forward() -> None:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image))
        extractor.extract("out0")

    return forward


def load_batch(path: str, device: torch.device) -> dict:
    """Load a batch in the form of the original's loader, with boxes as a list of numpy arrays."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return {
        "img": torch.from_numpy(arrays["images"]).to(device),
        "gt_bboxes": [boxes[valid] for boxes, valid in zip(arrays["boxes"], arrays["valid"])],
        "gt_labels": [
            labels[valid].astype(np.int64)
            for labels, valid in zip(arrays["labels"], arrays["valid"])
        ],
        "gt_bboxes_ignore": [np.zeros((0, 4), np.float32) for _ in arrays["images"]],
        "learning_rate": arrays["learning_rate"],
    }


def main() -> None:
    checkout, config, mode, path, threads = sys.argv[1:]
    output, sys.stdout = sys.stdout, sys.stderr  # the original prints to stdout
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    sys.path.insert(0, checkout)
    sys.meta_path.append(_MockFinder())
    from nanodet.model.arch import build_model
    from nanodet.util import cfg, load_config

    load_config(cfg, str(Path(checkout) / "config" / config))
    cfg.defrost()
    cfg.model.arch.backbone.pretrain = False  # download nothing
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(cfg.model).to(device)
    batch = load_batch(path, device)
    match mode:
        case "step":
            run = training_step(cfg, model, batch, device)
        case "network":
            run = network(model, batch)
        case _:
            export = {"onnxruntime": in_onnxruntime, "ncnn": in_ncnn}[mode]
            run = export(model.cpu().eval(), batch, Path(path).parent, int(threads))

    def run_and_print() -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(times), file=output, flush=True)

    run_and_print()
    for _ in sys.stdin:
        run_and_print()


if __name__ == "__main__":
    main()
