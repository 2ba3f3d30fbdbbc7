"""Checks of whole networks: features, predictions, loss, gradients, optimizer steps."""

import importlib.util
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

from nanodet_jax import config
from nanodet_jax.io import torch_names
from nanodet_jax.io.infer_model import infer_model
from nanodet_jax.losses.criterion import Criterion, build_assigner
from nanodet_jax.models.nanodet import build_model, priors_of
from nanodet_jax.runtime import backend
from nanodet_jax.state import abstract_variables, create_state
from nanodet_jax.structures import Batch
from nanodet_jax.training.optimizer import make_optimizer
from nanodet_jax.training.parallel import make_train_step
from nanodet_jax.training.step import loss_and_gradients
from tests.tools.parity_checks.assignment import batch_of
from tests.tools.parity_checks.comparison import (
    Expected,
    Worst,
    compare_network,
    jitter,
    of_scale,
    relative,
)

EMA_DECAY = 0.9998


def criterion_of(model: config.Model, size: tuple[int, int]) -> Criterion:
    """The original's assigner and losses for a model and inputs of (height, width)."""
    assigner = config.Assigner(ignore_threshold=0.0)
    if model.neck == "ghost_pan":
        assigner = config.Assigner("dynamic_soft_label", topk=13, ignore_threshold=0.0)
    elif model.neck == "fpn":
        assigner = config.Assigner("gfl", anchor_scale=8.0, ignore_threshold=0.0)
    elif model.backbone in ("custom_csp", "repvgg_a0"):
        assigner.anchor_scale = 8.0
    policy = build_assigner(assigner, config.Compat())
    return Criterion(priors_of(model, size), policy, config.Loss())


