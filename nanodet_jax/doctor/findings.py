"""Findings of the doctor: problems with data or config, each with a severity and a fix."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data.faults import NO_VALIDATION, Fault, FaultKind
from nanodet_jax.data.records import Record
from nanodet_jax.data.run_length import run_length
from nanodet_jax.doctor.geometry import Objects
from nanodet_jax.errors import UserError
from nanodet_jax.terminal import join_first

SMALL = 32.0  # pixels of the input; COCO's limit for small objects
FEW_BOXES = 50  # per class
MANY_EMPTY = 0.5  # fraction of images without boxes
MANY_TINY = 0.05  # fraction of boxes narrower than the finest stride
MANY_UNASSIGNED = 0.01  # fraction of boxes that no prior learns
TOO_MANY_UNASSIGNED = 0.2  # the same, for a serious finding
MANY_DUPLICATES = 0.01  # fraction of validation images that are also training images
LONG_WARMUP = 0.2  # fraction of a run


class Severity(IntEnum):
    """How much a finding affects the result."""

    NOTE = 0  # for information
    COSTLY = 1  # lowers AP, or wastes part of the data
    SERIOUS = 2  # training stops, or learns the wrong thing


@dataclass(frozen=True, slots=True)
class Finding:
    """Problem with the data or the config."""

    severity: Severity
    kind: str  # name of the problem, for programs: "missing", "few_boxes", ...
    title: str
    fix: str
    split: str = ""  # "train" or "val"; "" if it concerns both, or the config
    count: int = 1  # of files, images, boxes or classes
    examples: tuple[str, ...] = ()  # each names a file and an entry


class Lost(NamedTuple):
    """Entries of a split that cannot be read because of a fault.

    The lost entries may be the only reason why a class is empty or an image has no boxes. A finding
    that they may explain is not reported, because the fault is reported already.
    """

    images: int = 0
    entries: int = 0  # boxes, or other entries that may each affect an image

    @property
    def has_any(self) -> bool:
        """Whether boxes of any class may be hidden."""
        return bool(self.images or self.entries)


NOTHING_LOST = Lost()
FIXES = {
    FaultKind.CONFIG: "set the field as the message says",
    FaultKind.FILE: "correct the file or the path in config.data",
    FaultKind.NO_VALIDATION: NO_VALIDATION,
    FaultKind.PATH: "use paths inside the folder, or allow links to the outside with "
    "config.data.follow_links=True",
    FaultKind.MISSING: "add the images, or remove their annotations",
    FaultKind.UNREADABLE: "replace the images, or remove them from the annotations",
    FaultKind.SIZE: "correct width and height, or save the images upright; otherwise boxes are "
    "misplaced",
    FaultKind.IDS: "give each image and annotation a unique integer id; refer to existing ids",
    FaultKind.CLASSES: "list the class (COCO: in categories; YOLO: in names or classes.txt; VOC: "
    "in config.data.classes), or correct its name",
    FaultKind.NUMBERS: "correct or delete the annotation",
    FaultKind.INVERTED: "swap the corners, or delete the box",
    FaultKind.OUTSIDE: "clip the boxes to their image; often they were drawn at another resolution",
    FaultKind.NOT_FRACTIONS: "divide pixel coordinates by the width or height of the image",
    FaultKind.EMPTY: "none needed if the boxes were drawn by accident: training skips them",
    FaultKind.DUPLICATES: "delete all but one: a detection can match only one of them",
    FaultKind.DERIVED: "none needed if the polygons and masks enclose whole objects",
    FaultKind.SUPER_CATEGORY: "none needed: Roboflow exports contain one",
    FaultKind.RENAMED: "none needed if these are the annotated images",
}
# These apply even if the faults are tolerated, as YOLO labels without an image are.
SEVERITIES = {FaultKind.MISSING: Severity.SERIOUS}
TOLERATED_SEVERITY = {  # of tolerated faults; COSTLY for kinds that are not listed
    FaultKind.EMPTY: Severity.NOTE,
    FaultKind.DERIVED: Severity.NOTE,
    FaultKind.SUPER_CATEGORY: Severity.NOTE,
    FaultKind.RENAMED: Severity.NOTE,
}
FIXABLE = {  # kinds of findings that `doctor --fix` corrects
    kind.name.lower()
    for kind in (
        FaultKind.MISSING,
        FaultKind.SIZE,
        FaultKind.IDS,
        FaultKind.INVERTED,
        FaultKind.OUTSIDE,
        FaultKind.EMPTY,
        FaultKind.DUPLICATES,
    )
}
LOSES_ENTRY = (
    FaultKind.CLASSES,
    FaultKind.NUMBERS,
    FaultKind.NOT_FRACTIONS,
    FaultKind.OUTSIDE,
    FaultKind.INVERTED,
    FaultKind.IDS,
)
LOSES_IMAGE = (FaultKind.CONFIG, FaultKind.FILE, FaultKind.PATH, FaultKind.MISSING)


def count_lost(faults: Sequence[Fault], unreadable: Sequence[Record] = ()) -> Lost:
    """Return an upper bound on the images and entries of a split that faults hide.

    Args:
      faults: faults of the split.
      unreadable: records of its unreadable images. Those without boxes count as lost, because YOLO
        boxes are unknown without the size of the image.
    """
    images = sum(fault.kind in LOSES_IMAGE for fault in faults)
    entries = sum(fault.kind in LOSES_ENTRY for fault in faults if not fault.tolerated)
    entries += sum(not len(record.boxes) for record in unreadable)
    return Lost(images, entries)


def of_faults(faults: Sequence[Fault], split: str, images: int, config: Config) -> list[Finding]:
    """Return a finding for each kind of fault in a split of `images` images."""
    found = []
    for kind in FaultKind:
        messages = [str(fault) for fault in faults if fault.kind is kind]
        if not messages:
            continue
        severity = Severity.SERIOUS
        if all(fault.tolerated for fault in faults if fault.kind is kind):
            severity = TOLERATED_SEVERITY.get(kind, Severity.COSTLY)
        if kind in (FaultKind.UNREADABLE, FaultKind.SIZE):  # training accepts a few
            accepted = len(messages) <= config.data.max_unreadable * images
            severity = Severity.COSTLY if accepted else Severity.SERIOUS
        found.append(
            Finding(
                SEVERITIES.get(kind, severity),
                kind.name.lower(),
                kind if kind is FaultKind.NO_VALIDATION else f"{kind} in {split}: {len(messages)}",
                FIXES[kind],
                split,
                len(messages),
                tuple(messages),
            )
        )
    return found


def of_schedule(config: Config, train_images: int, lost: Lost = NOTHING_LOST) -> list[Finding]:
    """Return findings about the length of an epoch, of the run and of the warm-up."""
    size, training = config.data.batch_size, config.training
    images = train_images + lost.images  # as if the faults were corrected
    if images < size:
        given = f"config.data.batch_size={size}"
        title = f"{given} exceeds the number of training images, {train_images}"
        fix = "lower the batch size, and the learning rate in proportion"
        return [Finding(Severity.SERIOUS, "batch_size", title, fix)] if train_images else []
    if not train_images:
        return []
    steps = run_length(config, images).total_steps
    found = []
    if training.warmup_steps > LONG_WARMUP * steps:
        title = f"the warm-up takes {training.warmup_steps} of the {steps} steps of the run"
        if training.warmup_steps > steps:
            warmup = f"the warm-up ({training.warmup_steps} steps)"
            title = f"{warmup} is longer than the run ({steps} steps)"
        if training.warmup_steps >= steps:
            title += ": the full learning rate is never reached"
        length = "steps" if training.steps else "epochs"
        fix = f"--config.training.warmup_steps={max(steps // 20, 1)}, or more {length}"
        found.append(Finding(Severity.COSTLY, "warmup", title, fix))
    if config.training.eval_every > training.epochs and not training.steps:
        every = f"config.training.eval_every={training.eval_every}"
        number = f"the number of epochs, {training.epochs}"
        title = f"{every} exceeds {number}: only the last step is evaluated"
        fix = "lower it to keep the best checkpoint"
        found.append(Finding(Severity.NOTE, "eval_every", title, fix))
    return found


def of_classes(
    names: Sequence[str],
    train: np.ndarray,
    val: np.ndarray | None,
    lost: tuple[Lost, Lost] = (NOTHING_LOST, NOTHING_LOST),
) -> list[Finding]:
    """Return findings about missing and rare classes.

    Args:
      names: names of the C classes.
      train, val: number of boxes of each class [C]. `val` is None without validation data.
      lost: entries that faults hide in the training and the validation data.
    """
    found = []
    val = train if val is None else val
    absent = [name for name, count in zip(names, train) if count == 0 and not lost[0].has_any]
    if absent:
        evaluated = [name for name in absent if val[list(names).index(name)]]
        found.append(
            Finding(
                Severity.SERIOUS if evaluated else Severity.COSTLY,
                "class_without_training_boxes",
                f"no training boxes for {len(absent)} of {len(names)} classes: {join_first(absent)}"
                + (f"; the AP of {join_first(evaluated)} will be 0" if evaluated else ""),
                "add boxes of these classes, or remove the classes",
                "train",
                len(absent),
                tuple(absent),
            )
        )
    unevaluated = [n for n, t, v in zip(names, train, val) if t and not v and not lost[1].has_any]
    if unevaluated:
        found.append(
            Finding(
                Severity.COSTLY,
                "class_without_validation_boxes",
                f"no validation boxes for {len(unevaluated)} of {len(names)} classes: "
                f"{join_first(unevaluated)}; AP does not include them",
                "move some images of these classes from training to validation",
                "val",
                len(unevaluated),
                tuple(unevaluated),
            )
        )
    few = 0 if lost[0].images else FEW_BOXES - lost[0].entries
    rare = [f"{name} ({t})" for name, t in zip(names, train) if 0 < t < few]
    if rare:
        title = f"classes with fewer than {FEW_BOXES} training boxes: {join_first(rare)}"
        fix = "add images of these classes: with so few boxes, their AP is largely due to chance"
        found.append(
            Finding(Severity.COSTLY, "few_boxes", title, fix, "train", len(rare), tuple(rare))
        )
    return found


def of_no_common_class(error: UserError) -> Finding:
    """Return a finding about splits whose classes differ completely; `error` names them."""
    title, _, fix = str(error).partition("; ")
    return Finding(Severity.SERIOUS, "no_common_class", title, fix)


def of_empty(split: str, empty: int, images: int, lost: Lost = NOTHING_LOST) -> list[Finding]:
    """Return a finding if many of the `images` in a split have no boxes."""
    if not images or empty - lost.images - lost.entries <= MANY_EMPTY * images:
        return []
    title = f"{empty} of {images} images in {split} have no boxes"
    severity = Severity.SERIOUS if empty == images else Severity.COSTLY
    fix = "annotate them; if they contain no objects, remove some of them to save time"
    return [Finding(severity, "images_without_boxes", title, fix, split, empty)]


def of_duplicates(pairs: Sequence[str], val_images: int) -> list[Finding]:
    """Return a finding if images occur in both splits; `pairs` lists them."""
    if not pairs:
        return []
    many = len(pairs) > MANY_DUPLICATES * val_images
    fix = "remove them from one of the splits"
    if len(pairs) >= val_images:
        fix += ", or split off new validation images with --config.data.val_fraction=0.1"
    return [
        Finding(
            Severity.SERIOUS if many else Severity.COSTLY,
            "images_in_both_splits",
            f"{len(pairs)} of {val_images} validation images are also training images: AP is "
            "too high",
            fix,
            "val",
            len(pairs),
            tuple(pairs),
        )
    ]


def of_sizes(names: Sequence[str], objects: Objects, config: Config) -> list[Finding]:
    """Return findings about boxes and classes that are small at the network's input."""
    found: list[Finding] = []
    if not len(objects.labels):
        return found
    stride = config.model.strides[0]
    tiny = float(np.mean(objects.shorter < stride))
    if tiny > MANY_TINY:
        title = f"{tiny:.0%} of the training boxes are narrower than the finest stride, {stride} px"
        fix, count = _suggest_larger_input(config, 2.0), int(np.sum(objects.shorter < stride))
        found.append(Finding(Severity.COSTLY, "narrow_boxes", title, fix, "train", count))
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
                Severity.COSTLY,
                "small_classes",
                f"class {name!r} is small at an input of {height} x {width}: half of its {count} "
                f"boxes are under {median:.0f} px, {median / stride:.1f} times the finest stride; "
                f"a box of this size that is one pixel off in x and y has an iou of "
                f"{shifted_iou(median):.2f}"
                + (f"; also small: {join_first(others)}" if others else ""),
                _suggest_larger_input(config, SMALL / median),
                "train",
                len(small),
                tuple(f"{other} ({size:.0f} px)" for size, _, other in sorted(small)),
            )
        )
    return found


