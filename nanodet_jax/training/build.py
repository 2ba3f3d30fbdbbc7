"""Build a run: everything that the training loop works with."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from nanodet_jax.config import Config
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import count_slots, images_of_step, training_batches
from nanodet_jax.data.records import Source
from nanodet_jax.data.run_length import RunLength, run_length
from nanodet_jax.doctor.report import brief
from nanodet_jax.errors import UserError
from nanodet_jax.inference.predict import Detect, make_detect
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.losses.criterion import build_criterion
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.progress import track
from nanodet_jax.runtime import distributed
from nanodet_jax.state import TrainState, abstract_variables, create_state
from nanodet_jax.structures import Array, Batch
from nanodet_jax.terminal import join_first
from nanodet_jax.training.agreement import check_agreement
from nanodet_jax.training.initial_weights import initial_variables, read_initial_weights
from nanodet_jax.training.lock import lock_for_all_processes
from nanodet_jax.training.metric_logger import MetricLogger, NullLogger
from nanodet_jax.training.optimizer import learning_rate, make_optimizer, scale_learning_rate
from nanodet_jax.training.parallel import (
    count_devices,
    make_augment,
    make_place_batch,
    make_train_step,
    replicate,
    split_detection,
    upload_images,
)
from nanodet_jax.training.prefetch import Prefetch
from nanodet_jax.training.skipped_steps import SkippedSteps
from nanodet_jax.training.step import Metrics
from nanodet_jax.training.unfold_batch_norm import is_folded, unfold
from nanodet_jax.training.workdir import has_checkpoint, prepare_workdir

UNFOLD_BATCHES = 8


@dataclass
class Run:
    """Training run. Only `state` and `metrics` change while it trains.

    A context manager: on exit it closes all files and releases the workdir.

    Attributes:
      config: resolved, with what the data defines filled in.
      workdir: of the run.
      train, val: the data.
      length: in steps and epochs.
      num_devices: number of devices of this process that train.
      train_step: compiled; (state, batch) to (state, metrics). Donates the state.
      augment: compiled; converts an element of `prefetch` to a `Batch`.
      detect: compiled; see `make_detect`.
      prefetch: training batches, from the first step of this process on.
      skipped_steps: steps whose update was skipped.
      checkpoints, logger: write to the workdir.
      resumed: whether the state comes from a checkpoint.
      state: newest state; replicated over the devices.
      metrics: of the newest evaluation; None before the first.
      resources: closes everything that the run has opened.
    """

    config: Config
    workdir: Path
    train: Source
    val: Source
    length: RunLength
    num_devices: int
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    augment: Callable[[Any], Batch]
    detect: Detect
    prefetch: Prefetch[Any, Any]
    skipped_steps: SkippedSteps
    checkpoints: Checkpoints
    logger: MetricLogger | NullLogger
    resumed: bool
    state: TrainState
    metrics: dict[str, Any] | None
    resources: ExitStack

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self.resources.__exit__(*error)


@dataclass(frozen=True)
class _Data:
    """Opened data of a run, and what follows from it."""

    config: Config  # resolved
    train: Source
    val: Source
    images: TrainingImages
    slots: int  # ground-truth slots of an image
    over: list[tuple[str, int]]  # images with more boxes than slots, and how many do not fit
    length: RunLength


def build(config: Config, workdir: Path) -> Run:
    """Build a new run, or the one in `workdir` to resume it.

    Errors in the data and in `config.training.init_weights` are raised before anything is written.
    If a later part fails, everything that has been opened is closed.

    Args:
      config: checked; not changed.
      workdir: created if it does not exist.

    Raises:
      UserError: for data, weights or values that cannot be used.
    """
    with ExitStack() as stack:
        num_devices = count_devices(config.training)

        # Data.
        distributed.say(f"{config.name}: reading the data")
        data = _open_data(config)
        config, length = data.config, data.length
        weights = None if has_checkpoint(workdir) else read_initial_weights(config)

        # Workdir. Whatever depends on its content comes after the lock, since another run may have
        # saved a checkpoint just before it ended.
        lock = lock_for_all_processes(workdir)
        if lock is not None:
            stack.callback(lock.release)
        resumed = distributed.gather(has_checkpoint(workdir))[0]

        # Network, optimizer and compiled functions.
        distributed.say(f"{config.name}: building the network")
        model = build_model(config.model, config.precision)
        variables, origin = None, ""
        if not resumed:
            weights = read_initial_weights(config) if weights is None else weights
            variables, origin = initial_variables(config, model, weights)
        training = scale_learning_rate(config.training, config.data.batch_size)
        schedule = learning_rate(training, length.steps_per_epoch, length.epochs)
        optimizer = make_optimizer(training, schedule)
        train_step = make_train_step(
            model=model,
            criterion=build_criterion(config),
            optimizer=optimizer,
            schedule=schedule,
            ema_decay=training.ema_decay,
            detach_step=training.detach_epoch * length.steps_per_epoch,
            accumulate=training.accumulate,
            num_devices=num_devices,
        )

        # State, from the newest checkpoint or from initial weights.
        prepare_workdir(workdir, config, data.train)
        keep_every_steps = training.keep_every * length.steps_per_epoch
        checkpoints = stack.enter_context(closing(Checkpoints(workdir, keep_every_steps)))
        new_state = partial(create_state, optimizer=optimizer, ema=training.ema_decay > 0)
        metrics = None
        if resumed:
            like = jax.eval_shape(new_state, abstract_variables(model, guided=True))
            state = checkpoints.restore_latest(like)
            metrics = checkpoints.metrics(int(state.step))
            origin = f"resuming at step {int(state.step)}"
        else:
            state = new_state(variables)
        start_step = int(state.step)
        logger: MetricLogger | NullLogger = NullLogger()
        if distributed.is_writer():
            total_steps = length.total_steps
            logger = MetricLogger(
                workdir, start_step, total_steps, start_evaluated=metrics is not None
            )
        stack.enter_context(closing(logger))
        logger.say(data.images.describe())
        stored = upload_images(data.images, num_devices) if config.data.cache == "device" else None
        if variables is not None and is_folded(variables):
            state = new_state(unfold(model, variables, _batches_to_measure(data)))
            origin += f"; statistics of its folded batch norms measured on {UNFOLD_BATCHES} batches"
        _announce(logger, data, training.learning_rate, num_devices, origin)
        check_agreement(config, data.train, data.val, state)

        # Batches.
        batches = training_batches(
            data.images, config, data.slots, start_step, (jax.process_index(), jax.process_count())
        )
        prefetch = stack.enter_context(closing(Prefetch(batches, make_place_batch(num_devices))))
        return Run(
            config=config,
            workdir=workdir,
            train=data.train,
            val=data.val,
            length=length,
            num_devices=num_devices,
            train_step=train_step,
            augment=make_augment(config, num_devices, stored),
            detect=make_detect(model, split_detection(num_devices)),
            prefetch=prefetch,
            skipped_steps=SkippedSteps(
                training.max_skipped, partial(images_of_step, data.train, config)
            ),
            checkpoints=checkpoints,
            logger=logger,
            resumed=resumed,
            state=replicate(state, num_devices),
            metrics=metrics,
            resources=stack.pop_all(),
        )


def _open_data(config: Config) -> _Data:
    train, val = open_source(config, "train"), open_source(config, "val")
    config = resolve(config, train, val)
    length = run_length(config, len(train))
    for line in brief(config, train, val):
        distributed.say(line)
    slots, over = count_slots(train, config.data.max_boxes)
    return _Data(config, train, val, TrainingImages(train, config), slots, over, length)


def resolve(config: Config, train: Source, val: Source) -> Config:
    """Copy a config and fill in what the data defines: the number of classes.

    Raises:
      UserError: if the config or the validation data disagree with the training data.
    """
    names = [category.name for category in train.categories]
    val_names = [category.name for category in val.categories]
    if val_names != names:
        raise UserError(
            "training and validation data must have the same classes in the same order; got "
            f"{join_first(names)} for training, {join_first(val_names)} for validation"
        )
    if config.model.num_classes not in (0, len(names)):
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}: the data has {len(names)} "
            f"({join_first(names)}); leave it at 0"
        )
    resolved = copy.deepcopy(config)
    resolved.model.num_classes = len(names)
    return resolved


def _batches_to_measure(data: _Data) -> Iterator[Array]:
    """Yield the images of training batches, to measure batch statistics on.

    Every process builds the whole batches on the host, so they are the same in every process.
    """
    on_host = copy.deepcopy(data.config)
    on_host.data.augment, on_host.data.cache = "host", "none"
    batches, augment = training_batches(data.train, on_host, data.slots), make_augment(on_host)
    steps = range(UNFOLD_BATCHES)
    for _ in track(steps, UNFOLD_BATCHES, "measuring batch norms", "batches"):
        yield augment(next(batches)).images


def _announce(
    logger: MetricLogger | NullLogger,
    data: _Data,
    rate: float,
    num_devices: int,
    origin: str,
) -> None:
    """Print what is about to be trained, on which devices, and from which weights."""
    config, length = data.config, data.length
    batch_size, processes = config.data.batch_size, jax.process_count()
    all_devices = num_devices * processes
    logger.say(
        f"{config.name}: {len(data.train)} training and {len(data.val)} validation images, "
        f"{len(data.train.categories)} classes, {data.slots} box slots; {length.total_steps} steps "
        f"({length.steps_per_epoch} an epoch) of {batch_size} images, "
        f"{batch_size // all_devices} on each of {all_devices} {jax.default_backend()} device(s)"
        + (f" of {processes} processes" if processes > 1 else "")
        + f"; {origin}"
    )
    if config.training.lr_base_batch_size:
        logger.say(
            f"learning rate {rate:g} for {batch_size} images: config.training.learning_rate="
            f"{config.training.learning_rate:g} is for {config.training.lr_base_batch_size}"
        )
    if data.over:
        logger.say(
            f"note: config.data.max_boxes={data.slots} leaves out "
            f"{sum(count for _, count in data.over)} boxes of {len(data.over)} images, the "
            f"first of which is {data.over[0][0]}; 0 keeps all boxes"
        )
