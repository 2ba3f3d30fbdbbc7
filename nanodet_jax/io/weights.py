"""Weights from wherever they lie: the original's files, this project's, or a run's workdir."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanodet_jax import config as configs
from nanodet_jax.coco_classes import COCO_CLASSES
from nanodet_jax.config import Config
from nanodet_jax.data.json_text import loads_unique
from nanodet_jax.data.records import is_name
from nanodet_jax.errors import UserError
from nanodet_jax.files import atomic_write, read_regular
from nanodet_jax.io import torch_names
from nanodet_jax.io.checkpoint import CHECKPOINTS, Checkpoints
from nanodet_jax.io.npz import read_npz
from nanodet_jax.io.torch_archive import read_state_dict
from nanodet_jax.models.guidance import deployed
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables
from nanodet_jax.terminal import printable

ABOUT = "about.json"  # in a .npz and beside checkpoints: the config and the classes
ABOUT_LIMIT = 4 << 20  # bytes of it; 20 thousand of the longest class names
# Weights come from strangers, and so does their input size, which memory grows with: 2048 x 2048
# takes up to 2 GB to predict. Only the caller raises this.
MAX_INPUT_SIDE = 2048  # pixels
BYTES_PER_PIXEL = 512  # of the largest input; networks of 80 classes take some 130
PYTORCH_SUFFIXES = (".pth", ".pt", ".ckpt")


class Weights(NamedTuple):
    """Variables and what is needed to use them."""

    variables: Any
    config: Config  # its model, input size and normalisation are those of the training
    class_names: tuple[str, ...]  # empty where the file does not tell


def load_weights(path: str | Path, max_input_side: float | None = MAX_INPUT_SIDE) -> Weights:
    """Weights of a `.pth`, `.pt` or `.ckpt` of the original, a `.npz` of ours, or a workdir.

    They are those of the deployed network, without what served only its training. A workdir
    yields its best checkpoint, or its newest if none was evaluated. Files of the original do not
    name their classes nor their input: 80 classes are taken for COCO's, and the input for 320 x
    320, with the image's proportions kept for NanoDet and not for NanoDet-Plus.

    Args:
      path: the file or workdir.
      max_input_side: the largest height or width of input that the weights may ask for, and by
        its square a bound on the memory of the features; None if their input size is not used.

    Raises:
      UserError: if there is nothing there, or not what it should be.
    """
    loaded = _load(_existing(path))
    if max_input_side is not None:
        _check_input(loaded.config, max_input_side, str(path))
    return loaded


def _existing(path: str | Path) -> Path:
    try:
        path = Path(path).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # a name that is too long, an unknown user's home
        raise UserError(f"{path}: cannot be read: {error}") from error
    raise UserError(f"{path}: no such weights; give a .pth, .ckpt or .npz file, or a workdir")


def _load(path: Path) -> Weights:
    if path.is_dir():
        loaded = _load_workdir(path)
        return loaded._replace(variables=deployed(loaded.variables))
    if path.suffix == ".npz":
        return _load_npz(path)
    if path.suffix not in PYTORCH_SUFFIXES:
        raise UserError(f"{path}: weights are .pth, .pt, .ckpt or .npz files, or a workdir")
    entries = read_state_dict(path)
    config = Config(model=torch_names.infer_model(entries, str(path)))
    try:
        configs.check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    config.data.keep_ratio = config.model.neck == "pan"
    variables = torch_names.convert(entries, _abstract(config), str(path))
    known = config.model.num_classes == len(COCO_CLASSES)
    return Weights(variables, config, COCO_CLASSES if known else ())


def _check_input(config: Config, max_side: float, where: str) -> None:
    """Refuse weights whose input, or whose features on it, take more memory than expected."""
    height, width = config.input_size
    raised = "if you trust the weights, raise max_input_side (predict: --max-input-side)"
    if max(height, width) > max_side:
        size = f"config.input_size={height},{width}"
        raise UserError(f"{where}: {size} is over {max_side:g} a side; {raised}")
    needed = feature_bytes(config)
    if needed > BYTES_PER_PIXEL * max_side**2:
        what = f"config.model takes about {needed / 1e9:.1f} GB for an image of {width}x{height}"
        raise UserError(f"{where}: {what}, too much for inputs of {max_side:g} a side; {raised}")


def feature_bytes(config: Config) -> int:
    """About how many bytes the features of one image of full size take, float32."""
    model, (height, width) = config.model, config.input_size
    image_and_stem = 18 * height * width  # numbers; 24 channels at half the resolution, three times
    per_prior = 3 * (model.num_classes + 4 * (model.reg_max + 1)) + 4 * model.channels
    return 4 * (image_and_stem + configs.num_priors(config) * per_prior)


def load_entries(path: str | Path) -> dict[str, np.ndarray]:
    """What a file or workdir holds, by the original's names and in its layout, for fine-tuning.

    Raises:
      UserError: as `load_weights`; but entries of any model are taken.
    """
    path = _existing(path)
    if path.suffix in PYTORCH_SUFFIXES and not path.is_dir():
        return read_state_dict(path)
    loaded = _load_workdir(path) if path.is_dir() else _load(path)
    return torch_names.to_entries(loaded.variables)


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
    arrays = {
        name: np.asarray(leaf) for name, leaf in torch_names.flatten(weights.variables).items()
    }
    with atomic_write(path) as file:
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
        about = loads_unique(text)
        names, values = about["class_names"], about["config"]
        config = configs.from_json(json.dumps(values))
        configs.check(config)
    except UserError as error:
        raise UserError(f"{where}: {printable(str(error), 400)}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: does not describe weights ({ascii(error)[:400]})") from error
    if not isinstance(names, list) or not all(map(is_name, names)):
        raise UserError(f"{where}: class_names must be a list of names of 1 to 200 characters")
    count = config.model.num_classes
    if count == 0:
        raise UserError(f"{where}: config.model.num_classes=0: weights have at least one class")
    if len(names) not in (0, count):
        raise UserError(f"{where}: names {len(names)} classes, for a network of {count}")
    return config, tuple(names)


def load_description(path: Path) -> tuple[Config, tuple[str, ...]]:
    """Config and class names from a file `about.json`.

    Raises:
      UserError: naming the file, if it cannot be read, is too large, or does not describe weights.
    """
    try:
        text = read_regular(path, ABOUT_LIMIT, ABOUT).decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # also bytes that are no UTF-8
        raise UserError(f"{path}: {ascii(str(error))[1:-1][:200]}") from error
    return read_description(text, str(path))


def _load_npz(path: Path) -> Weights:
    arrays = read_npz(path)
    if ABOUT not in arrays:
        raise UserError(f"{path}: has no {ABOUT}: not written by this project")
    about = arrays.pop(ABOUT)
    if about.nbytes > ABOUT_LIMIT:
        raise UserError(f"{path}: {ABOUT} has {about.nbytes} bytes; {ABOUT_LIMIT} are the most")
    config, names = read_description(about.tobytes().decode(errors="replace"), str(path))
    expected = torch_names.flatten(_abstract(config))
    wrong = sorted(set(expected) ^ set(arrays)) or [
        name
        for name, leaf in expected.items()
        if (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if wrong:
        name = ascii(wrong[0][:100])
        raise UserError(f"{path}: array {name} is missing, left over or of another shape or type")
    return Weights(torch_names.unflatten(arrays), config, names)


def _load_workdir(path: Path) -> Weights:
    about = path / ABOUT
    if not about.exists():
        raise UserError(f"{path}: no workdir of a run (it has no {ABOUT})")
    config, names = load_description(about)
    if not (path / CHECKPOINTS).is_dir():
        raise UserError(f"{path}: has no checkpoint yet")
    with closing(Checkpoints(path, writing=False)) as checkpoints:
        variables = checkpoints.restore_best_variables(_abstract(config, guided=True))
    if variables is None:
        raise UserError(f"{path}: has no checkpoint yet")
    return Weights(variables, config, names)


def _abstract(config: Config, guided: bool = False) -> Any:
    return abstract_variables(build_model(config.model), guided)
