"""Checks of mmdetection's GFL: assignment, loss, detections, network and optimizer steps."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanodet_jax import boxes, config
from nanodet_jax.inference import postprocess
from nanodet_jax.io import torch_names
from nanodet_jax.losses.assigners.gfl import GFLAssigner
from nanodet_jax.losses.criterion import Criterion
from nanodet_jax.models.backbones.backbone import trained_parameters
from nanodet_jax.models.heads.nanodet_head import split_logits
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.runtime import backend
from nanodet_jax.state import abstract_variables, create_state
from nanodet_jax.structures import Batch, Predictions
from nanodet_jax.training.optimizer import make_optimizer
from nanodet_jax.training.parallel import make_train_step
from nanodet_jax.training.step import loss_and_gradients
from tests.losses.builders import ground_truth, stack
from tests.tools.parity_checks.assignment import batch_of
from tests.tools.parity_checks.comparison import (
    Comparisons,
    Expected,
    Worst,
    absolute,
    compare_network,
    jitter,
    of_scale,
    relative,
)
from tests.tools.parity_checks.networks import joined, load_formula, manifest_of, model_of

STRIDES, CLASSES = (8, 16, 32, 64, 128), 80
LOSSES = {"loss_cls": "loss_qfl", "loss_bbox": "loss_bbox", "loss_dfl": "loss_dfl"}


def part_of(fixture, name: str) -> dict[str, np.ndarray]:
    """Return the arrays whose keys begin with `name/`, by their keys without this prefix."""
    prefix = f"{name}/"
    return {k.removeprefix(prefix): v for k, v in fixture.items() if k.startswith(prefix)}


def assigner(ignore_threshold: float = 0.0, allowed_border: int = -1) -> GFLAssigner:
    return GFLAssigner(
        topk=9,
        anchor_scale=8.0,
        ignore_threshold=max(ignore_threshold, 0.0),
        allowed_border=allowed_border,
    )


@partial(jax.jit, static_argnames=("size", "ignore_threshold", "border"))
def run_assigner(truth, size, ignore_threshold, border):
    priors = boxes.make_priors(size, STRIDES, 0.0)
    count = len(priors.strides)
    unused = Predictions(jnp.zeros((count, 1)), jnp.zeros((count, 4, 17)))
    return assigner(ignore_threshold, border).assign(unused, truth, priors)


def check_assigner(path: Path) -> Worst:
    """Compare the box that each prior learns, and its overlap with it, in every case."""
    compare = Comparisons()
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    for k in range(int(fixture["cases"])):
        case = part_of(fixture, str(k))
        ignore = case.get("ignore_boxes", ())
        slots = max(len(case["gt_boxes"]) + len(ignore), 1)
        truth = ground_truth(case["gt_boxes"], ignore, case["gt_labels"], slots)
        if "pad_shape" in case:
            truth = truth._replace(padded_size=case["pad_shape"], image_size=case["img_shape"])
        targets = run_assigner(
            truth,
            tuple(int(side) for side in case["size"]),
            float(case.get("ignore_iof_thr", 0)),
            int(case.get("allowed_border", -1)),
        )
        compare.equal(f"case {k}: index", targets.gt_index, case["gt_index"])
        positive = case["gt_index"] >= 0
        overlap = absolute(case["overlap"][positive], 1e-5)
        compare.near(f"case {k}: overlap", np.asarray(targets.overlap)[positive], overlap)
    return compare.worst()


def head_checks(path: Path) -> Iterator[tuple[str, partial[Worst]]]:
    """Yield the name and the check of each case of the loss."""
    with np.load(path) as file:
        names = sorted({key.split("/")[0] for key in file if "/" in key})
    for name in names:
        yield name, partial(check_head, path, name)


def check_head(path: Path, name: str) -> Worst:
    """Compare the losses, the assigned labels and the gradients of one case."""
    compare = Comparisons()
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    own = part_of(fixture, name)
    truth_of = fixture | own
    count, size = 4, (320, 320)
    if name.endswith("_empty"):
        images = [((), (), ())] * count
    else:
        images = [
            (
                truth_of[f"gt_boxes_{i}"],
                truth_of.get(f"ignore_boxes_{i}", ()),
                truth_of[f"gt_labels_{i}"],
            )
            for i in range(count)
        ]
    slots = max(1, *(len(objects) + len(regions) for objects, regions, _ in images))
    truth = stack(ground_truth(*image, slots) for image in images)
    if "pad_shapes" in own:
        truth = truth._replace(padded_size=own["pad_shapes"])
    priors = boxes.make_priors(size, STRIDES, 0.0)
    policy = assigner(float(own.get("ignore_iof_thr", 0.0)))
    criterion = Criterion(priors, policy, config.Loss())
    random = np.random.RandomState(int(fixture["preds_seed"]))
    logits = random.randn(count, len(priors.strides), 148).astype(np.float32)
    logits[..., :CLASSES] = logits[..., :CLASSES] * 1.5 - 3

    def loss(logits):
        return criterion((split_logits(logits, CLASSES),), truth)

    (value, parts), gradient = backend.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    compare.near("loss", value, relative(own["loss"], 1e-5))
    for key, part in LOSSES.items():
        compare.near(key, parts[part], relative(own[key], 1e-5, floor=1e-6))
    targets = jax.vmap(lambda p, t: policy.assign(p, t, priors))(
        split_logits(logits, CLASSES), truth
    )
    index = np.asarray(targets.gt_index)
    labels = np.where(index >= 0, np.take_along_axis(truth.labels, np.maximum(index, 0), 1), index)
    compare.equal("labels", labels, own["labels"])
    gradient = np.asarray(gradient, np.float64)
    by_box = gradient[..., CLASSES:].reshape(count, -1, 4, 17)
    moment = by_box @ np.arange(17)
    compare.near("gradient", gradient.sum(-1), of_scale(own["grad"], 1e-4))
    compare.near("gradient norm", np.linalg.norm(gradient), relative(own["grad_norm"], 1e-4))
    compare.near("box moments", moment, of_scale(own["box_grad_moment"], 1e-4))
    norm = np.linalg.norm(by_box)
    compare.near("box gradient norm", norm, relative(own["box_grad_norm"], 1e-4, floor=1e-9))
    return compare.worst()


def check_postprocess(path: Path) -> Worst:
    """Compare every detection, in order."""
    compare = Comparisons()
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    for k in range(int(fixture["cases"])):
        case = part_of(fixture, str(k))
        priors = boxes.make_priors(tuple(map(int, case["size"])), STRIDES, 0.0)
        scale = case["scale_factor"] if case["rescale"] else np.ones(2)
        size = case["img_shape"] / scale[::-1]
        found = jax.jit(partial(postprocess.gfl_detections_of, priors=priors))(
            split_logits(case["preds"], CLASSES),
            inverse_warp=np.diag([*(1 / scale), 1]).astype(np.float32),
            size=size.astype(np.float32),
        )
        valid = np.asarray(found.valid)
        expected = case["detections"]
        compare.equal(f"case {k}: number", valid.sum(), len(expected))
        if valid.sum() == len(expected):
            compare.equal(f"case {k}: labels", np.asarray(found.labels)[valid], expected[:, 5])
            scores, corners = np.asarray(found.scores)[valid], np.asarray(found.boxes)[valid]
            compare.near(f"case {k}: scores", scores, absolute(expected[:, 4], 1e-5))
            compare.near(f"case {k}: boxes", corners, absolute(expected[:, :4], 1e-3))
    return compare.worst()


def load_network(path: Path):
    """Load a fixture of the network: its arrays, the formula, the model and the entries."""
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    formula, seed = load_formula(path.parent), int(fixture["seed"])
    entries = {
        name: fixture[f"bn/{name}"] if f"bn/{name}" in fixture
        else formula.weight(name, tuple(shape), seed=seed)
        for name, shape in manifest_of(path).items()
    }  # fmt: skip
    if "bn3_weight_factor" in fixture:
        factor = np.float32(fixture["bn3_weight_factor"])
        for name in entries:
            if name.endswith(".bn3.weight"):
                entries[name] = entries[name] * factor
    return fixture, formula, model_of(path), entries


def renamed(name: str) -> str:
    """Return the name that an entry of mmdetection would have in the original NanoDet."""
    return next(iter(torch_names.from_mmdetection({name: np.zeros(0), "bbox_head.": np.zeros(0)})))


def check_forward(path: Path) -> Worst:
    """Check predictions, loss and gradients: in float32, or in float64 if float32 is too coarse."""
    fixture, formula, settings, entries = load_network(path)
    double = "bn3_weight_factor" not in fixture
    if double:
        x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
        with x64(True), jax.numpy_dtype_promotion("standard"):
            return _check_forward(path, fixture, formula, settings, entries, np.float64)
    return _check_forward(path, fixture, formula, settings, entries, np.float32)


def _check_forward(path, fixture, formula, settings, entries, dtype) -> Worst:
    double = dtype == np.float64
    model = build_model(settings)
    entries = torch_names.from_mmdetection(entries)
    variables = torch_names.convert(entries, abstract_variables(model), path.name)
    size = (128, 192)
    images = formula.image((2, 3, *size), seed=int(fixture["seed"])).transpose(0, 2, 3, 1)
    batch = Batch(images.astype(dtype), batch_of(path, fixture, len(images)))
    criterion = Criterion(boxes.make_priors(size, STRIDES, 0.0), assigner(), config.Loss())

    @backend.jit
    def run(variables, batch):
        predictions, seen = model.apply(
            variables,
            batch.images,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name in ("backbone", "neck"),
        )
        results = loss_and_gradients(variables, batch, model=model, criterion=criterion)
        return predictions, seen["intermediates"], results

    def compute(seed):
        changed = jax.tree.map(lambda leaf: leaf.astype(dtype), jitter(variables, seed))
        predictions, seen, (metrics, gradients, stats) = run(changed, batch)
        numbers = {"predictions": joined(predictions), "loss": metrics["loss"]}
        numbers |= {key: metrics[part] for key, part in LOSSES.items()}
        for i, level in enumerate(seen["neck"]["__call__"][0]):
            numbers[f"neck {i}"] = np.asarray(level)[:1].transpose(0, 3, 1, 2)
        for i, level in enumerate(seen["backbone"]["__call__"][0]):
            numbers[f"backbone {i}"] = np.asarray(level)[:1].transpose(0, 3, 1, 2)
        for name, gradient in torch_names.to_entries({"params": gradients}).items():
            numbers[f"|d {name}|"] = np.linalg.norm(gradient)
        for name, value in torch_names.to_entries({"batch_stats": stats}).items():
            numbers[name] = np.abs(value - entries[name]).max()
        return numbers

    suffix, exact, rough = ("_float64", 1e-6, 1e-6) if double else ("", 1e-5, 1e-3)
    expected = {
        "predictions": of_scale(fixture[f"preds{suffix}"], exact),
        "loss": relative(fixture[f"loss{suffix}"], exact),
    }
    if not double:
        expected |= {key: relative(fixture[f"loss_state/{key}"], exact) for key in LOSSES}
        for i in range(5):
            expected[f"neck {i}"] = of_scale(fixture[f"fpn_{i}"], exact)
        for i in range(sum(key.startswith("backbone_") for key in fixture)):
            expected[f"backbone {i}"] = of_scale(fixture[f"backbone_{i}"], exact)
    norms = fixture[f"grad_norms{suffix}"]
    for name, norm, learns in zip(fixture["grad_names"].tolist(), norms, fixture["trainable"]):
        wanted = relative(norm, rough)._replace(kind="gradient norms") if learns else absolute(0, 0)
        expected[f"|d {renamed(name)}|"] = wanted
    for name in fixture["bn_names"].tolist():  # the stored statistics do not change
        for leaf in ("running_mean", "running_var"):
            expected[f"{name.rsplit('.', 1)[0]}.{leaf}"] = absolute(0, 0)
    return compare_network(compute, expected)


def check_trajectory(path: Path) -> Worst:
    """Check the losses of consecutive optimizer steps on one batch, and the gradient norms.

    Also check the parameters after three steps.
    """
    fixture, formula, settings, entries = load_network(path)
    for name, entry in entries.items():
        if name.startswith(("bbox_head.gfl_cls.", "bbox_head.gfl_reg.")):
            shift = 4.595 if name == "bbox_head.gfl_cls.bias" else 0
            entries[name] = entry * np.float32(0.1) - np.float32(shift)
        elif name.startswith("bbox_head.scales."):
            entries[name] = np.ones_like(entry)
    model, size = build_model(settings), (160, 160)
    variables = torch_names.convert(
        torch_names.from_mmdetection(entries), abstract_variables(model), path.name
    )
    images = formula.image((2, 3, *size), seed=int(fixture["seed"])).transpose(0, 2, 3, 1)
    batch = Batch(jnp.asarray(images), batch_of(path, fixture, len(images)))
    training = config.Training(
        optimizer="sgd", learning_rate=float(fixture["lr"]), weight_decay=1e-4, momentum=0.9
    )
    schedule = optax.constant_schedule(training.learning_rate)
    optimizer = make_optimizer(training, schedule, trained=trained_parameters(settings))
    step = make_train_step(
        model=model,
        criterion=Criterion(boxes.make_priors(size, STRIDES, 0.0), assigner(), config.Loss()),
        optimizer=optimizer,
        schedule=schedule,
    )

    def compute(seed):
        state, numbers = create_state(jitter(variables, seed), optimizer), {}
        for i in range(len(fixture["losses"])):
            if i == 3:
                end = jax.tree.map(np.asarray, state.variables)
            state, metrics = step(state, batch)
            numbers[f"loss {i}"] = metrics["loss"]
            numbers[f"gradient norm {i}"] = metrics["gradient_norm"]
        for name, value in torch_names.to_entries(end).items():
            numbers[name] = np.linalg.norm(value)
        return numbers

    expected: dict[str, Expected] = {}
    for i, loss in enumerate(fixture["losses"]):
        expected[f"loss {i}"] = relative(loss, 1e-4)
    for i, norm in enumerate(fixture["grad_norms"]):
        expected[f"gradient norm {i}"] = relative(norm, 1e-3)
    for name, norm in zip(fixture["names"].tolist(), fixture["param_norms"]):
        expected[renamed(name)] = relative(norm, 1e-4, floor=1e-6)
    return compare_network(compute, expected)


def checks(path: Path) -> Iterator[tuple[str, partial[Worst]]]:
    """Yield the name and the check of each part of a file."""
    if path.stem == "head_loss_gfl":
        yield from ((f"{path.stem}/{name}", check) for name, check in head_checks(path))
        return
    function = {
        "assign": check_assigner,
        "postprocess": check_postprocess,
        "forward": check_forward,
        "trajectory": check_trajectory,
    }[path.stem.split("_")[0]]
    yield path.stem, partial(function, path)
