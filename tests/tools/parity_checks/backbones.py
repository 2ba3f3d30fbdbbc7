"""Checks of backbones and of FPN without the rest of the network."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nanodet_jax import config
from nanodet_jax.io import torch_names
from nanodet_jax.models.backbones.backbone import Backbone
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.necks.fpn import NanoDetFPN
from nanodet_jax.runtime import backend
from nanodet_jax.state import SMALLEST_INPUT
from tests.tools.parity_checks.comparison import Worst, compare_network, jitter, of_scale, relative
from tests.tools.parity_checks.networks import load_formula, manifest_of

MODELS = {
    "forward_resnet18": config.Model(backbone="resnet18", backbone_strides=(4, 8, 16, 32)),
    "forward_mobilenet_v2": config.Model(backbone="mobilenet_v2", backbone_activation="relu6"),
    "forward_ghostnet": config.Model(backbone="ghostnet"),
}


def backbone_check(path: Path) -> Callable[[], Worst] | None:
    """Return the check of a backbone's forward_<name>.npz, or None for any other file."""
    return partial(check_backbone, path) if path.stem in MODELS else None


def check_backbone(path: Path) -> Worst:
    """Check the features of a backbone, its running statistics and its gradients."""
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    formula, seed = load_formula(path.parent), int(fixture["seed"])
    entries = {
        name: fixture.get(f"bn/{name}") if f"bn/{name}" in fixture
        else formula.weight(name, tuple(shape), seed=seed)
        for name, shape in manifest_of(path).items()
    }  # fmt: skip
    model = MODELS[path.stem]
    images = formula.image((2, 3, 128, 192), seed=seed).transpose(0, 2, 3, 1)

    def build(train: bool) -> Backbone:
        return Backbone(model, partial(BatchNorm, use_running_average=not train), train)

    like = jax.eval_shape(build(False).init, jax.random.key(0), SMALLEST_INPUT)
    wrapped = {collection: {"backbone": tree} for collection, tree in like.items()}
    variables = torch_names.convert(entries, wrapped, path.name)
    count = sum(key.startswith("backbone_") for key in fixture)
    weights = [
        jnp.asarray(formula.image(shape, seed=seed + 5 + i).transpose(0, 2, 3, 1))
        for i, shape in enumerate(
            (2, *fixture[f"backbone_{i}"].shape[1:]) for i in range(count)
        )
    ]  # fmt: skip

    @backend.jit
    def run(variables):
        inner = {collection: tree["backbone"] for collection, tree in variables.items()}
        features = build(False).apply(inner, images)

        def loss(params):
            outputs, updated = build(True).apply(
                {**inner, "params": params}, images, mutable=["batch_stats"]
            )
            total = sum(jnp.mean(output * weight) for output, weight in zip(outputs, weights))
            return total, (outputs, updated["batch_stats"])

        gradients, (outputs, stats) = jax.grad(loss, has_aux=True)(inner["params"])
        return features, outputs, gradients, stats

    def compute(seed):
        features, outputs, gradients, stats = run(jitter(variables, seed))
        numbers = {f"features {i}": x[:1].transpose(0, 3, 1, 2) for i, x in enumerate(features)}
        numbers |= {f"train norm {i}": np.linalg.norm(x) for i, x in enumerate(outputs)}
        for kind, tree in (("params", gradients), ("batch_stats", stats)):
            for name, value in torch_names.to_entries({kind: {"backbone": tree}}).items():
                total = np.linalg.norm(value) if kind == "params" else np.sum(value, dtype=float)
                numbers[f"|d {name}|" if kind == "params" else name] = total
        return numbers

    expected = {
        f"features {i}": of_scale(fixture[f"backbone_{i}"], 1e-5) for i in range(count)
    }  # fmt: skip
    for i in range(count):
        expected[f"train norm {i}"] = relative(fixture[f"train_norm_{i}"], 1e-5)
    for kind in ("mean", "var"):
        for name, value in zip(fixture["bn_names"].tolist(), fixture[f"bn_running_{kind}_sum"]):
            entry = f"{name.rsplit('.', 1)[0]}.running_{kind}"
            expected[entry] = relative(value, 1e-5, floor=1.0)
    norms = dict(
        zip(fixture.get("grad_names", np.array([])).tolist(), fixture.get("grad_norms", ()))
    )
    for name, norm in norms.items():
        expected[f"|d {name}|"] = relative(norm, 1e-3, floor=1e-6 * max(norms.values()))._replace(
            kind="gradient norms"
        )
    return compare_network(compute, expected)


def check_fpn(path: Path) -> Worst:
    """Check the levels of the original's FPN, and the gradients of its parameters and inputs."""
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    formula, seed = load_formula(path.parent), int(fixture["seed"])
    shapes = manifest_of(path)
    entries = {
        name: formula.weight(name, tuple(shape), seed=seed) for name, shape in shapes.items()
    }
    inputs = [
        jnp.asarray(
            formula.image((2, int(channels), *map(int, size)), seed=seed + 20 + i).transpose(
                0, 2, 3, 1
            )
        )
        for i, (channels, size) in enumerate(zip(fixture["in_channels"], fixture["sizes"]))
    ]
    neck = NanoDetFPN(fixture["fpn_0"].shape[1])
    like = jax.eval_shape(neck.init, jax.random.key(0), inputs)
    variables = torch_names.convert(entries, {"params": {"neck": like["params"]}}, path.name)
    weights = [
        jnp.asarray(
            formula.image((2, *fixture[f"fpn_{i}"].shape[1:]), seed=seed + 40 + i).transpose(
                0, 2, 3, 1
            )
        )
        for i in range(len(inputs))
    ]

    @backend.jit
    def run(params, inputs):
        def loss(params, inputs):
            levels = neck.apply({"params": params}, inputs)
            return sum(jnp.mean(x * weight) for x, weight in zip(levels, weights)), levels

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)

    def compute(seed):
        params = jitter(variables["params"]["neck"], seed)
        (gradients, of_inputs), levels = run(params, inputs)
        numbers = {f"level {i}": x[:1].transpose(0, 3, 1, 2) for i, x in enumerate(levels)}
        for name, value in torch_names.to_entries({"params": {"neck": gradients}}).items():
            numbers[f"|d {name}|"] = np.linalg.norm(value)
        for i, value in enumerate(of_inputs):
            numbers[f"|d input {i}|"] = np.linalg.norm(value)
        return numbers

    expected = {f"level {i}": of_scale(fixture[f"fpn_{i}"], 1e-5) for i in range(len(inputs))}
    for name, norm in zip(fixture["grad_names"].tolist(), fixture["grad_norms"]):
        expected[f"|d {name}|"] = relative(norm, 1e-3)
    for i in range(len(inputs)):
        expected[f"|d input {i}|"] = relative(fixture[f"input_grad_norm_{i}"], 1e-3)
    return compare_network(compute, expected)
