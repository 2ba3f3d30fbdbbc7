"""The schema of every config: plain dataclasses, overridable as `--config.data.batch_size=16`.

A file in `configs/` returns a `Config`; `check` refuses impossible values before anything is
compiled. What follows from other fields or from the data (channels, steps per epoch, number of
classes, ground-truth slots) is computed, never configured.
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from nanodet_jax.errors import UserError

FORMATS = ("coco", "voc", "yolo", "tfds", "shapes")
WIDTHS = (0.5, 1.0, 1.5, 2.0)
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("multistep", "cosine")
PRECISIONS = ("float32", "bf16", "highest")
CACHES = ("none", "ram", "device")
PIXEL_PLACES = ("host", "device")
NECKS = ("pan", "ghost_pan")
ASSIGNERS = ("atss", "dynamic_soft_label")
BACKBONE_STRIDES = (8, 16, 32)
# Bounds on what a file of weights may ask for: far above any use, and built within 10 seconds.
MODEL_LIMITS = {
    "num_classes": 100_000,
    "channels": 4096,
    "kernel_size": 31,
    "stacked_convs": 16,
    "neck_blocks": 16,
    "reg_max": 255,
    "guidance_channels": 8192,
    "guidance_convs": 16,
}
MAX_TAPS = 600  # kernel_size**2 * (stacked_convs + neck_blocks): each is traced on its own
MAX_SIDE = 8192  # of the input, pixels
MAX_SCORES = 2**31  # of an image: priors times classes, numbered by int32
GUIDANCE_GROUPS = 32  # of the group norms in the guidance head


@dataclass
class Data:
    """Where images and boxes come from, and how they reach the device."""

    format: str = "coco"  # coco | voc | yolo | tfds | shapes
    train_images: str = ""  # coco: folder of the training images
    train_annotations: str = ""  # coco: json file
    val_images: str = ""
    val_annotations: str = ""  # coco; with tfds: optional, the json that evaluation is judged by
    # voc: folder with train/ and val/, or VOC2007 layout; yolo: data.yaml or the folder that holds
    # it; tfds: data_dir or dataset
    root: str = ""
    name: str = "coco/2017:1.1.0"  # tfds: dataset, version included ("" if root is its folder)
    classes: tuple[str, ...] = ()  # voc alone: names in label order; () = all that occur, sorted
    train_size: int = 4000  # shapes: how many images are drawn for training ...
    val_size: int = 200  # ... and for validation
    follow_links: bool = False  # symbolic links in a folder of data may lead out of it
    max_megapixels: float = 50.0  # of an image; larger ones are not decoded but count as unreadable
    # Share of a split's images that may be unreadable. Others take their place in training; in
    # evaluation they are images in which nothing was found.
    max_unreadable: float = 0.01
    batch_size: int = 32  # global: over all devices
    workers: int = 2  # threads that decode and augment
    cache: str = "ram"  # none | ram | device: where decoded training images are kept
    cache_gb: float = 4.0  # room for them; ram: the rest is decoded anew; device: all must fit
    augment: str = "host"  # host | device: where pixels are warped and coloured, as `augment` says
    # augment=device: no image is sent larger than this multiple of the input, but reduced once.
    canvas: float = 2.0
    max_boxes: int = 0  # ground-truth slots per image; 0 = the most that any training image has
    keep_ratio: bool = False  # resize without distortion and pad, or stretch to input_size
    # Blue, green, red: the order in which OpenCV decodes and the published weights expect.
    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    std: tuple[float, float, float] = (57.375, 57.12, 58.395)


@dataclass
class Augment:
    """Training-time transforms; every factor is drawn uniformly, for every image."""

    perspective: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    stretch_x: tuple[float, float] = (1.0, 1.0)
    stretch_y: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0  # degrees
    shear: float = 0.0  # degrees
    translate: float = 0.0  # share of width and height
    flip: float = 0.0  # probability
    # Colour factors are each applied with probability 1/2, on pixels in [0, 1], without clipping.
    brightness: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    saturation: tuple[float, float] = (1.0, 1.0)


@dataclass
class Model:
    """ShuffleNetV2, a neck, a head, and for NanoDet-Plus a branch that guides training."""

    num_classes: int = 0  # 0 = as many as the data has
    width: float = 1.0  # of ShuffleNetV2: 0.5, 1.0, 1.5, 2.0
    neck: str = "pan"  # pan | ghost_pan
    neck_blocks: int = 1  # ghost_pan: ghost bottlenecks where two levels meet
    extra_level: bool = False  # ghost_pan: a level coarser than the backbone's, stride 64
    channels: int = 96  # of neck and head
    kernel_size: int = 3  # of the depthwise convolutions of ghost_pan and head
    stacked_convs: int = 2  # of the head
    share_cls_reg: bool = True  # one tower for classes and boxes, or one each
    reg_max: int = 7  # distances are expectations over 0 .. reg_max strides
    prior_offset: float = 0.5  # a prior's place in its cell, in strides; NanoDet-Plus has 0
    guidance_channels: int = 0  # assign guidance module: width of its head; 0 = none
    guidance_convs: int = 4  # depth of its head
    # In training, normalise by the statistics of the whole batch instead of each device's own, at
    # two small reductions per norm. It cannot reach over the micro-batches of training.accumulate.
    sync_batch_norm: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the priors of each level."""
        coarser = (2 * BACKBONE_STRIDES[-1],) if self.extra_level else ()
        return BACKBONE_STRIDES + coarser


