"""The config of a run: all sections, checks that involve several of them, and json."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

from nanodet_jax.config.data import Augment, Data
from nanodet_jax.config.losses import Assigner, Compat, Loss
from nanodet_jax.config.model import BACKBONE_STRIDES, Model
from nanodet_jax.config.renamed import rename_fields
from nanodet_jax.config.section import Section
from nanodet_jax.config.training import Distributed, Training
from nanodet_jax.config.values import Fields, from_dict
from nanodet_jax.errors import UserError

Precision = Literal["float32", "bf16", "highest"]

MAX_SIDE = 8192  # largest side of the input in pixels
MAX_SCORES = 2**31  # bound on priors times classes of one image, because int32 indexes them


@dataclass(slots=True)
class Config(Section):
    """Everything that a run depends on, except the data itself."""

    name: str = "nanodet-m"
    """Name of the run; the default workdir is runs/NAME."""

    input_size: tuple[int, int] = (320, 320)
    """Height and width of the network's input in pixels, multiples of 32. With
    data.resize=short_side: length of the shorter side of images and limit for the longer side, not
    necessarily multiples of 32."""

    precision: Precision = "float32"
    """Precision of the network's computation. Parameters, batch statistics, losses, assignment and
    optimizer are always float32. float32 lets the device choose how convolutions multiply (TF32 on
    a GPU), highest makes them multiply in full float32, and bf16 halves the memory of the
    features."""

    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    assigner: Assigner = field(default_factory=Assigner)
    compat: Compat = field(default_factory=Compat)
    loss: Loss = field(default_factory=Loss)
    training: Training = field(default_factory=Training)
    distributed: Distributed = field(default_factory=Distributed)


def check(config: Config, num_devices: int = 1) -> None:
    """Check that all values are valid.

    Args:
      config: the config to check. It is not changed.
      num_devices: number of devices that a batch is split over, across all processes.

    Raises:
      UserError: for the first invalid field, with its full name.
    """
    from_dict(Config, asdict(config), "config")  # checks types and choices
    for section in (
        config.data,
        config.augment,
        config.model,
        config.assigner,
        config.training,
        config.distributed,
    ):
        section.check()
    _check_input(config)
    _check_short_side(config)
    _check_parallel(config, num_devices)


def _check_input(config: Config) -> None:
    fields = Fields(config, "config")
    largest = BACKBONE_STRIDES[-1]
    fields.require(
        "input_size",
        all(side > 0 and side % largest == 0 for side in config.input_size)
        or (config.data.resize == "short_side" and min(config.input_size) > 0),
        f"height and width must be multiples of {largest}, the backbone's largest stride",
    )
    fields.require(
        "input_size", max(config.input_size) <= MAX_SIDE, f"sides must be at most {MAX_SIDE}"
    )
    scores = num_priors(config) * config.model.num_classes
    fields.require(
        "input_size", scores < MAX_SCORES, f"too large for {config.model.num_classes} classes"
    )


def _check_short_side(config: Config) -> None:
    """Check the fields that depend on data.resize.

    short_side requires a network that can ignore padding, and allows no geometric transform except
    the flip.
    """
    data = Fields(config.data, "config.data")
    augment = Fields(config.augment, "config.augment")
    if config.data.resize == "to_input":
        augment.require(
            "short_side", config.augment.short_side == (0, 0), "needs data.resize=short_side"
        )
        return
    data.require(
        "resize",
        config.model.ignores_padding,
        "needs a config.model with a ResNet as backbone, backbone_activation=relu, "
        "norm_eval=True, neck=fpn and head=simple_conv",
    )
    data.require("resize", config.data.augment == "host", "needs data.augment=host")
    condition = "if data.resize=short_side"
    for name in ("perspective", "rotation", "shear", "translate"):
        augment.require(name, getattr(config.augment, name) == 0, f"must be 0 {condition}")
    for name in ("scale", "stretch_x", "stretch_y"):
        augment.require(name, getattr(config.augment, name) == (1, 1), f"must be 1,1 {condition}")
    augment.require(
        "short_side",
        config.augment.short_side[1] <= min(config.input_size),
        f"must be at most {min(config.input_size)}, the smaller value of config.input_size",
    )


def _check_parallel(config: Config, num_devices: int) -> None:
    fields = Fields(config.data, "config.data")
    accumulate = config.training.accumulate
    fields.require(
        "batch_size",
        config.data.batch_size % (num_devices * accumulate) == 0,
        f"must be divisible by the number of devices, {num_devices}, times "
        f"config.training.accumulate={accumulate}",
    )
    fields.require(
        "cache",
        not config.distributed.coordinator or config.data.cache != "device",
        "needs a single process; data.cache=ram works with several processes",
    )
    fields.require(
        "resize",
        not config.distributed.coordinator or config.data.resize == "to_input",
        "needs a single process, which may use several devices",
    )


def num_priors(config: Config) -> int:
    """Return the number of priors on an input of full size."""
    height, width = config.input_size
    return sum(-(-height // s) * -(-width // s) for s in config.model.strides)


def values_of(value: Any, name: str = "config") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a config or of one of its sections, with their full names."""
    if is_dataclass(value):
        for field_ in fields(value):
            yield from values_of(getattr(value, field_.name), f"{name}.{field_.name}")
    else:
        yield name, value


def to_json(config: Config) -> str:
    """Return the config as indented json, which `from_json` reads."""
    return json.dumps(asdict(config), indent=2)


def from_json(text: str) -> Config:
    """Return the config that `to_json` of this or an earlier version wrote.

    Raises:
      UserError: if the text is not json, has an unknown field, or has an invalid type or choice.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # includes numbers of over 4300 digits
        raise UserError(f"config: is not json: {error}") from error
    rename_fields(values, asdict(Config()))
    return from_dict(Config, values, "config")
