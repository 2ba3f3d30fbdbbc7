"""The training loop: read it from top to bottom."""

import copy
import time
from contextlib import ExitStack, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from nanodet_jax.config import Config, check
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import count_slots, images_of_step, steps_per_epoch, training_batches
from nanodet_jax.doctor.report import brief
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation import evaluate
from nanodet_jax.inference.predict import make_detect
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.models.nanodet import build_model, priors_of
from nanodet_jax.runtime import backend, distributed
from nanodet_jax.state import abstract_variables, create_state
from nanodet_jax.training.interrupt import Aborted, Interrupt
from nanodet_jax.training.lock import lock_for_all_processes
from nanodet_jax.training.metric_logger import MetricLogger, NullLogger
from nanodet_jax.training.optimizer import learning_rate, make_optimizer, scale_rate
from nanodet_jax.training.parallel import (
    count_devices,
    make_place,
    make_render,
    make_train_step,
    own_copy,
    own_part,
    replicate,
    split_detection,
    store,
)
from nanodet_jax.training.prefetch import Prefetch
from nanodet_jax.training.setup import (
    agree,
    draw_batch,
    has_checkpoint,
    initial_entries,
    initial_variables,
    prepare_workdir,
    resolve,
)
from nanodet_jax.training.skipped_steps import SkippedSteps
from nanodet_jax.training.unfold_batch_norm import is_folded, unfold

VAL_PICTURES = 8
UNFOLD_BATCHES = 8


