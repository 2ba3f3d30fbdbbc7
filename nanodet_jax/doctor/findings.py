"""What stands between data and a good detector: findings, by harm, each with its way out."""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data.faults import Fault, Kind
from nanodet_jax.doctor.geometry import Objects

SMALL = 32.0  # pixels of the input: COCO's bound for small objects
FEW_BOXES = 50  # of a class
MANY_EMPTY = 0.5  # share of images without boxes
MANY_TINY = 0.05  # share of boxes below the finest stride
MANY_UNLEARNED = 0.01  # share of boxes without a prior
LONG_WARMUP = 0.2  # share of a run


class Harm(IntEnum):
    """How much a finding costs."""

    NOTE = 0  # good to know
    COSTLY = 1  # lowers AP, or wastes part of the data
    SERIOUS = 2  # the run stops, or learns something else than was meant


class Finding(NamedTuple):
    """One thing that is worth a change."""

    harm: Harm
    title: str
    way_out: str
    examples: tuple[str, ...] = ()  # each names a file and an entry


WAYS_OUT = {
    Kind.FILE: "correct the file or the path in config.data",
    Kind.PATH: "give names below the folder; config.data.follow_links=True trusts links",
    Kind.MISSING: "copy the images there, or take their annotations out",
    Kind.UNREADABLE: "replace them, or take them out of the annotations",
    Kind.SIZE: "correct width and height, or save the images upright; boxes lie beside objects",
    Kind.IDS: "give every image and annotation an integer id of its own that the others use",
    Kind.CLASSES: "list the class (categories of COCO, names of YOLO, config.data.classes), or "
    "correct its name",
    Kind.NUMBERS: "correct or delete the annotation",
    Kind.INVERTED: "swap the corners, or delete the box",
    Kind.OUTSIDE: "clip the boxes to their image; often they are of another size of it",
    Kind.EMPTY: "nothing, if they are slips of the mouse: training leaves them out",
    Kind.DUPLICATES: "delete all but one: the second can be matched by no detection",
}
TOLERABLE = {Kind.EMPTY: Harm.NOTE}  # of what is tolerated; else it is costly


def of_faults(faults: Sequence[Fault], split: str, images: int, config: Config) -> list[Finding]:
    """A finding per kind of fault in a split of so many `images`."""
    found = []
    for kind in Kind:
        alike = [fault for fault in faults if fault.kind is kind]
        if not alike:
            continue
        harm = Harm.SERIOUS
        if all(fault.tolerated for fault in alike):
            harm = TOLERABLE.get(kind, Harm.COSTLY)
        if kind in (Kind.UNREADABLE, Kind.SIZE):  # of which a run bears a few
            bearable = len(alike) <= config.data.max_unreadable * images
            harm = Harm.COSTLY if bearable else Harm.SERIOUS
        title = f"{kind} in {split}: {len(alike)}"
        found.append(Finding(harm, title, WAYS_OUT[kind], tuple(map(str, alike))))
    return found


def of_schedule(config: Config, train_images: int) -> list[Finding]:
    """Length of an epoch, of the run, and of the warm-up."""
    size, training = config.data.batch_size, config.training
    steps_each = train_images // size
    if steps_each == 0:
        title = f"config.data.batch_size={size}, but there are {train_images} training images"
        way_out = "a smaller batch size, with a learning rate smaller by as much"
        return [Finding(Harm.SERIOUS, title, way_out)] if train_images else []
    steps = training.steps or training.epochs * steps_each
    found = []
    if training.warmup_steps > LONG_WARMUP * steps:
        endless = training.warmup_steps >= steps
        found.append(
            Finding(
                Harm.SERIOUS if endless else Harm.COSTLY,
                f"the warm-up takes {training.warmup_steps} of the run's {steps} steps"
                + (": the learning rate is never reached" if endless else ""),
                f"--config.training.warmup_steps={max(steps // 20, 1)}, or more epochs",
            )
        )
    if config.training.eval_every > training.epochs and not training.steps:
        every = f"config.training.eval_every={training.eval_every}"
        title = f"{every} epochs, but the run has {training.epochs}: only its end is evaluated"
        found.append(Finding(Harm.NOTE, title, "a smaller value keeps the best checkpoint"))
    return found