def load_formula(folder: Path):
    """Import the module that rebuilds weights and inputs; each folder of fixtures has one."""
    spec = importlib.util.spec_from_file_location("formula", folder / "formula.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest_of(path: Path) -> dict[str, list[int]]:
    """Return names and shapes of the state_dict of a fixture."""
    manifest = json.loads((path.parent / "manifest.json").read_text())
    return manifest.get(path.stem) or manifest.get(path.stem.split("_", 1)[1], {})


def model_of(path: Path) -> config.Model | None:
    """Return the model of a fixture, or None if the fixture is not of a whole detector."""
    entries = {name: np.empty(shape) for name, shape in manifest_of(path).items()}
    if not any(name.startswith(("head.", "bbox_head.")) for name in entries):
        return None
    return infer_model(torch_names.from_mmdetection(entries), path.name)


def forward_check(path: Path) -> Callable[[], Worst] | None:
    """Return the check of a forward_<model>.npz, or None if it is not of a whole detector."""
    return partial(check_forward, path) if model_of(path) else None


def trajectory_check(path: Path) -> Callable[[], Worst] | None:
    """Return the check of a trajectory_<model>.npz, or None if it is not of a whole detector."""
    return partial(check_trajectory, path) if model_of(path) else None


def _seeded(function, fixture, *args):
    return function(*args, seed=int(fixture["seed"])) if "seed" in fixture else function(*args)


def load_case(path: Path):
    """Load a fixture: its arrays, the formula, the model and the entries of the weights.

    Entries are computed by the formula; batch statistics are read from the file if it has them.
    """
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    formula = load_formula(path.parent)
    entries = {
        name: fixture[f"bn/{name}"]
        if f"bn/{name}" in fixture
        else _seeded(formula.weight, fixture, name, tuple(shape))
        for name, shape in manifest_of(path).items()
    }
    return fixture, formula, model_of(path), entries


def joined(predictions) -> np.ndarray:
    """Concatenate predictions in the layout of the original: classes, then boxes."""
    bins = predictions.box_logits
    flat = bins.reshape(*bins.shape[:2], -1)
    return np.concatenate([predictions.class_logits, flat], axis=-1)


def check_forward(path: Path) -> Worst:
    """Check an evaluation pass and, if recorded, a training pass with its gradients."""
    fixture, formula, model_config, entries = load_case(path)
    model = build_model(model_config)
    variables = torch_names.convert(entries, abstract_variables(model, guided=True), path.name)
    size = (320, 320) if model_config.neck == "tan" else (128, 192)
    images = _seeded(formula.image, fixture, (2, 3, *size)).transpose(0, 2, 3, 1)
    train = "loss" in fixture
    batch = Batch(images, batch_of(path, fixture, len(images)) if train else None)
    criterion = criterion_of(model_config, images.shape[1:3])

    @backend.jit
    def run(variables, batch):
        predictions, seen = model.apply(
            variables,
            batch.images,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name in ("backbone", "neck"),
        )
        if not train:
            return predictions, seen, None, None
        in_training, _ = model.apply(variables, batch.images, train=True, mutable=["batch_stats"])
        results = loss_and_gradients(variables, batch, model=model, criterion=criterion)
        return predictions, seen, in_training, results

    def compute(seed):
        predictions, seen, in_training, results = run(jitter(variables, seed), batch)
        numbers = {"predictions": joined(predictions)}
        for part in ("backbone", "neck"):
            for i, features in enumerate(seen["intermediates"][part]["__call__"][0]):
                numbers[f"{part} {i}"] = np.asarray(features)[:1].transpose(0, 3, 1, 2)
        if train:
            numbers["training predictions"] = joined(in_training)
            numbers |= training_numbers(*results)
        return numbers

    expected = {"predictions": of_scale(fixture["preds"], 1e-5)}
    for part, key in (("backbone", "backbone"), ("neck", "fpn")):
        count = sum(name.startswith(f"{key}_") for name in fixture)
        for i in range(count):
            expected[f"{part} {i}"] = of_scale(fixture[f"{key}_{i}"], 1e-5)
    if train:
        expected["training predictions"] = of_scale(fixture["train_preds"], 1e-5)
        expected |= training_expectations(fixture)
    return compare_network(compute, expected)


def training_numbers(metrics, gradients, batch_stats) -> dict[str, np.ndarray]:
    """Return losses, gradient norms and sums of running statistics, by the original's names."""
    numbers = {name: value for name, value in metrics.items() if "loss" in name}
    for name, gradient in torch_names.to_entries({"params": gradients}).items():
        numbers[f"|d {name}|"] = np.linalg.norm(gradient)
    for name, stats in torch_names.to_entries({"batch_stats": batch_stats}).items():
        numbers[name] = np.sum(stats, dtype=np.float64)
    return numbers


def training_expectations(fixture) -> dict[str, Expected]:
    """Return the recorded numbers of a training pass."""
    expected = {"loss": relative(fixture["loss"], 1e-5)}
    for key, value in fixture.items():
        if key.startswith("loss_state/"):
            expected[key.removeprefix("loss_state/")] = relative(value, 1e-5)
    norms = dict(zip(fixture["grad_names"].tolist(), fixture["grad_norms"]))
    largest = max(norms.values())
    for name, norm in norms.items():
        if re.fullmatch(torch_names.UNUSED_IF_SHARED, name) and norm == 0:
            continue
        # A bias before a batch norm has gradient zero. The recorded value is noise of about 1e-8 of
        # the largest norm, and this project's must be as small.
        noise = norm < 1e-6 * largest
        value = Expected(norm, 1e-6, largest) if noise else relative(norm, 1e-3)
        expected[f"|d {name}|"] = value._replace(kind="" if noise else "gradient norms")
    for kind in ("mean", "var"):
        sums = fixture[f"bn_running_{kind}_sum"]
        for name, value in zip(fixture["bn_names"].tolist(), sums):
            entry = f"{name.rsplit('.', 1)[0]}.running_{kind}"
            # Means of a layer, of size 0.1 to 1, may cancel in the sum.
            expected[entry] = relative(value, 1e-5, floor=1.0)
    return expected


def check_trajectory(path: Path) -> Worst:
    """Check six optimizer steps on one batch."""
    fixture, formula, model_config, entries = load_case(path)
    for name, entry in entries.items():
        if name.endswith("running_mean"):
            entries[name] = np.zeros_like(entry)
        elif name.endswith("running_var"):
            entries[name] = np.ones_like(entry)
        elif re.match(r"(aux_)?head\.gfl_(cls|reg)\.", name):
            shift = np.float32(4.595 if name.endswith("bias") else 0)
            entries[name] = entry * np.float32(0.1) - shift
    model = build_model(model_config)
    variables = torch_names.convert(entries, abstract_variables(model, guided=True), path.name)
    images = _seeded(formula.image, fixture, (2, 3, 160, 160)).transpose(0, 2, 3, 1)
    batch = Batch(jnp.asarray(images), batch_of(path, fixture, len(images)))
    training = recorded_training(fixture)
    schedule = optax.constant_schedule(training.learning_rate)
    optimizer = make_optimizer(training, schedule)
    averaged = "ema_norms" in fixture
    steps = len(fixture["losses"])
    step = make_train_step(
        model=model,
        criterion=criterion_of(model_config, (160, 160)),
        optimizer=optimizer,
        schedule=schedule,
        ema_decay=EMA_DECAY,
        detach_step=steps,
    )

    def compute(seed):
        state = create_state(jitter(variables, seed), optimizer, averaged)
        numbers = {}
        for i in range(steps):
            state, metrics = step(state, batch)
            numbers[f"loss {i}"] = metrics["loss"]
            numbers[f"gradient norm {i}"] = metrics["gradient_norm"]
        for name, value in torch_names.to_entries(state.variables).items():
            numbers[name] = np.linalg.norm(value)
        if averaged:
            for name, value in torch_names.to_entries(state.ema).items():
                numbers[f"average {name}"] = np.linalg.norm(value)
        return numbers

    expected = {}
    for i, (loss, norm) in enumerate(zip(fixture["losses"], fixture["grad_norms"])):
        expected[f"loss {i}"] = relative(loss, 1e-3 if averaged else 1e-4)
        expected[f"gradient norm {i}"] = relative(norm, 1e-3)
    for prefix, key in (("", "param_norms"), ("average ", "ema_norms")):
        for name, norm in zip(fixture["names"].tolist(), fixture.get(key, ())):
            if not re.fullmatch(f"{torch_names.UNUSED}|{torch_names.UNUSED_IF_SHARED}", name):
                expected[prefix + name] = relative(norm, 1e-3, floor=1e-6)
    return compare_network(compute, expected)


def recorded_training(fixture) -> config.Training:
    """Parse the description of the optimizer of a trajectory."""
    words = str(fixture["optimizer"]).split()
    numbers = dict(word.split("=") for word in words if "=" in word)
    return config.Training(
        optimizer=words[0],
        learning_rate=float(fixture["lr"]),
        weight_decay=float(numbers["wd"]),
        momentum=float(numbers.get("momentum", 0.9)),
        clip_norm=float(numbers.get("clip", 0.0)),
    )
