"""Workdir of a run: whether it contains a checkpoint, and the description that a run must match."""

import importlib.metadata
import json
from pathlib import Path

from nanodet_jax import config as configs
from nanodet_jax.config import Config
from nanodet_jax.data.records import Source
from nanodet_jax.errors import UserError
from nanodet_jax.files import write_json
from nanodet_jax.io.checkpoint import CHECKPOINTS
from nanodet_jax.io.checkpoint_files import saved_steps
from nanodet_jax.io.weights import ABOUT, ABOUT_LIMIT, describe, load_description
from nanodet_jax.runtime import distributed

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def has_checkpoint(workdir: Path) -> bool:
    """Return whether the workdir contains a run to resume, which needs no initial weights."""
    return bool(saved_steps(workdir / CHECKPOINTS))


def prepare_workdir(workdir: Path, config: Config, source: Source) -> None:
    """Write `config.json` and `about.json`, or check that existing ones describe the same run.

    Of several processes only the first one writes. All of them see the same folder.

    Raises:
      UserError: if the folder cannot be created, or contains a run with
        another model or other classes.
    """
    names = tuple(category.name for category in source.categories)
    about = workdir / ABOUT
    described = _description(about)
    if described is not None:
        saved, saved_names = described
        for what, old, new in (
            ("classes", saved_names, names),
            ("config.model", saved.model, config.model),
            ("config.training.optimizer", saved.training.optimizer, config.training.optimizer),
            ("clipping", saved.training.clip_norm > 0, config.training.clip_norm > 0),
            ("averaging", saved.training.ema_decay > 0, config.training.ema_decay > 0),
        ):
            if old != new:
                raise UserError(
                    f"{workdir} holds a run with {what} {old}, not {new}; "
                    "give another --workdir, or the config of that run to resume it"
                )
    if not distributed.is_writer():
        return
    text = describe(config, names)
    if len(text) > ABOUT_LIMIT:
        raise UserError(
            f"{about}: {len(names)} class names take {len(text) / 1e6:.0f} MB; the limit is "
            f"{ABOUT_LIMIT / 1e6:.0f} MB: shorten the names"
        )
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    write_json(workdir / "config.json", json.loads(configs.to_json(config)), indent=2)
    write_json(about, json.loads(text) | {"versions": versions}, indent=2)


def _description(about: Path) -> tuple[Config, tuple[str, ...]] | None:
    """Return the config and classes of the run in a workdir; None if absent or damaged.

    A damaged description does not stop a run. Checkpoints are verified by themselves, and their
    arrays must fit the network.
    """
    if not about.exists():
        return None
    try:
        return load_description(about)
    except UserError as error:
        distributed.say(f"note: {error}; the file is written anew")
        return None
