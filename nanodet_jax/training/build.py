"""Build a run: everything that the training loop uses."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from nanodet_jax.config import Config
from nanodet_jax.data.class_map import class_names
from nanodet_jax.data.pipeline import images_of_step, training_batches
from nanodet_jax.data.records import Source
from nanodet_jax.data.run_length import RunLength, run_length
from nanodet_jax.data.split import save_split
from nanodet_jax.inference.predict import Detect, make_detect
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.losses.criterion import build_criterion
from nanodet_jax.models.backbones.backbone import trained_parameters
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.runtime import distributed
from nanodet_jax.state import TrainState, abstract_variables, create_state
from nanodet_jax.structures import Batch
from nanodet_jax.training.agreement import check_agreement
from nanodet_jax.training.history import Leg
from nanodet_jax.training.hyperparameters import hyperparameters_of
from nanodet_jax.training.initial_weights import initial_variables, read_initial_weights
from nanodet_jax.training.lock import lock_for_all_processes
from nanodet_jax.training.metric_logger import MetricLogger, NullLogger
from nanodet_jax.training.optimizer import make_optimizer, scale_learning_rate
from nanodet_jax.training.parallel import (
    count_devices,
    make_adjustable_step,
    make_augment,
    make_place_batch,
    replicate,
    split_detection,
    upload_images,
)
from nanodet_jax.training.prefetch import Prefetch
from nanodet_jax.training.run_data import RunData, batches_to_measure, open_data
from nanodet_jax.training.skipped_steps import SkippedSteps
from nanodet_jax.training.step import Metrics
from nanodet_jax.training.unfold_batch_norm import is_folded, unfold
from nanodet_jax.training.workdir import (
    DATA,
    changes,
    check_same_run,
    describe_changes,
    description,
    finished_message,
    has_checkpoint,
    image_names,
    offset_after,
    previous_leg,
)

UNFOLD_BATCHES = 8


@dataclass
class Run:
    """Training run. Training assigns only `state` and `metrics` anew.

    This is a context manager. On exit it closes all files and releases the workdir.

    Attributes:
      config: resolved config, with the fields that the data defines filled in.
      workdir: folder of the run.
      train, val: the data; `val` is None with config.data.val=none.
      length: length of the run in steps and epochs.
      leg: records the start and the end of this process in the workdir.
      num_devices: number of devices that this process trains on.
      train_step: compiled function from (state, batch) to (state, metrics). It donates the state.
      augment: compiled function that converts an element of `prefetch` to a `Batch`.
      detect: compiled function; see `make_detect`.
      prefetch: yields training batches, starting at the first step of this process.
      skipped_steps: steps whose update was skipped.
      checkpoints, logger: writers of checkpoints and logs in the workdir.
      resumed: whether the state comes from a checkpoint.
      state: latest state, replicated over the devices.
      metrics: results of the latest evaluation; None before the first.
      resources: closes everything that the run has opened.
    """

    config: Config
    workdir: Path
    train: Source
    val: Source | None
    length: RunLength
    leg: Leg
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


def build(config: Config, workdir: Path) -> Run:
    """Build a new run, or resume the one in `workdir`.

    Errors in the data, in `config.training.init_weights` and in `config.training.init_backbone` are
    raised before anything is written. If anything fails later, everything that has been opened is
    closed.

    Args:
      config: already checked. It is not changed.
      workdir: created if it does not exist.

    Raises:
      UserError: for data, weights or values that cannot be used.
    """
    with ExitStack() as stack:
        num_devices = count_devices(config.training)

        # Data.
        distributed.say(f"{config.name}: reading the data")
        data = open_data(config, workdir)
        config = data.config
        weights = None if has_checkpoint(workdir) else read_initial_weights(config)

        # Workdir. Read its content only after locking it, because another run may have saved a
        # checkpoint just before it ended.
        lock = lock_for_all_processes(workdir)
        if lock is not None:
            stack.callback(lock.release)
        resumed = distributed.gather(has_checkpoint(workdir))[0]

        # Check whether the run in the workdir can be resumed with this config and data.
        names, classes = image_names(data.train, data.val), tuple(class_names(data.train))
        about = description(config, classes, workdir)
        previous = previous_leg(workdir) if resumed else None
        if previous is not None:
            check_same_run(workdir, previous, config, classes, names)

        # Network and state, from the newest checkpoint or from initial weights.
        distributed.say(f"{config.name}: building the network")
        model = build_model(config.model, config.precision)
        training = scale_learning_rate(config.training, config.data.batch_size)
        # This optimizer only initializes the state, so its schedule is irrelevant.
        optimizer = make_optimizer(
            training, lambda step: jnp.float32(0), trained=trained_parameters(config.model)
        )
        new_state = partial(create_state, optimizer=optimizer, ema=training.ema_decay > 0)
        if not resumed:
            weights = read_initial_weights(config) if weights is None else weights
            variables, origin = initial_variables(config, model, weights)
        checkpoints = stack.enter_context(closing(Checkpoints(workdir)))
        metrics = None
        if resumed:
            like = jax.eval_shape(new_state, abstract_variables(model, guided=True))
            state, variables = checkpoints.restore_latest(like), None
            metrics = checkpoints.metrics(int(state.step))
            origin = f"resuming at step {int(state.step)}"
        else:
            state = new_state(variables)

        # Position in the data, and length of the run.
        start_step, length = int(state.step), data.length
        if previous is not None:
            offset = offset_after(previous, config, start_step, length.steps_per_epoch)
            length = run_length(config, len(data.train), offset)
        if training.keep_every:
            checkpoints.keep = partial(length.is_due, training.keep_every)

        # Logs.
        finished = resumed and start_step >= length.total_steps
        evaluated = metrics is not None or data.val is None
        logger: MetricLogger | NullLogger = NullLogger()
        if distributed.is_writer() and not (finished and evaluated):
            logger = MetricLogger(
                workdir, start_step, length.total_steps, start_evaluated=metrics is not None
            )
        stack.enter_context(closing(logger))
        if distributed.is_writer() and config.data.val_fraction and data.val is not None:
            for note in save_split(workdir, config.data, data.train, data.val):
                logger.say(note)
        logger.say(data.images.describe())
        stored = upload_images(data.images, num_devices) if config.data.cache == "device" else None
        if variables is not None and is_folded(variables):
            batches = batches_to_measure(data, UNFOLD_BATCHES)
            state = new_state(unfold(model, variables, batches))
            origin += f"; statistics of its folded batch norms measured on {UNFOLD_BATCHES} batches"
        _announce(logger, data, length, training.learning_rate, num_devices, origin)
        changed = {} if previous is None else changes(previous.config, config)
        if finished:
            distributed.say(finished_message(workdir, training, start_step, length))
        elif previous is not None:
            lines = list(describe_changes(changed, previous.names, names))
            if lines:
                logger.say("changed since the last leg of this run:")
            for line in lines:
                logger.say(f"  {line}")
        check_agreement(config, data.train, data.val, state)

        # Compiled step.
        hyperparameters = hyperparameters_of(config, training, length)
        placed = replicate(hyperparameters, num_devices)
        train_step = make_adjustable_step(
            model=model,
            criterion=build_criterion(config),
            training=training,
            num_devices=num_devices,
        )

        # Batches.
        batches = training_batches(
            data.images,
            config,
            data.slots,
            start_step + length.offset,
            (jax.process_index(), jax.process_count()),
        )
        prefetch = stack.enter_context(closing(Prefetch(batches, make_place_batch(num_devices))))
        facts = {
            "steps_per_epoch": length.steps_per_epoch,
            "offset": length.offset,
            "changes": changed,
            "data": {"train": len(names.train), "val": len(names.val), "digest": names.digest},
        }
        files = {"config.json": about["config"], DATA: names._asdict()}
        leg = Leg(workdir, files, about, start_step, facts, writing=distributed.is_writer())
        stack.enter_context(leg)
        return Run(
            config=config,
            workdir=workdir,
            train=data.train,
            val=data.val,
            length=length,
            leg=leg,
            num_devices=num_devices,
            train_step=lambda state, batch: train_step(state, batch, placed),
            augment=make_augment(config, num_devices, stored),
            detect=make_detect(model, split_detection(num_devices)),
            prefetch=prefetch,
            skipped_steps=SkippedSteps(
                training.max_skipped,
                lambda step: images_of_step(data.train, config, step + length.offset),
            ),
            checkpoints=checkpoints,
            logger=logger,
            resumed=resumed,
            state=replicate(state, num_devices),
            metrics=metrics,
            resources=stack.pop_all(),
        )


def _announce(
    logger: MetricLogger | NullLogger,
    data: RunData,
    length: RunLength,
    rate: float,
    num_devices: int,
    origin: str,
) -> None:
    """Print what is about to be trained, on which devices, and from which weights."""
    config = data.config
    batch_size, processes = config.data.batch_size, jax.process_count()
    val_images = "no" if data.val is None else len(data.val)
    all_devices = num_devices * processes
    logger.say(
        f"{config.name}: {len(data.train)} training and {val_images} validation images, "
        f"{len(data.train.categories)} classes, {data.slots} box slots; {length.total_steps} steps "
        f"({length.steps_per_epoch} per epoch) of {batch_size} images, "
        f"{batch_size // all_devices} on each of {all_devices} {jax.default_backend()} device(s)"
        + (f" of {processes} processes" if processes > 1 else "")
        + f"; {origin}"
    )
    if config.training.lr_base_batch_size:
        logger.say(
            f"learning rate {rate:g} for batches of {batch_size} images: "
            f"config.training.learning_rate={config.training.learning_rate:g} is for batches of "
            f"{config.training.lr_base_batch_size}"
        )
    if data.images_over_limit:
        names, counts = zip(*data.images_over_limit)
        logger.say(
            f"note: config.data.max_boxes={data.slots} leaves out {sum(counts)} boxes in "
            f"{len(names)} images, the first of which is {names[0]}; 0 keeps all boxes"
        )
