"""Loading weights: files of the original or of this project, workdirs, and published weights."""

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
from nanodet_jax.errors import UserError, did_you_mean
from nanodet_jax.files import atomic_write, read_regular
from nanodet_jax.io import pretrained, torch_names
from nanodet_jax.io.checkpoint import CHECKPOINTS, Checkpoints
from nanodet_jax.io.infer_model import infer_model, set_preprocessing
from nanodet_jax.io.npz import read_npz
from nanodet_jax.io.torch_archive import read_state_dict
from nanodet_jax.models.guidance import strip_guidance
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables
from nanodet_jax.terminal import printable

ABOUT = "about.json"  # in a .npz file, and next to checkpoints: the config and class names
ABOUT_LIMIT = 4 << 20  # bytes; enough for 20 thousand of the longest class names
MODEL_ZOO = "https://github.com/RangiLyu/nanodet#model-zoo"
# Weights, possibly from an untrusted source, define the input size, and memory grows with it.
# Prediction at 2048 x 2048 takes up to 2 GB. Only the caller can raise the limit.
MAX_INPUT_SIDE = 2048  # pixels
BYTES_PER_PIXEL = 512  # limit for the features, per pixel of input; 80 classes need about 130
PYTORCH_SUFFIXES = (".pth", ".pt", ".ckpt")
SUFFIXES = (*PYTORCH_SUFFIXES, ".npz")


class Weights(NamedTuple):
    """Variables, with the config and class names needed to use them."""

    variables: Any
    config: Config  # model, input size and normalization used in training
    class_names: tuple[str, ...]  # empty if unknown


def load_weights(path: str | Path, max_input_side: float | None = MAX_INPUT_SIDE) -> Weights:
    """Load weights from a file of the original or of this project, from a workdir, or by name.

    The result is the deployed network, without the parts that are used only in training. From a
    workdir, the best checkpoint is loaded, or the newest if none was evaluated. Files of the
    original contain neither class names nor the input size. If there are 80 classes, they are
    assumed to be COCO's. The input is assumed to be 320 x 320, unless published weights are loaded
    by name. The aspect ratio is kept for NanoDet, but not for NanoDet-Plus.

    Args:
      path: `.pth`, `.pt` or `.ckpt` of the original, `.npz` of this project, a workdir, or a name
        in `pretrained.ADDRESSES`. The file for a name is downloaded once. An existing path takes
        precedence over a name.
      max_input_side: largest input height or width that the weights may define. Its square also
        limits the memory of the features. Pass None (no limit) if the input size is not used.

    Raises:
      UserError: if the weights do not exist, cannot be downloaded, are damaged, or exceed a limit.
    """
    file, name = _find(path)
    loaded = _load(file)
    if name in pretrained.INPUT_SIZES:
        loaded.config.input_size = pretrained.INPUT_SIZES[name]
    if max_input_side is not None:
        _check_input(loaded.config, max_input_side, str(path))
    return loaded


def _find(path: str | Path, *, detector: bool = True) -> tuple[Path, str]:
    """Return an existing path and "", or the downloaded file and the name of published weights."""
    try:
        path = Path(path).expanduser()
        if path.exists():
            return path, ""
    except (OSError, RuntimeError) as error:  # the name is too long, or ~user does not exist
        raise UserError(f"{path}: cannot be read: {error}") from error
    name = str(path)
    if detector and name in pretrained.BACKBONES:
        raise UserError(
            f"{name}: weights of a classifier, not of a detector; use one of "
            f"{', '.join(pretrained.DETECTORS)}"
        )
    if name in pretrained.ADDRESSES:
        return pretrained.download(name), name
    is_name = path.name == name and path.suffix not in SUFFIXES
    detectors = pretrained.ADDRESSES.keys() - pretrained.BACKBONES.keys()
    meant = did_you_mean(name, detectors) if is_name else ""
    of_original = name.startswith("nanodet-m") and path.suffix in PYTORCH_SUFFIXES
    where = f"; {MODEL_ZOO} links to the files of the original" if of_original else ""
    raise UserError(
        f"{path}: no such weights;{meant} use a .pth, .ckpt or .npz file, a workdir, or the name "
        f"of published weights{where}"
    )


