"""Weights from wherever they lie: the original's files, this project's, or a run's workdir."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanodet_jax import config as configs
from nanodet_jax import convert
from nanodet_jax.checkpoint import CHECKPOINTS, Checkpoints
from nanodet_jax.coco_classes import COCO_CLASSES
from nanodet_jax.config import Config
from nanodet_jax.errors import UserError
from nanodet_jax.files import replacing
from nanodet_jax.models.detector import build_model
from nanodet_jax.models.guidance import deployed
from nanodet_jax.npz_file import read_npz
from nanodet_jax.pytorch_file import read_state_dict
from nanodet_jax.state import abstract_variables

ABOUT = "about.json"  # in a .npz and beside checkpoints: the config and the classes
PYTORCH_SUFFIXES = (".pth", ".pt", ".ckpt")


class Weights(NamedTuple):
    """Variables and what is needed to use them."""

    variables: Any
    config: Config  # its model, input size and normalisation are those of the training
    class_names: tuple[str, ...]  # empty where the file does not tell


def load_weights(path: str | Path) -> Weights:
    """Weights of a `.pth`, `.pt` or `.ckpt` of the original, a `.npz` of ours, or a workdir.

    They are those of the deployed network, without what served only its training. A workdir
    yields its best checkpoint, or its newest if none was evaluated. Files of the original do not
    name their classes nor their input: 80 classes are taken for COCO's, and the input for 320 x
    320, with the image's proportions kept for NanoDet and not for NanoDet-Plus.

    Raises:
      UserError: if there is nothing there, or not what it should be.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path}: no such weights; give a .pth, .ckpt or .npz file, or a workdir")
    if path.is_dir():
        loaded = _load_workdir(path)
        return loaded._replace(variables=deployed(loaded.variables))
    if path.suffix == ".npz":
        return _load_npz(path)
    if path.suffix not in PYTORCH_SUFFIXES:
        raise UserError(f"{path}: weights are .pth, .pt, .ckpt or .npz files, or a workdir")
    entries = read_state_dict(path)
    config = Config(model=convert.infer_model(entries, str(path)))
    try:
        configs.check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    config.data.keep_ratio = config.model.neck == "pan"
    variables = convert.convert(entries, _abstract(config), str(path))
    known = config.model.num_classes == len(COCO_CLASSES)
    return Weights(variables, config, COCO_CLASSES if known else ())


def load_entries(path: str | Path) -> dict[str, np.ndarray]:
    """What a file or workdir holds, by the original's names and in its layout, for fine-tuning.

    Raises:
      UserError: as `load_weights`; but entries of any model are taken.
    """
    path = Path(path).expanduser()
    if path.suffix in PYTORCH_SUFFIXES and path.is_file():
        return read_state_dict(path)
    loaded = _load_workdir(path) if path.is_dir() else load_weights(path)
    return convert.to_entries(loaded.variables)


def class_names_of(weights: Weights) -> tuple[str, ...]:
    """The weights' class names, or numbers in their place."""
    numbers = (f"class {i}" for i in range(weights.config.model.num_classes))
    return weights.class_names or tuple(numbers)


def save_weights(path: str | Path, weights: Weights) -> None:
    """Write a `.npz`: an array per variable, by path, and `about.json`. Whole or not at all.

    Raises:
      UserError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path}: this project's weights are .npz files")
    about = np.frombuffer(describe(weights.config, weights.class_names).encode(), np.uint8)
    arrays = {name: np.asarray(leaf) for name, leaf in convert.flatten(weights.variables).items()}
    with replacing(path) as file:
        np.savez(file, **{ABOUT: about}, **arrays)  # type: ignore[arg-type]


def describe(config: Config, class_names: tuple[str, ...]) -> str:
    """The text of `about.json`."""
    return json.dumps(
        {"config": json.loads(configs.to_json(config)), "class_names": class_names}, indent=2
    )


def read_description(text: str, where: str) -> tuple[Config, tuple[str, ...]]:
    """Config and class names from the text of `about.json`.

    Raises:
      UserError: naming `where` if it is not such a text.
    """
    try:
        about = json.loads(text)
        names = tuple(str(name) for name in about["class_names"])
        config = configs.from_json(json.dumps(about["config"]))
        configs.check(config)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: does not describe weights ({ascii(error)[:200]})") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return config, names


def _load_npz(path: Path) -> Weights:
    arrays = read_npz(path)
    if ABOUT not in arrays:
        raise UserError(f"{path}: has no {ABOUT}: not written by this project")
    text = arrays.pop(ABOUT).tobytes().decode(errors="replace")
    config, names = read_description(text, str(path))
    expected = convert.flatten(_abstract(config))
    wrong = sorted(set(expected) ^ set(arrays)) or [
        name
        for name, leaf in expected.items()
        if (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if wrong:
        name = ascii(wrong[0][:100])
        raise UserError(f"{path}: array {name} is missing, left over or of another shape or type")
    if len(names) not in (0, config.model.num_classes):
        counts = f"{len(names)} classes, for a network of {config.model.num_classes}"
        raise UserError(f"{path}: names {counts}")
    return Weights(convert.unflatten(arrays), config, names)


def _load_workdir(path: Path) -> Weights:
    about = path / ABOUT
    if not about.is_file():
        raise UserError(f"{path}: no workdir of a run (it has no {ABOUT})")
    config, names = read_description(about.read_text(), str(about))
    if not (path / CHECKPOINTS).is_dir():
        raise UserError(f"{path}: has no checkpoint yet")
    with closing(Checkpoints(path, writing=False)) as checkpoints:
        variables = checkpoints.restore_best_variables(_abstract(config, guided=True))
    if variables is None:
        raise UserError(f"{path}: has no checkpoint yet")
    return Weights(variables, config, names)


def _abstract(config: Config, guided: bool = False) -> Any:
    return abstract_variables(build_model(config.model), guided)


def load_description(path: Path) -> tuple[Config, tuple[str, ...]]:
    try:
        return read_description(path.read_text(), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
