"""Fixtures of whole networks: features, predictions, loss, gradients, optimizer steps."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from nanodet_jax import backend, config, convert
from nanodet_jax.models.detector import build_model, priors_of
from nanodet_jax.structures import Batch
from nanodet_jax.training.optimizer import make_optimizer
from nanodet_jax.training.state import abstract_variables, create_state
from nanodet_jax.training.step import loss_and_gradients, make_train_step
from tests.parity_checks.assignment import batch_of
from tests.parity_checks.comparison import Comparisons, Worst

PARTS = {"assigner": config.Assigner(ignore_threshold=0.0), "weights": config.Loss()}


def load_formula(folder: Path):
    """The module that rebuilds weights and inputs; every folder of fixtures brings its own."""
    spec = importlib.util.spec_from_file_location("formula", folder / "formula.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest_of(path: Path) -> dict[str, list[int]]:
    """Names and shapes of the state_dict that the fixture at `path` was recorded with."""
    manifest = json.loads((path.parent / "manifest.json").read_text())
    return manifest.get(path.stem.split("_", 1)[1], {})


def built_here(names) -> bool:
    """Whether a state_dict with these names is a NanoDet with ShuffleNetV2 and PAN."""
    return "backbone.stage2.0.branch2.0.weight" in names and all(
        name.startswith(("backbone.", "head.", "fpn.lateral_convs.")) for name in names
    )


def forward_check(path: Path):
    """The check of a forward_<model>.npz, or None for a model that is not built here."""
    return partial(check_forward, path) if built_here(manifest_of(path)) else None


def trajectory_check(path: Path):
    """The check of a trajectory_<model>.npz, or None for a model that is not built here."""
    return partial(check_trajectory, path) if built_here(manifest_of(path)) else None


def _seeded(function, fixture, *args):
    return function(*args, seed=int(fixture["seed"])) if "seed" in fixture else function(*args)


def load_case(path: Path):
    """Fixture, formula, model and variables by formula; batch statistics from the file if there."""
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    formula = load_formula(path.parent)
    entries = {
        name: fixture[f"bn/{name}"]
        if f"bn/{name}" in fixture
        else _seeded(formula.weight, fixture, name, tuple(shape))
        for name, shape in manifest_of(path).items()
    }
    like = {name: np.empty(shape) for name, shape in manifest_of(path).items()}
    model_config = convert.infer_model(like, path.name)
    return fixture, formula, model_config, entries


def joined(predictions) -> np.ndarray:
    """Predictions in the original's layout: classes, then boxes."""
    bins = predictions.box_logits
    flat = bins.reshape(*bins.shape[:2], -1)
    return np.concatenate([predictions.class_logits, flat], axis=-1)


def check_forward(path: Path) -> Worst:
    """Evaluation and, where recorded, one training pass with its gradients."""
    compare = Comparisons()
    fixture, formula, model_config, entries = load_case(path)
    model = build_model(model_config)
    variables = convert.convert(entries, abstract_variables(model), path.name)
    images = _seeded(formula.image, fixture, (2, 3, 128, 192)).transpose(0, 2, 3, 1)

    @backend.jit
    def evaluate(variables, images):
        return model.apply(
            variables,
            images,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name in ("backbone", "neck"),
        )

    predictions, seen = evaluate(variables, images)
    for part, key in (("backbone", "backbone"), ("neck", "fpn")):
        for i, features in enumerate(seen["intermediates"][part]["__call__"][0]):
            first = np.asarray(features)[:1].transpose(0, 3, 1, 2)
            compare.of_scale(f"{part} {i}", first, fixture[f"{key}_{i}"], 1e-5)
    compare.of_scale("predictions", joined(predictions), fixture["preds"], 1e-5)
    if "loss" in fixture:
        _check_training_pass(compare, fixture, model, variables, images, path)
    return compare.worst()