def _load(path: Path) -> Weights:
    if path.is_dir():
        loaded = _load_workdir(path)
        return loaded._replace(variables=strip_guidance(loaded.variables))
    if path.suffix == ".npz":
        return _load_npz(path)
    if path.suffix not in PYTORCH_SUFFIXES:
        raise UserError(f"{path}: weights must be a .pth, .pt, .ckpt or .npz file, or a workdir")
    entries = torch_names.from_mmdetection(read_state_dict(path))
    config = Config(model=infer_model(entries, str(path)))
    set_preprocessing(config)
    try:
        configs.check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    variables = torch_names.convert(entries, _abstract(config), str(path))
    known = config.model.num_classes == len(COCO_CLASSES)
    return Weights(variables, config, COCO_CLASSES if known else ())


def _check_input(config: Config, max_side: float, where: str) -> None:
    """Refuse weights if the input size or the memory of the features exceeds the limit."""
    height, width = config.input_size
    fix = "if you trust the weights, raise max_input_side (predict: --max-input-side)"
    if max(height, width) > max_side:
        size = f"config.input_size={height},{width}"
        raise UserError(f"{where}: {size}: sides must be at most {max_side:g}; {fix}")
    needed = feature_bytes(config)
    if needed > BYTES_PER_PIXEL * max_side**2:
        what = f"config.model needs about {needed / 1e9:.1f} GB for an image of {width}x{height}"
        raise UserError(f"{where}: {what}, over the limit for sides of {max_side:g}; {fix}")


def feature_bytes(config: Config) -> int:
    """Estimate the size in bytes of the float32 features of one full-size image."""
    model, (height, width) = config.model, config.input_size
    image_and_stem = 18 * height * width  # 24 channels at half the resolution, three times
    per_prior = 3 * (model.num_classes + 4 * (model.reg_max + 1)) + 4 * model.channels
    return 4 * (image_and_stem + configs.num_priors(config) * per_prior)


def load_entries(path: str | Path) -> dict[str, np.ndarray]:
    """Load weights as entries with the names and layout of the original.

    Unlike `load_weights`, this function accepts a PyTorch file of any model, for fine-tuning.

    Raises:
      UserError: as in `load_weights`.
    """
    path, _ = _find(path)
    if path.suffix in PYTORCH_SUFFIXES and not path.is_dir():
        return read_state_dict(path)
    loaded = _load_workdir(path) if path.is_dir() else _load(path)
    return torch_names.to_entries(loaded.variables)


def load_classifier(path: str | Path) -> dict[str, np.ndarray]:
    """Load the arrays of a classifier from a PyTorch file or by a name in `pretrained.BACKBONES`.

    Returns:
      Arrays by the names in the file, in PyTorch's layout.

    Raises:
      UserError: if there is no such file or name, or the file cannot be downloaded or read, or it
        contains a detector.
    """
    fix = "use the .pth file or the name of a classifier, or set config.training.init_weights"
    if str(path) in pretrained.DETECTORS:
        raise UserError(f"{path}: is the name of a detector; {fix}")
    file, _ = _find(path, detector=False)
    if file.is_dir() or file.suffix not in PYTORCH_SUFFIXES:
        raise UserError(f"{path}: is not a PyTorch file; {fix}")
    entries = read_state_dict(file)
    if any(name.startswith("backbone.") for name in entries):
        raise UserError(f"{path}: contains a detector; {fix}")
    return entries


def load_config_of(path: str | Path) -> Config | None:
    """Return the config that comes with a workdir or a `.npz` file; None for other weights.

    Raises:
      UserError: if the path does not exist, or the config is missing or not valid.
    """
    path, _ = _find(path)
    if path.is_dir():
        return _load_workdir_description(path)[0]
    return _describe_npz(path, read_npz(path))[0] if path.suffix == ".npz" else None


def class_names_of(weights: Weights) -> tuple[str, ...]:
    """Return the class names of weights, or "class 0", "class 1" and so on if they are unknown."""
    numbers = (f"class {i}" for i in range(weights.config.model.num_classes))
    return weights.class_names or tuple(numbers)