@dataclass
class Assigner:
    """Which priors learn which box."""

    name: str = "atss"  # atss | dynamic_soft_label
    topk: int = 9  # candidates per box: atss: and level; dynamic_soft_label: 13 in the original
    cell_scale: float = 5.0  # atss: a prior's cell is cell_scale * stride wide
    iou_factor: float = 3.0  # dynamic_soft_label: weight of the boxes against the classes
    # Share in an ignore region that excludes a prior; of its cell (atss) or box. 0 = off.
    ignore_threshold: float = 0.5


@dataclass
class Compat:
    """Faults of the original: True does as it does, False mends (`docs/differences.md`)."""

    # dynamic_soft_label: a box may take priors that lie in other boxes only, and gets none where
    # no prior lies in any; else it takes priors inside itself, or the nearest if there is none.
    priors_of_any_box: bool = True
    # A box that augmentation moved out of the frame stays, without area, and is learned.
    keep_lost_boxes: bool = True
    # Images are resampled on pixel indices without antialiasing; boxes know of neither.
    pixel_index_warp: bool = True


@dataclass
class Loss:
    """Weights of the three terms."""

    quality_focal: float = 1.0
    distribution_focal: float = 0.25
    giou: float = 2.0


@dataclass
class Rates:
    """Multiples of the learning rate, by part of the network."""

    backbone: float = 1.0
    neck: float = 1.0
    head: float = 1.0
    guidance: float = 1.0


@dataclass
class Training:
    """Optimizer, schedule, and what is written when."""

    epochs: int = 1
    steps: int = 0  # instead of epochs, if set
    # Micro-batches that a batch is worked off in, to save memory; their gradients are summed.
    accumulate: int = 1
    optimizer: str = "sgd"  # sgd | adamw
    learning_rate: float = 0.01
    # The batch that learning_rate is meant for: it is multiplied by data.batch_size / rate_batch.
    rate_batch: int = 0  # 0: learning_rate is taken as it is, whatever the batch
    momentum: float = 0.9  # sgd
    weight_decay: float = 1e-4  # sgd: added to the gradient; adamw: decoupled; on every parameter
    no_norm_decay: bool = False  # no decay on scale and bias of normalisation layers
    rates: Rates = field(default_factory=Rates)
    clip_norm: float = 0.0  # bound on the global norm of the gradient; 0 = off
    schedule: str = "multistep"  # multistep | cosine, by epoch
    milestones: tuple[int, ...] = ()  # multistep: epochs after which the rate is multiplied ...
    gamma: float = 0.1  # ... by this
    final_fraction: float = 0.05  # cosine: last rate as a share of learning_rate
    warmup_steps: int = 0
    warmup_ratio: float = 0.1  # of the rate, where a linear warm-up starts
    ema_decay: float = 0.0  # average of all weights, which is evaluated and kept; 0 = off
    detach_epoch: int = 0  # guidance: epochs in which its loss trains backbone and neck too
    init_weights: str = ""  # .pth, .ckpt, .npz or a workdir to start from
    seed: int = 0
    # Steps in a row with a loss or gradient that is not finite, each skipped, that end the run.
    max_skipped: int = 10
    eval_every: int = 10  # epochs
    checkpoint_every: int = 1  # epochs between saves of the newest state
    keep_every: int = 0  # epochs between checkpoints that are never deleted; 0 = none
    log_every: int = 10  # steps
    devices: int = 0  # how many of each machine train; 0 = all
    # Several processes, on one machine or many, train together: HOST:PORT of the one with index 0,
    # or auto for what Slurm, Open MPI, Kubernetes or a TPU pod tell; "" = this process alone.
    coordinator: str = ""
    processes: int = 1  # how many there are ...
    process: int = 0  # ... and which of them this is; with coordinator=auto neither is looked at