def _check_training_pass(compare, fixture, model, variables, images, path) -> None:
    priors = priors_of(model.model, images.shape[1:3])
    batch = Batch(images, batch_of(path, fixture, len(images)))

    @backend.jit
    def run(variables, batch):
        predictions, _ = model.apply(variables, batch.images, train=True, mutable=["batch_stats"])
        return predictions, loss_and_gradients(
            variables, batch, model=model, priors=priors, **PARTS
        )

    predictions, (metrics, gradients, batch_stats) = run(variables, batch)
    compare.of_scale("training predictions", joined(predictions), fixture["train_preds"], 1e-5)
    compare.relative("training loss", metrics["loss"], fixture["loss"], 1e-5)
    for part in ("loss_qfl", "loss_bbox", "loss_dfl"):
        compare.relative(part, metrics[part], fixture[f"loss_state/{part}"], 1e-5)
    by_name = convert.to_entries({"params": gradients})
    norms = dict(zip(fixture["grad_names"].tolist(), fixture["grad_norms"]))
    largest = max(norms.values())
    for name, gradient in by_name.items():
        if name not in norms:
            compare.add(f"no gradient recorded for {name}", np.inf, 0)
            continue
        norm = np.linalg.norm(gradient)
        if norms[name] < 1e-6 * largest:
            # A bias in front of a batch norm: its gradient is zero, and what was recorded noise.
            compare.add(f"|d {name}| of the largest", norm / largest, 1e-6)
        else:
            compare.relative(f"|d {name}|", norm, norms[name], 1e-3)
    running = convert.to_entries({"batch_stats": batch_stats})
    for kind in ("mean", "var"):
        sums = zip(fixture["bn_names"].tolist(), fixture[f"bn_running_{kind}_sum"])
        for name, expected in sums:
            stats = running[name.rsplit(".", 1)[0] + f".running_{kind}"]
            # A sum of means may cancel; its scale is that of its terms.
            scale = np.sum(np.abs(stats))
            compare.add(f"{name} {kind}", abs(np.sum(stats, dtype=np.float64) - expected) / scale,
                        1e-5)  # fmt: skip


def check_trajectory(path: Path) -> Worst:
    """Six optimizer steps on one batch."""
    compare = Comparisons()
    fixture, formula, model_config, entries = load_case(path)
    for name, entry in entries.items():
        if name.endswith("running_mean"):
            entries[name] = np.zeros_like(entry)
        elif name.endswith("running_var"):
            entries[name] = np.ones_like(entry)
        elif name.startswith(("head.gfl_cls.", "head.gfl_reg.")):
            entries[name] = entry * np.float32(0.1) - (4.595 if name.endswith("bias") else 0)
    model = build_model(model_config)
    variables = convert.convert(entries, abstract_variables(model), path.name)
    images = _seeded(formula.image, fixture, (2, 3, 160, 160)).transpose(0, 2, 3, 1)
    batch = Batch(jnp.asarray(images), batch_of(path, fixture, len(images)))
    rate = float(fixture["lr"])

    def schedule(step):
        return jnp.float32(rate)

    training = config.Training(optimizer="sgd", learning_rate=rate, momentum=0.9, weight_decay=1e-4)
    optimizer = make_optimizer(training, schedule)
    step = make_train_step(
        optimizer, schedule, model=model, priors=priors_of(model_config, (160, 160)), **PARTS
    )
    state = create_state(variables, optimizer)
    losses, norms = [], []
    for _ in fixture["losses"]:
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
        norms.append(metrics["gradient_norm"])
    compare.relative("losses", losses, fixture["losses"], 1e-4)
    compare.relative("gradient norms", norms, fixture["grad_norms"], 1e-3)
    final = convert.to_entries(state.variables)
    expected = dict(zip(fixture["names"].tolist(), fixture["param_norms"]))
    for name, value in final.items():
        compare.relative(name, np.linalg.norm(value), expected[name], 1e-3, floor=1e-6)
    return compare.worst()