def save_weights(path: str | Path, weights: Weights) -> None:
    """Atomically write a `.npz` file with one array per variable and `about.json`.

    Raises:
      UserError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path}: must end in .npz")
    about = np.frombuffer(describe(weights.config, weights.class_names).encode(), np.uint8)
    arrays = {
        name: np.asarray(leaf) for name, leaf in torch_names.flatten(weights.variables).items()
    }
    with atomic_write(path) as file:
        np.savez(file, **{ABOUT: about}, **arrays)  # type: ignore[arg-type]


def describe(config: Config, class_names: tuple[str, ...]) -> str:
    """Return the text of `about.json`."""
    return json.dumps(
        {"config": json.loads(configs.to_json(config)), "class_names": class_names}, indent=2
    )


def read_description(text: str, where: str) -> tuple[Config, tuple[str, ...]]:
    """Parse the text of `about.json`.

    Returns:
      Config and class names.

    Raises:
      UserError: naming `where`, if the text is not valid.
    """
    try:
        about = loads_unique(text)
        names, values = about["class_names"], about["config"]
        config = configs.from_json(json.dumps(values))
        configs.check(config)
    except UserError as error:
        raise UserError(f"{where}: {printable(str(error), 400)}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{where}: is not a valid description of weights ({ascii(error)[:400]})"
        ) from error
    if not isinstance(names, list) or not all(map(is_name, names)):
        raise UserError(f"{where}: class_names must be a list of names of 1 to 200 characters")
    count = config.model.num_classes
    if count == 0:
        raise UserError(f"{where}: config.model.num_classes=0: must be at least 1 in weights")
    if len(names) not in (0, count):
        raise UserError(
            f"{where}: has {len(names)} class names, but config.model.num_classes={count}"
        )
    return config, tuple(names)


def load_description(path: Path) -> tuple[Config, tuple[str, ...]]:
    """Read an `about.json` file.

    Returns:
      Config and class names.

    Raises:
      UserError: naming the file, if it cannot be read, is too large, or is not valid.
    """
    try:
        text = read_regular(path, ABOUT_LIMIT, ABOUT).decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # includes text that is not UTF-8
        raise UserError(f"{path}: {ascii(str(error))[1:-1][:200]}") from error
    return read_description(text, str(path))


def _load_npz(path: Path) -> Weights:
    arrays = read_npz(path)
    config, names = _describe_npz(path, arrays)
    del arrays[ABOUT]
    expected = torch_names.flatten(_abstract(config))
    wrong = sorted(set(expected) ^ set(arrays)) or [
        name
        for name, leaf in expected.items()
        if (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if wrong:
        name = ascii(wrong[0][:100])
        raise UserError(
            f"{path}: array {name} is missing, unexpected, or has the wrong shape or dtype"
        )
    return Weights(torch_names.unflatten(arrays), config, names)


def _describe_npz(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Config, tuple[str, ...]]:
    """Return the config and class names of a `.npz` file."""
    about = arrays.get(ABOUT)
    if about is None:
        raise UserError(f"{path}: has no {ABOUT}; only .npz files of this project can be loaded")
    if about.nbytes > ABOUT_LIMIT:
        raise UserError(f"{path}: {ABOUT} has {about.nbytes} bytes; the limit is {ABOUT_LIMIT}")
    return read_description(about.tobytes().decode(errors="replace"), str(path))


def _load_workdir_description(path: Path) -> tuple[Config, tuple[str, ...]]:
    """Return the config and class names of a run."""
    about = path / ABOUT
    if not about.exists():
        raise UserError(f"{path}: is not the workdir of a run (it has no {ABOUT})")
    return load_description(about)


def _load_workdir(path: Path) -> Weights:
    config, names = _load_workdir_description(path)
    if not (path / CHECKPOINTS).is_dir():
        raise UserError(f"{path}: has no checkpoint yet")
    with closing(Checkpoints(path, writing=False)) as checkpoints:
        variables = checkpoints.restore_best_variables(_abstract(config, guided=True))
    if variables is None:
        raise UserError(f"{path}: has no checkpoint yet")
    return Weights(variables, config, names)


def _abstract(config: Config, guided: bool = False) -> Any:
    return abstract_variables(build_model(config.model), guided)