def of_classes(names: Sequence[str], train: np.ndarray, val: np.ndarray) -> list[Finding]:
    """Classes that are missing or rare; `train` and `val` are boxes per class [C]."""
    found = []
    absent = [name for name, count in zip(names, train) if count == 0]
    if absent:
        asked = [name for name in absent if val[list(names).index(name)]]
        found.append(
            Finding(
                Harm.SERIOUS if asked else Harm.COSTLY,
                f"{len(absent)} of {len(names)} classes have no training box: {_listed(absent)}"
                + (f"; evaluation asks for {_listed(asked)}, with AP 0" if asked else ""),
                "boxes of them, or a list of classes without them",
            )
        )
    unasked = [name for name, t, v in zip(names, train, val) if t and not v]
    if unasked:
        found.append(
            Finding(
                Harm.COSTLY,
                f"{len(unasked)} classes have no validation box: {_listed(unasked)}; AP is of "
                "the others alone",
                "move some of their images from training to validation",
            )
        )
    rare = [f"{name} ({t})" for name, t in zip(names, train) if 0 < t < FEW_BOXES]
    if rare:
        title = f"classes of under {FEW_BOXES} training boxes: {_listed(rare)}"
        found.append(Finding(Harm.COSTLY, title, "more images of them: their AP is left to chance"))
    return found


def of_empty(split: str, empty: int, images: int) -> list[Finding]:
    """Images without boxes."""
    if not images or empty <= MANY_EMPTY * images:
        return []
    title = f"{empty} of {images} images in {split} have no box"
    harm = Harm.SERIOUS if empty == images else Harm.COSTLY
    return [Finding(harm, title, "are they annotated? If so, fewer of them spare time")]


def of_sizes(names: Sequence[str], objects: Objects, config: Config) -> list[Finding]:
    """Boxes and classes that are small at the network's input."""
    found: list[Finding] = []
    if not len(objects.labels):
        return found
    stride = config.model.strides[0]
    tiny = float(np.mean(objects.shorter < stride))
    if tiny > MANY_TINY:
        title = f"{tiny:.0%} of the training boxes are narrower than the finest stride, {stride} px"
        found.append(Finding(Harm.COSTLY, title, _larger_input(config, 2.0)))
    small = []
    for label, name in enumerate(names):
        sizes = objects.size[objects.labels == label]
        if len(sizes) and np.median(sizes) < SMALL:
            small.append((float(np.median(sizes)), len(sizes), name))
    if small:
        median, count, name = min(small)
        others = [f"{other} ({size:.0f} px)" for size, _, other in sorted(small)[1:]]
        height, width = config.input_size
        found.append(
            Finding(
                Harm.COSTLY,
                f"class {name!r} is small at the input of {height} x {width}: half of its {count} "
                f"boxes measure under {median:.0f} px, {median / stride:.1f} cells of the finest "
                f"stride, where a box that is a pixel off in x and y has an IoU of "
                f"{shifted_iou(median):.2f}" + (f"; so are {_listed(others)}" if others else ""),
                _larger_input(config, SMALL / median),
            )
        )
    return found


def of_priors(names: Sequence[str], labels: np.ndarray, counts: np.ndarray) -> list[Finding]:
    """Boxes that no prior learns; `labels` and `counts` of priors are per box [n]."""
    unlearned = counts == 0
    if not len(counts) or unlearned.mean() <= MANY_UNLEARNED:
        return []
    by_class = np.bincount(labels[unlearned], minlength=len(names))
    most = f"{by_class.max()} of them {names[int(by_class.argmax())]!r}"
    return [
        Finding(
            Harm.SERIOUS if unlearned.mean() > 0.2 else Harm.COSTLY,
            f"{unlearned.mean():.1%} of {len(counts)} training boxes are learned by no prior, "
            f"{most}: they are too small, too large, or crowded",
            "a larger --config.input_size",
        )
    ]


def shifted_iou(side: float) -> float:
    """IoU of a square with itself, moved by a pixel in x and y."""
    common = max(side - 1, 0) ** 2
    return common / (2 * side**2 - common)


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The most harmful first, otherwise in their order."""
    return sorted(findings, key=lambda finding: -finding.harm)


def _larger_input(config: Config, factor: float) -> str:
    height, width = (32 * int(np.ceil(min(factor, 2.0) * side / 32)) for side in config.input_size)
    cost = height * width / (config.input_size[0] * config.input_size[1])
    return f"--config.input_size={height},{width}, for {cost:.1f} times the computation"


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