@distributed.ends_with_the_others
def train_and_evaluate(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Train as `config` says, or go on with the run in `workdir`; evaluate; keep the best.

    Args:
      config: not changed; what is left to the data is filled in and kept in the workdir.
      workdir: made if need be. Holds `config.json`, `about.json`, `metrics.jsonl`,
        `checkpoints/`, `pictures/`, `tensorboard/`. Several processes have to see the same one.

    Returns:
      Metrics of the last evaluation, as `evaluation.coco_metrics` gives them.

    Raises:
      UserError: for data, weights or values that cannot be used, before anything is compiled.
      KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, once the state is saved.
    """
    check(config)
    backend.prepare()
    distributed.join(config.training)
    workdir = Path(workdir).expanduser()
    check(config, count_devices(config.training) * distributed.share()[1])
    with ExitStack() as held:
        return _train_and_evaluate(config, workdir, held)


def _train_and_evaluate(config: Config, workdir: Path, held: ExitStack) -> dict[str, Any]:
    process = distributed.share()
    num_devices = count_devices(config.training)
    all_devices = num_devices * process[1]
    distributed.say(f"{config.name}: reading the data")
    train, val = open_source(config, "train"), open_source(config, "val")
    config = resolve(config, train, val)
    steps_each = steps_per_epoch(train, config.data.batch_size)
    total_steps = config.training.steps or config.training.epochs * steps_each
    epochs = -(-total_steps // steps_each)
    for line in brief(config, train, val):
        distributed.say(line)
    slots, over = count_slots(train, config.data.max_boxes)
    images = TrainingImages(train, config)

    # A fault in these is reported before anything is created.
    entries = None if has_checkpoint(workdir) else initial_entries(config)

    # Everything that decides by what is in the workdir comes after the lock. Another run may have
    # saved just before it ended.
    workdir_lock = lock_for_all_processes(workdir)
    if workdir_lock is not None:
        held.callback(workdir_lock.release)
    resuming = distributed.gather(has_checkpoint(workdir))[0]
    distributed.say(f"{config.name}: building the network")
    model = build_model(config.model, config.precision)
    variables, origin = None, ""
    if not resuming:
        entries = initial_entries(config) if entries is None else entries
        variables, origin = initial_variables(config, model, entries)
    training = scale_rate(config.training, config.data.batch_size)
    schedule = learning_rate(training, steps_each, epochs)
    optimizer = make_optimizer(training, schedule)
    train_step = make_train_step(
        optimizer,
        schedule,
        num_devices,
        model=model,
        priors=priors_of(config.model, config.input_size),
        assigner=config.assigner,
        compat=config.compat,
        weights=config.loss,
        ema_decay=config.training.ema_decay,
        accumulate=config.training.accumulate,
        detach_step=config.training.detach_epoch * steps_each,
    )
    detect = make_detect(model, split_detection(num_devices))
    begin_with = partial(create_state, optimizer=optimizer, ema=config.training.ema_decay > 0)

    prepare_workdir(workdir, config, train)
    checkpoints = Checkpoints(workdir, config.training.keep_every * steps_each)
    metrics = None
    if resuming:
        like = jax.eval_shape(begin_with, abstract_variables(model, guided=True))
        state = checkpoints.restore_newest(like)
        metrics = checkpoints.metrics(int(state.step))
        origin = f"resuming at step {int(state.step)}"
    else:
        state = begin_with(variables)
    start_step = int(state.step)
    logger: MetricLogger | NullLogger = NullLogger()
    if distributed.is_writer():
        logger = MetricLogger(workdir, start_step, total_steps, start_evaluated=metrics is not None)
    logger.say(images.describe())
    stored = store(images, num_devices) if config.data.cache == "device" else None
    render = make_render(config, num_devices, stored)
    if variables is not None and is_folded(variables):
        # Of whole batches, and on the host: the same in every process.
        on_host = copy.deepcopy(config)
        on_host.data.augment, on_host.data.cache = "host", "none"
        measured, as_batch = training_batches(train, on_host, slots), make_render(on_host)
        inputs = (
            as_batch(next(measured)).images
            for _ in tqdm(range(UNFOLD_BATCHES), "measuring batch norms", leave=False)
        )
        state = begin_with(unfold(model, variables, inputs))
        origin += f"; batch norms, folded there, measured on {UNFOLD_BATCHES} batches"
    logger.say(
        f"{config.name}: {len(train)} training and {len(val)} validation images, "
        f"{len(train.categories)} classes, {slots} box slots; {total_steps} steps "
        f"({steps_each} an epoch) of {config.data.batch_size} images, "
        f"{config.data.batch_size // all_devices} on each of {all_devices} "
        f"{jax.default_backend()} device(s)"
        + (f" of {process[1]} processes" if process[1] > 1 else "")
        + f"; {origin}"
    )
    if config.training.rate_batch:
        logger.say(
            f"learning rate {training.learning_rate:g}: {config.training.learning_rate:g}, meant "
            f"for {config.training.rate_batch} images, for {config.data.batch_size}"
        )
    if over:
        logger.say(
            f"note: config.data.max_boxes={slots} leaves out {sum(n for _, n in over)} boxes of "
            f"{len(over)} images, of {over[0][0]} first; 0 keeps all"
        )

    agree(config, train, val, state)
    state = replicate(state, num_devices)
    if start_step < total_steps:
        logger.say("compiling the first step: a minute or two, once; later runs take it from disk")

    def due(every: int, step: int) -> bool:
        return step == total_steps or (step % steps_each == 0 and step // steps_each % every == 0)

    skips = SkippedSteps(
        config.training.max_skipped, lambda step: images_of_step(train, config, step)
    )
    batches = training_batches(images, config, slots, start_step, process)
    prefetch = Prefetch(batches, make_place(num_devices))
    with closing(checkpoints), closing(logger), closing(prefetch), Interrupt() as interrupt:

        def evaluate_now(step: int) -> dict[str, Any] | None:
            result = None
            # Of several processes one that drops its work would leave the others waiting.
            judging = interrupt.abort_on_signal if process[1] == 1 else nullcontext
            with suppress(Aborted):
                result = evaluate.run_evaluation(
                    detect,
                    own_copy(state.inference_variables, num_devices),
                    val,
                    config,
                    num_examples=VAL_PICTURES,
                    should_stop=lambda: interrupt.received is not None,
                    evaluator_context=judging,
                )
            backend.defragment_heap()
            if result is None:
                return None
            logger.log_evaluation(step, -(-step // steps_each), result.metrics)
            if distributed.is_writer():
                logger.log_image("val", step, evaluate.draw_examples(val, result.examples))
            checkpoints.rate(step, result.metrics)
            return result.metrics

        ballot, stopping = distributed.Ballot(), False
        if resuming and metrics is None and due(config.training.eval_every, start_step):
            # The run was stopped between this step and its evaluation.
            metrics = evaluate_now(start_step)
            stopping = metrics is None
        device_metrics = None
        stepped = prefetch.wait_seconds = 0.0
        clock = time.perf_counter()
        for step in range(start_step + 1, total_steps + 1):
            stopping = stopping or ballot.any_of(interrupt.received is not None)
            if stopping:
                break
            batch = render(prefetch.next(device_metrics))
            state, device_metrics = train_step(state, batch)
            if step == 1 and distributed.is_writer():  # drawn and written while the device is busy
                shown = jax.device_get(own_part(batch, num_devices))
                logger.log_image("train", 0, draw_batch(shown, config, train))
            if step == start_step + 1:
                backend.defragment_heap()  # that compiling the step has left
                interrupt.catch()
            skips.add(step, device_metrics.pop("skipped"))
            stepped += 1
            logger.advance()
            if step % config.training.log_every == 0 or step == total_steps:
                numbers = {name: float(x) for name, x in jax.device_get(device_metrics).items()}
                elapsed = time.perf_counter() - clock
                numbers["images_per_second"] = stepped * config.data.batch_size / elapsed
                try:
                    skips.report(logger.say)
                except UserError:
                    checkpoints.save(state)
                    raise
                waiting = prefetch.wait_seconds / elapsed
                logger.log_train(step, -(-step // steps_each), numbers, waiting)
                stepped = prefetch.wait_seconds = 0.0
                clock = time.perf_counter()
            if due(config.training.checkpoint_every, step) or due(config.training.eval_every, step):
                checkpoints.save(state)
            if due(config.training.eval_every, step):
                paused = time.perf_counter()
                metrics = evaluate_now(step)
                stopping = metrics is None
                clock += time.perf_counter() - paused
        if stopping or distributed.any_of(interrupt.received is not None):
            checkpoints.save(state)
            checkpoints.wait()
            logger.say(f"stopped and saved at step {int(state.step)}; the same command goes on")
            interrupt.exit()
    if metrics is None:
        raise UserError(f"{workdir}: this run is complete, but was saved without an evaluation")
    return metrics
