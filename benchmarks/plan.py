"""What is measured, in which order: tasks, each of which yields rows of the table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import compilation, inference, loader, step, training
from benchmarks.measuring import Build, Job, measure
from benchmarks.processes import fresh, warm
from benchmarks.reference import Reference
from benchmarks.subject import Subject
from benchmarks.timing import Effort, Row

SLOTS = (20, 100, 300)  # for boxes: growth of assignment and loss
SHAPES = "configs/shapes.py"
# How images reach the device, as fields of config.data.
PLAIN = {"cache": "none", "augment": "host"}
KEPT = {"cache": "ram", "augment": "host"}
WARPED_THERE = {"cache": "ram", "augment": "device"}
KEPT_THERE = {"cache": "device", "augment": "device"}


class Scale(NamedTuple):
    """What suits a kind of device."""

    batch: int  # of a training step
    batches: tuple[int, ...]  # of inference, and of the growth of a step
    sizes: tuple[int, ...]  # growth of a step: sides of the input
    log_every: int  # steps of a line of log in training end to end
    kept: dict[str, str]  # the best way of images to the device
    all_wide: bool  # growth of all networks, or where that would take an hour of the first alone


ON_CPU = Scale(8, (1, 8, 32), (320, 416), 4, WARPED_THERE, False)
ON_ACCELERATOR = Scale(256, (1, 8, 32, 256), (320, 416, 640), 50, KEPT_THERE, True)


@dataclass(frozen=True)
class Setting:
    """What the command line and the machine decide."""

    configs: tuple[str, ...]  # FILE[:VARIANT]
    precisions: tuple[str, ...]
    scale: Scale
    effort: Effort
    cache: Path  # of compiled programs
    files: Path  # a folder with photographs
    cpus: int
    quick: bool = False  # the most telling rows alone
    reference: Reference | None = None
    images: Path | None = None  # of the loader and of training end to end; None: drawn shapes
    annotations: Path | None = None

    def data(self, way: dict[str, str], workers: int) -> dict[str, Any]:
        """Fields of config.data."""
        fields = loader.data_fields(self.images, self.annotations)
        return fields | way | {"batch_size": self.scale.batch, "workers": workers}


class Task(NamedTuple):
    """Rows that are measured together. The name of a row is the task's, and its own."""

    name: str
    rows: Callable[[], dict[str, Row]]


def tasks(setting: Setting) -> Iterator[Task]:
    """All tasks. What is compiled for one is in the cache for the next."""
    for precision in setting.precisions:
        for file in setting.configs:
            first = file == setting.configs[0]
            wide = (first or setting.scale.all_wide) and not setting.quick
            subject = Subject(file, precision, setting.scale.batch)
            yield from _step(setting, subject)
            yield from _inference(setting, subject)
            yield from _training(setting, subject, wide)
            yield from _growth(setting, subject) if wide else ()
    yield from _loader(setting)
    if not setting.quick:
        flags = [f"--config={SHAPES}"]
        yield Task(f"train.py --config {SHAPES}: start", partial(training.start_up, flags))


def _timed(setting: Setting, name: str, build: Build, subject: Subject, original: str = "") -> Task:
    job = Job(build, subject, setting.effort, setting.reference, original)
    return Task(f"{subject.label}: {name}", partial(warm, measure, job, cache=setting.cache))


def _step(setting: Setting, subject: Subject) -> Iterator[Task]:
    """The step, its compilation, its parts; assignment and loss with more and more slots."""
    timed, batch = partial(_timed, setting), subject.batch
    yield Task(
        f"{subject.label}: first step, batch {batch}",
        partial(compilation.cold_and_warm, subject, setting.cache),
    )
    yield timed(f"training step, batch {batch}", step.training_step, subject, "step")
    if setting.quick:
        return
    parts = timed(f"parts, batch {batch}", step.parts, subject)
    yield parts._replace(rows=lambda: step.with_backward(parts.rows()))
    for slots in SLOTS:
        at = replace(subject, slots=slots)
        name = f"assignment + loss + gradient, batch {batch}, {slots} slots"
        yield timed(name, step.assignment_and_loss, at)


def _inference(setting: Setting, subject: Subject) -> Iterator[Task]:
    """From images on the device, and from files."""
    files = partial(inference.files_to_boxes, folder=setting.files)
    for batch in setting.scale.batches[: 1 if setting.quick else None]:
        at = replace(subject, batch=batch)
        timed = partial(_timed, setting)
        yield timed(f"network, batch {batch}", inference.network, at, "network")
        yield timed(f"network + suppression, batch {batch}", inference.network_and_boxes, at)
        yield timed(f"image files to boxes, batch {batch}", files, at)


def _training(setting: Setting, subject: Subject, wide: bool) -> Iterator[Task]:
    """What the device does to images, and `train.py`: with data as it comes, with data kept."""
    if wide:
        pixels = partial(
            loader.pixels_on_device, data=setting.data(setting.scale.kept, setting.cpus)
        )
        name = f"pixels on the device, batch {subject.batch}"
        yield _timed(setting, name, pixels, subject)
    for way in (PLAIN, setting.scale.kept) if wide else (setting.scale.kept,):
        fields = setting.data(way, setting.cpus)
        flags = [
            f"--config={subject.file}",
            f"--config.training.log_every={setting.scale.log_every}",
            f"--config.precision={subject.precision}",
            *(f"--config.data.{field}={value}" for field, value in fields.items()),
        ]
        yield Task(
            f"{subject.label}: training, batch {subject.batch}, {_name(way)}",
            partial(training.end_to_end, flags, setting.cache, setting.effort),
        )


def _growth(setting: Setting, subject: Subject) -> Iterator[Task]:
    """The step with the batch and the size of the input."""
    timed, batch = partial(_timed, setting), subject.batch
    for count in setting.scale.batches:
        if count != batch:
            at = replace(subject, batch=count)
            yield timed(f"training step, batch {count}", step.training_step, at)
    for size in setting.scale.sizes:
        if size != subject.load().input_size[0]:
            at = replace(subject, size=size)
            yield timed(f"training step, batch {batch}, size {size}", step.training_step, at)


def _loader(setting: Setting) -> Iterator[Task]:
    """The loader alone: with more and more workers, and with data that is kept."""
    file, most = setting.configs[0], setting.cpus
    workers = sorted({2**i for i in range(most.bit_length())} | {most})
    rows = [(PLAIN, count) for count in workers] + [(KEPT, most), (WARPED_THERE, most)]
    for way, count in rows[-1:] if setting.quick else rows:
        arguments = (file, setting.data(way, count), setting.effort.seconds)
        yield Task(
            f"{Subject(file).load().name}: loader, {_name(way)}, workers {count}",
            partial(fresh, loader.load, *arguments, cache=setting.cache),
        )


def _name(way: dict[str, str]) -> str:
    return ", ".join(f"{field} {value}" for field, value in way.items())
