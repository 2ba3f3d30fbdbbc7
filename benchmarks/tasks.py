"""Tasks of the benchmark, in order. Each measures one or more rows of the table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import compilation, inference, loader, step, training
from benchmarks.measure import Build, Job, measure
from benchmarks.processes import run_in_new_process, run_with_warm_cache
from benchmarks.reference import Reference
from benchmarks.timing import Repeats, Row
from benchmarks.workload import Workload

SLOTS = (20, 100, 300)  # ground-truth slots, for the growth of assignment and loss
SHAPES = "configs/shapes.py"
# Modes of the data pipeline, as fields of config.data.
UNCACHED = {"cache": "none", "augment": "host"}
RAM_CACHE = {"cache": "ram", "augment": "host"}
DEVICE_AUGMENT = {"cache": "ram", "augment": "device"}
DEVICE_CACHE = {"cache": "device", "augment": "device"}


class Scale(NamedTuple):
    """Sizes of the measurements on a kind of device."""

    batch: int  # images in a training step
    batches: tuple[int, ...]  # for inference, and for the growth of a step
    sizes: tuple[int, ...]  # sides of the input, for the growth of a step
    log_every: int  # steps per log line, for `training.end_to_end`
    data_mode: dict[str, str]  # the fastest mode of the data pipeline
    growth_of_all: bool  # measure the growth of all networks, or only of the first to save time


ON_CPU = Scale(8, (1, 8, 32), (320, 416), 4, DEVICE_AUGMENT, False)
ON_ACCELERATOR = Scale(256, (1, 8, 32, 256), (320, 416, 640), 50, DEVICE_CACHE, True)


@dataclass(frozen=True)
class Settings:
    """Settings from the command line and the machine."""

    configs: tuple[str, ...]  # FILE[:VARIANT], measured in full
    networks: tuple[str, ...]  # FILE[:VARIANT], for which only the network is measured
    precisions: tuple[str, ...]
    scale: Scale
    repeats: Repeats
    cache: Path  # of compiled programs
    files: Path  # folder of image files, for inference
    cpus: int
    quick: bool = False  # only the most informative rows
    reference: Reference | None = None
    images: Path | None = None  # for the loader and `training.end_to_end`; None: drawn shapes
    annotations: Path | None = None

    def data(self, mode: dict[str, str], workers: int) -> dict[str, Any]:
        """Return fields of config.data."""
        fields = loader.data_fields(self.images, self.annotations)
        return fields | mode | {"batch_size": self.scale.batch, "workers": workers}


class Task(NamedTuple):
    """Rows that are measured together; their names start with the name of the task."""

    name: str
    rows: Callable[[], dict[str, Row]]


def tasks(settings: Settings) -> Iterator[Task]:
    """Yield all tasks. Programs that one task compiles are in the cache for later tasks."""
    for precision in settings.precisions:
        for file in settings.configs:
            first = file == settings.configs[0]
            detailed = (first or settings.scale.growth_of_all) and not settings.quick
            workload = Workload(file, precision, settings.scale.batch)
            yield from _step(settings, workload)
            yield from _inference(settings, workload)
            yield from _training(settings, workload, detailed)
            yield from _growth(settings, workload) if detailed else ()
    for file in settings.networks:
        workload = Workload(file, settings.precisions[0], batch=1)
        yield _timed(settings, "network, batch 1", inference.network, workload)
    yield from _loader(settings)
    if not settings.quick:
        flags = [f"--config={SHAPES}"]
        yield Task(f"train.py --config {SHAPES}: start", partial(training.start_up, flags))


def _timed(
    settings: Settings, name: str, build: Build, workload: Workload, original: str = ""
) -> Task:
    job = Job(build, workload, settings.repeats, settings.reference, original)
    return Task(
        f"{workload.label}: {name}",
        partial(run_with_warm_cache, measure, job, cache=settings.cache),
    )


def _step(settings: Settings, workload: Workload) -> Iterator[Task]:
    """Yield tasks for the step, its compilation and its parts, and for assignment by slots."""
    timed, batch = partial(_timed, settings), workload.batch
    yield Task(
        f"{workload.label}: first step, batch {batch}",
        partial(compilation.cold_and_warm, workload, settings.cache),
    )
    yield timed(f"training step, batch {batch}", step.training_step, workload, "step")
    if settings.quick:
        return
    parts = timed(f"parts, batch {batch}", step.parts, workload)
    yield parts._replace(rows=lambda: step.with_backward(parts.rows()))
    for slots in SLOTS:
        at = replace(workload, slots=slots)
        name = f"assignment + loss + gradient, batch {batch}, {slots} slots"
        yield timed(name, step.assignment_and_loss, at)


def _inference(settings: Settings, workload: Workload) -> Iterator[Task]:
    """Yield tasks for inference on images on the device, and on image files, by batch size."""
    files = partial(inference.files_to_boxes, folder=settings.files)
    for batch in settings.scale.batches[: 1 if settings.quick else None]:
        at = replace(workload, batch=batch)
        timed = partial(_timed, settings)
        yield timed(f"network, batch {batch}", inference.network, at, "network")
        yield timed(f"network + suppression, batch {batch}", inference.network_and_boxes, at)
        yield timed(f"image files to boxes, batch {batch}", files, at)


def _training(settings: Settings, workload: Workload, detailed: bool) -> Iterator[Task]:
    """Yield a task for `train.py` with a cache of images.

    If `detailed` is set, also yield tasks for `train.py` without this cache, and for augmentation
    on the device.
    """
    if detailed:
        pixels = partial(
            loader.augment_on_device, data=settings.data(settings.scale.data_mode, settings.cpus)
        )
        name = f"pixels on the device, batch {workload.batch}"
        yield _timed(settings, name, pixels, workload)
    data_mode = settings.scale.data_mode
    for mode in (UNCACHED, data_mode) if detailed else (data_mode,):
        fields = settings.data(mode, settings.cpus)
        flags = [
            f"--config={workload.file}",
            f"--config.training.log_every={settings.scale.log_every}",
            f"--config.precision={workload.precision}",
            *(f"--config.data.{field}={value}" for field, value in fields.items()),
        ]
        yield Task(
            f"{workload.label}: training, batch {workload.batch}, {_name(mode)}",
            partial(training.end_to_end, flags, settings.cache, settings.repeats),
        )


def _growth(settings: Settings, workload: Workload) -> Iterator[Task]:
    """Yield tasks for the step by batch size and by input size."""
    timed, batch = partial(_timed, settings), workload.batch
    for count in settings.scale.batches:
        if count != batch:
            at = replace(workload, batch=count)
            yield timed(f"training step, batch {count}", step.training_step, at)
    for size in settings.scale.sizes:
        if size != workload.load().input_size[0]:
            at = replace(workload, size=size)
            yield timed(f"training step, batch {batch}, size {size}", step.training_step, at)


def _loader(settings: Settings) -> Iterator[Task]:
    """Yield tasks for the data loader by number of workers, and with a cache."""
    file, cpus = settings.configs[0], settings.cpus
    workers = sorted({2**i for i in range(cpus.bit_length())} | {cpus})
    rows = [(UNCACHED, count) for count in workers] + [(RAM_CACHE, cpus), (DEVICE_AUGMENT, cpus)]
    for mode, count in rows[-1:] if settings.quick else rows:
        arguments = (file, settings.data(mode, count), settings.repeats.seconds)
        yield Task(
            f"{Workload(file).load().name}: loader, {_name(mode)}, workers {count}",
            partial(run_in_new_process, loader.load, *arguments, cache=settings.cache),
        )


def _name(mode: dict[str, str]) -> str:
    return ", ".join(f"{field} {value}" for field, value in mode.items())
