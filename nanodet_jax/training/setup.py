"""What happens once, before the first step of a run."""

import copy
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanodet_jax import config as configs
from nanodet_jax import visualize
from nanodet_jax.config import Config
from nanodet_jax.data.records import Source
from nanodet_jax.errors import UserError
from nanodet_jax.files import write_json
from nanodet_jax.io import checksums, torch_names
from nanodet_jax.io.checkpoint import CHECKPOINTS
from nanodet_jax.io.checkpoint_files import saved_steps
from nanodet_jax.io.weights import ABOUT, ABOUT_LIMIT, describe, load_description, load_entries
from nanodet_jax.models.guidance import copy_neck
from nanodet_jax.models.nanodet import NanoDet
from nanodet_jax.runtime import distributed
from nanodet_jax.state import TrainState, init_variables
from nanodet_jax.structures import Batch
from nanodet_jax.terminal import join_first

# What may differ between the processes of a run: their own place in it, and where files lie.
OWN_FIELDS = {
    "config.training.process",
    "config.training.init_weights",
    *(f"config.data.{name}" for name in (
        "train_images", "train_annotations", "val_images", "val_annotations", "root",
        "workers", "cache", "cache_gb",
    )),
}  # fmt: skip
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def resolve(config: Config, train: Source, val: Source) -> Config:
    """A copy of the config with what only the data can tell: the number of classes.

    Raises:
      UserError: if the config or the validation data disagree with the training data.
    """
    names = [category.name for category in train.categories]
    if [category.name for category in val.categories] != names:
        raise UserError("training and validation data have different classes, or in other order")
    if config.model.num_classes not in (0, len(names)):
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}: the data has {len(names)} "
            f"({join_first(names)}); leave it at 0"
        )
    resolved = copy.deepcopy(config)
    resolved.model.num_classes = len(names)
    return resolved


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is a run to go on with; its first weights then matter no more."""
    return bool(saved_steps(workdir / CHECKPOINTS))


def initial_entries(config: Config) -> dict[str, np.ndarray] | None:
    """Arrays of config.training.init_weights, by the original's names; None where it is not set.

    Raises:
      UserError: if the file cannot be read.
    """
    path = config.training.init_weights
    return load_entries(path) if path else None


def initial_variables(
    config: Config, model: NanoDet, entries: dict[str, np.ndarray] | None
) -> tuple[Any, str]:
    """Variables to start from, given `initial_entries`, and where they come from, in words.

    Raises:
      UserError: if nothing of config.training.init_weights fits.
    """
    path = config.training.init_weights
    variables = init_variables(model, config.training.seed)
    if entries is None:
        return variables, "starting from random weights"
    variables, report = torch_names.take_over(entries, variables, 4 * (config.model.reg_max + 1))
    if not report.kept:
        raise UserError(f"config.training.init_weights={path}: nothing in it fits this model")
    if not any(name.startswith("aux_") for name in report.kept):
        variables = copy_neck(variables)  # the guidance starts from the neck, as it does afresh
    return variables, f"starting from {path}: {report}"


def prepare_workdir(workdir: Path, config: Config, source: Source) -> None:
    """Write `config.json` and `about.json`, or check that those there describe this run.

    Of several processes the first writes; all see the same folder.

    Raises:
      UserError: if the folder cannot be made, or holds the run of another model or other classes.
    """
    names = tuple(category.name for category in source.categories)
    about = workdir / ABOUT
    described = _description(about)
    if described is not None:
        before, names_before = described
        for what, old, new in (
            ("classes", names_before, names),
            ("config.model", before.model, config.model),
            ("config.training.optimizer", before.training.optimizer, config.training.optimizer),
            ("clipping", before.training.clip_norm > 0, config.training.clip_norm > 0),
            ("averaging", before.training.ema_decay > 0, config.training.ema_decay > 0),
        ):
            if old != new:
                raise UserError(
                    f"{workdir} holds a run with {what} {old}, not {new}; "
                    "give another --workdir, or the same config to go on"
                )
    if not distributed.is_writer():
        return
    text = describe(config, names)
    if len(text) > ABOUT_LIMIT:
        raise UserError(
            f"{about}: {len(names)} class names take {len(text) / 1e6:.0f} MB; "
            f"{ABOUT_LIMIT / 1e6:.0f} MB can be read again: shorten them"
        )
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    write_json(workdir / "config.json", json.loads(configs.to_json(config)), indent=2)
    write_json(about, json.loads(text) | {"versions": versions}, indent=2)


def _description(about: Path) -> tuple[Config, tuple[str, ...]] | None:
    """The config and classes of the run in a workdir; None if it has none, or it is damaged.

    Damage does not stop a run: its checkpoints are whole or not, whatever this file says, and their
    arrays must fit the network.
    """
    if not about.exists():
        return None
    try:
        return load_description(about)
    except UserError as error:
        distributed.say(f"note: {error}; the file is written anew")
        return None


def agree(config: Config, train: Source, val: Source, state: TrainState) -> None:
    """Refuse to train together what is not the same in all processes.

    Raises:
      UserError: naming the field, the data or the state, in every process.
    """
    if distributed.share()[1] == 1:
        return
    facts = {name: value for name, value in _fields("config", config) if name not in OWN_FIELDS} | {
        "number of training images": len(train),
        "number of validation images": len(val),
        "list of classes": [category.name for category in train.categories],
        "step to start from": int(state.step),
        "set of weights to start from": checksums.of_tree(state),
    }
    distributed.must_agree(facts)


def _fields(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a config by their full names."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _fields(f"{name}.{field.name}", getattr(value, field.name))
    else:
        yield name, value


def draw_batch(batch: Batch, config: Config, source: Source, most: int = 16) -> np.ndarray:
    """A sheet of training images as the network gets them, with their boxes; uint8 BGR."""
    names = [category.name for category in source.categories]
    drawn = []
    for image, boxes, labels, valid in zip(batch.images[:most], *batch.ground_truth[:3]):
        pixels = image * np.asarray(config.data.std) + np.asarray(config.data.mean)
        shown = np.clip(pixels, 0, 255).astype(np.uint8)
        drawn.append(visualize.draw_ground_truth(shown, boxes[valid], labels[valid], names))
    return visualize.grid(drawn, columns=4, size=(320, 320))