@dataclass
class Config:
    """All that a run depends on, besides its data."""

    name: str = "nanodet-m"
    input_size: tuple[int, int] = (320, 320)  # height, width
    # float32 | bf16 | highest, of the network. Its parameters, batch statistics, losses, assignment
    # and optimizer are float32 with each. bf16 halves the memory of features. float32 leaves the
    # multiplications in convolutions to the device (TF32 on a GPU); highest makes them exact.
    precision: str = "float32"
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    assigner: Assigner = field(default_factory=Assigner)
    compat: Compat = field(default_factory=Compat)
    loss: Loss = field(default_factory=Loss)
    training: Training = field(default_factory=Training)


def check(config: Config, num_devices: int = 1) -> None:
    """Refuse values with which no run is possible.

    Args:
      config: not changed.
      num_devices: that share a batch, of all processes.

    Raises:
      UserError: naming the first field at fault, as it is written on the command line.
    """

    def require(condition: bool, name: str, way_out: str) -> None:
        if not condition:
            value: Any = config
            for part in name.split("."):
                value = getattr(value, part)
            raise UserError(f"config.{name}={value!r}: {way_out}")

    _from_dict(Config, dataclasses.asdict(config), "config")  # values of the right type and number
    data, training, model = config.data, config.training, config.model
    largest = BACKBONE_STRIDES[-1]
    require(
        all(side > 0 and side % largest == 0 for side in config.input_size),
        "input_size",
        f"height and width must be multiples of the backbone's largest stride, {largest}",
    )
    require(max(config.input_size) <= MAX_SIDE, "input_size", f"sides must be at most {MAX_SIDE}")
    require(config.precision in PRECISIONS, "precision", f"must be one of {PRECISIONS}")
    require(model.width in WIDTHS, "model.width", f"must be one of {WIDTHS}")
    require(model.num_classes >= 0, "model.num_classes", "must be positive, or 0 for the data's")
    for name in ("channels", "stacked_convs", "reg_max", "neck_blocks", "guidance_convs"):
        require(getattr(model, name) > 0, f"model.{name}", "must be positive")
    for name, most in MODEL_LIMITS.items():
        require(getattr(model, name) <= most, f"model.{name}", f"must be at most {most}")
    require(model.neck in NECKS, "model.neck", f"must be one of {NECKS}")
    ghost = model.neck == "ghost_pan"
    require(ghost or not model.extra_level, "model.extra_level", "needs model.neck=ghost_pan")
    require(ghost or model.neck_blocks == 1, "model.neck_blocks", "needs model.neck=ghost_pan")
    require(not ghost or model.channels % 2 == 0, "model.channels", "ghost_pan needs an even width")
    require(
        model.kernel_size > 0 and model.kernel_size % 2 == 1, "model.kernel_size", "must be odd"
    )
    taps = model.kernel_size**2 * (model.stacked_convs + model.neck_blocks)
    way_out = f"its square times (stacked_convs + neck_blocks) is {taps}, over {MAX_TAPS}"
    require(taps <= MAX_TAPS, "model.kernel_size", way_out)
    scores = num_priors(config) * model.num_classes
    require(scores < MAX_SCORES, "input_size", f"too large for {model.num_classes} classes")
    require(0 <= model.prior_offset < 1, "model.prior_offset", "is a place in a cell: 0 to 1")
    require(
        model.guidance_channels >= 0 and model.guidance_channels % GUIDANCE_GROUPS == 0,
        "model.guidance_channels",
        f"must be a multiple of its {GUIDANCE_GROUPS} normalisation groups, or 0 for none",
    )
    require(data.format in FORMATS, "data.format", f"must be one of {FORMATS}")
    require(data.batch_size > 0, "data.batch_size", "must be positive")
    require(training.accumulate > 0, "training.accumulate", "must be positive")
    require(
        data.batch_size % (num_devices * training.accumulate) == 0,
        "data.batch_size",
        f"must be divisible by the number of devices, {num_devices}, times "
        f"config.training.accumulate={training.accumulate}",
    )
    for name in ("train_size", "val_size"):
        require(getattr(data, name) > 0, f"data.{name}", "must be positive")
    require(data.max_megapixels > 0, "data.max_megapixels", "must be positive")
    require(0 <= data.max_unreadable <= 1, "data.max_unreadable", "is a share: 0 to 1")
    require(data.workers > 0, "data.workers", "needs at least one thread")
    require(data.cache in CACHES, "data.cache", f"must be one of {CACHES}")
    require(
        not training.coordinator or data.cache != "device",
        "data.cache",
        "is for a process alone; data.cache=ram keeps images in each of several",
    )
    require(data.cache_gb > 0, "data.cache_gb", "must be positive; data.cache=none keeps nothing")
    require(data.augment in PIXEL_PLACES, "data.augment", f"must be one of {PIXEL_PLACES}")
    on_device = data.augment == "device"
    require(on_device or data.cache != "device", "data.cache", "needs data.augment=device")
    require(data.canvas >= 1, "data.canvas", "must be at least 1, the size of the input")
    require(data.max_boxes >= 0, "data.max_boxes", "must be positive, or 0 for the data's most")
    require(all(value > 0 for value in data.std), "data.std", "must be positive")
    require(training.optimizer in OPTIMIZERS, "training.optimizer", f"must be in {OPTIMIZERS}")
    require(training.schedule in SCHEDULES, "training.schedule", f"must be in {SCHEDULES}")
    require(training.steps >= 0, "training.steps", "must be positive, or 0 to count epochs")
    require(training.steps > 0 or training.epochs > 0, "training.epochs", "must be positive")
    require(training.learning_rate > 0, "training.learning_rate", "must be positive")
    require(training.rate_batch >= 0, "training.rate_batch", "must be positive, or 0 for no scale")
    require(training.devices >= 0, "training.devices", "must be positive, or 0 for all")
    require(
        training.coordinator in ("", "auto") or _is_address(training.coordinator),
        "training.coordinator",
        "must be HOST:PORT, or auto",
    )
    require(training.processes > 0, "training.processes", "must be positive")
    require(
        training.processes == 1 or bool(training.coordinator),
        "training.processes",
        "needs config.training.coordinator, for the processes to find each other",
    )
    require(
        0 <= training.process < training.processes,
        "training.process",
        f"counts from 0, and config.training.processes={training.processes}",
    )
    for name in ("eval_every", "checkpoint_every", "log_every", "max_skipped"):
        require(getattr(training, name) > 0, f"training.{name}", "must be positive")
    for name in ("weight_decay", "clip_norm", "warmup_steps", "keep_every", "detach_epoch"):
        require(getattr(training, name) >= 0, f"training.{name}", "must not be negative")
    require(0 <= training.ema_decay < 1, "training.ema_decay", "must be in [0, 1)")
    for name in ("backbone", "neck", "head", "guidance"):
        rate = getattr(training.rates, name)
        require(rate >= 0, f"training.rates.{name}", "must not be negative")
    require(0 <= training.seed < 2**32, "training.seed", "must be in [0, 2**32)")
    require(config.assigner.name in ASSIGNERS, "assigner.name", f"must be one of {ASSIGNERS}")
    require(config.assigner.topk > 0, "assigner.topk", "must be positive")
    require(config.assigner.cell_scale > 0, "assigner.cell_scale", "must be positive")
    require(config.assigner.iou_factor >= 0, "assigner.iou_factor", "must not be negative")
    for name in ("scale", "stretch_x", "stretch_y", "contrast", "saturation"):
        low, high = getattr(config.augment, name)
        require(0 < low <= high, f"augment.{name}", "give low,high with 0 < low <= high")
    for name in ("perspective", "rotation", "shear", "translate", "brightness"):
        require(getattr(config.augment, name) >= 0, f"augment.{name}", "must not be negative")
    require(0 <= config.augment.flip <= 1, "augment.flip", "is a probability")


def num_priors(config: Config) -> int:
    """How many priors the network has on an input of full size."""
    height, width = config.input_size
    return sum(-(-height // s) * -(-width // s) for s in config.model.strides)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 2**16


def to_json(config: Config) -> str:
    """The resolved config as readable json; `from_json` reads it back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str) -> Config:
    """Config from `to_json`.

    Raises:
      UserError: on broken json, an unknown field or a value of the wrong type, by its name.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, or depth
        raise UserError(f"config is no json: {error}") from error
    return _from_dict(Config, values, "config")


def _from_dict(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: unknown field; known are {', '.join(hints)}")
    return cls(**{k: _from_value(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def _from_value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _from_dict(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}={value!r}: expected a list")
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise UserError(f"{where}={value!r}: expected {len(kinds)} values")
        return tuple(_from_value(k, v, where) for k, v in zip(kinds, value))
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # no float either, from 2**1024
        raise UserError(f"{where}: expected a number of at most 64 bits")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}={value!r}: expected a finite number")
    kind = hint if isinstance(hint, type | types.UnionType) else object
    if not isinstance(value, kind) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}={value!r}: expected {getattr(hint, '__name__', hint)}")
    return value