def of_priors(
    names: Sequence[str], labels: np.ndarray, counts: np.ndarray, repeated: int = 0
) -> list[Finding]:
    """Return a finding if many boxes have no assigned prior.

    Args:
      names: class names.
      labels: class of each box [n].
      counts: number of priors assigned to each box [n].
      repeated: number of duplicate boxes, which no prior can learn.
    """
    unassigned = counts == 0
    if not len(counts) or unassigned.sum() - repeated <= MANY_UNASSIGNED * len(counts):
        return []
    by_class = np.bincount(labels[unassigned], minlength=len(names))
    most = f"{by_class.max()} of them labeled {names[int(by_class.argmax())]!r}"
    return [
        Finding(
            Severity.SERIOUS if unassigned.mean() > TOO_MANY_UNASSIGNED else Severity.COSTLY,
            "unlearned_boxes",
            f"{unassigned.mean():.1%} of {len(counts)} training boxes are learned by no prior, "
            f"{most}: they are too small, too large or crowded",
            "use a larger --config.input_size",
            "train",
            int(unassigned.sum()),
        )
    ]


def shifted_iou(side: float) -> float:
    """Return the iou of a square with itself moved by one pixel in x and y."""
    common = max(side - 1, 0) ** 2
    return common / (2 * side**2 - common)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings, the most severe first; equally severe ones keep their order."""
    return sorted(findings, key=lambda finding: -finding.severity)


def _suggest_larger_input(config: Config, factor: float) -> str:
    height, width = (32 * int(np.ceil(min(factor, 2.0) * side / 32)) for side in config.input_size)
    cost = height * width / (config.input_size[0] * config.input_size[1])
    return f"--config.input_size={height},{width}, which takes {cost:.1f} times the computation"
