"""Report of `nanodet-jax doctor`, and the warnings that are printed before training."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data.class_map import match_classes
from nanodet_jax.data.duplicates import find_duplicates
from nanodet_jax.data.faults import FaultKind
from nanodet_jax.data.records import Record, Source
from nanodet_jax.data.run_length import run_length
from nanodet_jax.data.sources.in_memory import InMemorySource
from nanodet_jax.doctor import findings
from nanodet_jax.doctor.findings import Finding, Severity
from nanodet_jax.doctor.geometry import Objects, objects_at_input, priors_per_object, sample
from nanodet_jax.doctor.memory import (
    Memory,
    describe_memory,
    estimate_memory,
    findings_of_memory,
)
from nanodet_jax.doctor.scan import Scan, scan
from nanodet_jax.doctor.unannotated import find_unlabeled, find_unlisted
from nanodet_jax.errors import UserError

JSON_VERSION = 1  # version of the format that `report_to_dict` returns
BRIEF_SAMPLE = 2000  # images whose boxes are measured before training
BRIEF_FORMATS = {"coco", "voc"}  # formats whose annotations are in memory
# Images in the largest YOLO dataset that is measured before training. Reading the headers of so
# many images takes two seconds.
MAX_BRIEF_YOLO_IMAGES = 10_000


class SplitSize(NamedTuple):
    """Size of a split."""

    images: int
    unreadable: int  # of these images
    without_boxes: int  # of these images
    boxes: int  # without ignore regions


class ClassBoxCounts(NamedTuple):
    """Number of boxes of a class."""

    name: str
    train: int
    val: int


class Report(NamedTuple):
    """Findings, the most severe first, and a summary of the data."""

    name: str  # of the config
    findings: list[Finding]
    splits: dict[str, SplitSize]
    classes: list[ClassBoxCounts]  # in label order; empty if the training data cannot be opened
    memory: Memory | None  # None if the training data cannot be opened
    summary: str  # as text, with a table of the classes

    @property
    def serious(self) -> bool:
        """Whether training would stop or learn the wrong thing."""
        return any(finding.severity is Severity.SERIOUS for finding in self.findings)


def examine(config: Config, *, progress: bool = True) -> Report:
    """Read all data of a config and report problems. Nothing is written.

    A finding that merely follows from a fault in the annotations is left out.
    """
    train = scan(config, "train", progress=progress)
    val = Scan((), [], 0, [], [])
    if config.data.val != "none":
        val = scan(config, "val", progress=progress)
    # For either split, the VOC source reads the class names of the training split, so faults in the
    # training split are reported twice.
    reported = set(map(str, train.faults))
    val_faults = [fault for fault in val.faults if str(fault) not in reported]
    found = [
        *findings.of_faults(train.faults, "train", train.images, config),
        *findings.of_faults(val_faults, "val", val.images, config),
    ]
    lost = (
        findings.count_lost(train.faults, train.unreadable),
        findings.count_lost(val_faults, val.unreadable),
    )
    found += findings.of_schedule(config, train.images, lost[0])
    for split, one, hidden in (("train", train, lost[0]), ("val", val, lost[1])):
        empty = _without_boxes(one.annotated)
        found += findings.of_empty(split, empty, len(one.annotated), hidden)
        found += find_unlabeled(config, split, one.annotated)
    both = findings.Lost(*(sum(counts) for counts in zip(*lost)))
    found += find_unlisted(config, [*train.annotated, *val.annotated], both)
    duplicates = find_duplicates(train.records, val.records)
    pairs = [f"{one.name} in train is the same as {other.name} in val" for one, other in duplicates]
    found += findings.of_duplicates(pairs, val.images)
    if train.categories and val.categories:
        try:
            train, val = _with_same_classes(train, val, config.data.exclude_empty_classes)
        except UserError as error:
            found.append(findings.of_no_common_class(error))
    names = [category.name for category in train.categories]
    in_train, in_val = _per_class(train.annotated, names), None
    if names and {category.name for category in val.categories} == set(names):
        in_val = _per_class(val.annotated, names)
    found += findings.of_classes(names, in_train, in_val, lost)
    sampled = sample(train.records)
    measured = objects_at_input(sampled, config)
    counts = priors_per_object(sampled, config, len(names))
    found += findings.of_sizes(names, measured, config)
    repeated = sum(fault.kind is FaultKind.DUPLICATES for fault in train.faults)
    found += findings.of_priors(names, measured.labels, counts, repeated)
    memory = None
    if names:
        memory = estimate_memory(config, train.records, len(names))
        found += findings_of_memory(memory, config)
    lines = [
        _headline(config, train, val),
        *([] if memory is None else [describe_memory(memory, config)]),
        "",
        *_class_table(names, train, val, config, measured, counts),
    ]
    val_counts = [0] * len(names) if in_val is None else in_val.tolist()
    return Report(
        config.name,
        findings.by_severity(found),
        {"train": _size_of(train), "val": _size_of(val)},
        [ClassBoxCounts(*row) for row in zip(names, in_train.tolist(), val_counts)],
        memory,
        "\n".join(lines),
    )


def format_report(report: Report, *, all_examples: bool = False) -> str:
    """Return the report as text: findings by severity, with suggested fixes, and the summary.

    Each finding shows one example, or all of them with `all_examples`.
    """
    headings = {
        Severity.SERIOUS: "SERIOUS: training stops, or learns the wrong thing",
        Severity.COSTLY: "COSTLY: lowers AP, or wastes part of the data",
        Severity.NOTE: "NOTE",
    }
    lines = []
    for severity, heading in headings.items():
        found = [finding for finding in report.findings if finding.severity is severity]
        if found:
            lines += [heading, ""]
        for finding in found:
            lines += [*_format_finding(finding, all_examples), ""]
    if not report.findings:
        lines += ["no problems found", ""]
    if any(finding.kind in findings.FIXABLE for finding in report.findings):
        lines += ["--fix OUT writes corrected copies of the annotations to a new folder OUT", ""]
    return "\n".join([*lines, report.summary])


def format_serious(report: Report) -> str:
    """Return the serious findings about a corrected copy as text, with an example and a fix."""
    serious = [finding for finding in report.findings if finding.severity is Severity.SERIOUS]
    if not serious:
        return "no serious problems remain in the copy"
    lines = ["SERIOUS problems that remain in the copy:"]
    return "\n".join([*lines, *(line for one in serious for line in _format_finding(one, False))])


def _format_finding(finding: Finding, all_examples: bool) -> list[str]:
    shown = finding.examples[: None if all_examples else 1]
    more = len(finding.examples) - len(shown)
    return [
        f"  * {finding.title}",
        *(f"      {_printable(example)}" for example in shown),
        *([f"      and {more} more (--all lists them)"] if more else []),
        f"    -> {finding.fix}",
    ]


def report_to_dict(report: Report) -> dict[str, Any]:
    """Return the report as a dict for json, in the format that docs/training.md describes."""
    return {
        "version": JSON_VERSION,
        "config": report.name,
        "serious": report.serious,
        "findings": [
            asdict(finding)
            | {
                "severity": finding.severity.name.lower(),
                "split": finding.split or None,
                "examples": list(finding.examples),
            }
            for finding in report.findings
        ],
        "splits": {split: size._asdict() for split, size in report.splits.items()},
        "classes": [size._asdict() for size in report.classes],
        "memory": None if report.memory is None else report.memory._asdict(),
    }


def quick_warnings(config: Config, train: Source, val: Source | None) -> list[str]:
    """Return a line for each costly or serious problem that can be found without decoding images.

    Examine only annotations that are in memory, which takes about a second for COCO, and the image
    sizes of a small YOLO dataset.
    """
    found = findings.of_schedule(config, len(train))
    formats = {entry.partition(":")[0] for entry in config.data.sources} or {config.data.format}
    is_small = len(train) + (0 if val is None else len(val)) <= MAX_BRIEF_YOLO_IMAGES
    if formats <= BRIEF_FORMATS | ({"yolo"} if is_small else set()):
        names = [category.name for category in train.categories]
        records = [train[index] for index in range(len(train))]
        known = [record for record in records if record.height and record.width]
        val_records = [val[index] for index in range(len(val))] if val is not None else None
        counts = None if val_records is None else _per_class(val_records, names)
        found += findings.of_classes(names, _per_class(records, names), counts)
        found += findings.of_empty("train", _without_boxes(records), len(records))
        found += findings.of_sizes(
            names, objects_at_input(sample(known, BRIEF_SAMPLE), config), config
        )
    return [
        f"note: {finding.title} -> {finding.fix}"
        for finding in findings.by_severity(found)
        if finding.severity > Severity.NOTE
    ]


def _with_same_classes(train: Scan, val: Scan, exclude_empty: bool) -> tuple[Scan, Scan]:
    """Give both splits the classes that training would give them.

    Raises:
      UserError: if the splits have no class in common.
    """
    matched = match_classes(
        InMemorySource(train.categories, train.annotated),
        InMemorySource(val.categories, val.annotated),
        exclude_empty=exclude_empty,
    )
    relabeled = []
    for one, source in zip((train, val), matched):
        records, readable = [source[i] for i in range(len(source))], len(one.records)
        relabeled.append(
            one._replace(
                categories=source.categories,
                records=records[:readable],
                unreadable=records[readable:],
            )
        )
    train, val = relabeled
    return train, val


def _size_of(split: Scan) -> SplitSize:
    records = split.annotated
    boxes = sum(int((~record.ignore).sum()) for record in records)
    return SplitSize(split.images, len(split.unreadable), _without_boxes(records), boxes)


def _without_boxes(records: Sequence[Record]) -> int:
    return sum(bool(record.ignore.all()) for record in records)


def _per_class(records: Sequence[Record], names: Sequence[str]) -> np.ndarray:
    labels = [record.labels[~record.ignore] for record in records]
    return np.bincount(np.concatenate([np.zeros(0, np.int32), *labels]), minlength=len(names))


def _headline(config: Config, train: Scan, val: Scan) -> str:
    if not train.categories:
        return f"{config.name}: the training data cannot be opened; {val.images} validation images"
    steps_each = steps = 0
    if train.images >= config.data.batch_size:
        length = run_length(config, train.images)
        steps_each, steps = length.steps_per_epoch, length.total_steps
    return (
        f"{config.name}: {train.images} training and {val.images} validation images, "
        f"{len(train.categories)} classes; {steps_each} steps of {config.data.batch_size} images "
        f"per epoch, {steps} in the run, {config.training.warmup_steps} of them warm-up; "
        f"{_without_boxes(train.records)} training images without boxes"
    )


def _class_table(
    names: Sequence[str],
    train: Scan,
    val: Scan,
    config: Config,
    measured: Objects,
    counts: np.ndarray,
) -> list[str]:
    """Return a table of the boxes by class. Sizes and priors refer to the `measured` objects."""
    if not names:
        return []
    stride = config.model.strides[0]
    width = max(5, *(len(_printable(name)) for name in names))
    lines = [
        f"{'class':{width}}  {'train':>8}  {'val':>7}  {'median px':>9}  {f'< {stride} px':>7}  "
        f"{'priors':>6}  {'learned':>7}"
    ]
    numbers = _per_class(train.records, names), _per_class(val.records, names)
    for label, (name, in_train, in_val) in enumerate(zip(names, *numbers)):
        of_class = measured.labels == label
        line = f"{_printable(name):{width}}  {in_train:>8}  {in_val:>7}"
        if of_class.any():
            priors = counts[of_class]
            line += (
                f"  {np.median(measured.size[of_class]):>9.1f}"
                f"  {np.mean(measured.shorter[of_class] < stride):>7.1%}"
                f"  {priors.mean():>6.1f}  {np.mean(priors > 0):>7.1%}"
            )
        lines.append(line)
    return [
        *lines,
        "",
        f"(sizes in pixels of the input, {config.input_size[0]} x {config.input_size[1]}; priors: "
        "mean number of priors per box; learned: fraction of boxes with a prior; all without "
        "augmentation)",
    ]


def _printable(text: str) -> str:
    """Escape control characters and line breaks in text from a file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
