"""The training loop: read it from top to bottom."""

import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from nanodet_jax import backend, scoring
from nanodet_jax.checkpoint import Checkpoints
from nanodet_jax.config import Config, check
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.pipeline import (
    count_slots,
    images_of_step,
    steps_per_epoch,
    training_batches,
)
from nanodet_jax.data.sources import open_source
from nanodet_jax.doctor.report import brief
from nanodet_jax.errors import UserError
from nanodet_jax.inference import make_detect
from nanodet_jax.models.detector import build_model, priors_of
from nanodet_jax.state import abstract_variables, create_state
from nanodet_jax.training.feed import Feed
from nanodet_jax.training.interrupt import Interrupt
from nanodet_jax.training.journal import Journal
from nanodet_jax.training.lock import lock
from nanodet_jax.training.optimizer import learning_rate, make_optimizer
from nanodet_jax.training.parallel import make_place, make_render, make_train_step, store
from nanodet_jax.training.setup import (
    draw_batch,
    has_checkpoint,
    initial_variables,
    prepare_workdir,
    resolve,
)
from nanodet_jax.training.skips import Skips
from nanodet_jax.training.unfold import is_folded, unfold

VAL_PICTURES = 8
UNFOLD_BATCHES = 8


def train_and_evaluate(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Train as `config` says, or go on with the run in `workdir`; evaluate; keep the best.

    Args:
      config: not changed; what is left to the data is filled in and kept in the workdir.
      workdir: made if need be. Holds `config.json`, `about.json`, `metrics.jsonl`,
        `checkpoints/`, `pictures/`, `tensorboard/`.

    Returns:
      Metrics of the last evaluation, as `evaluation.coco_metrics` gives them.

    Raises:
      UserError: for data, weights or values that cannot be used, before anything is compiled.
      KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, once the state is saved.
    """
    backend.prepare()
    workdir = Path(workdir).expanduser()
    check(config, jax.local_device_count())
    with lock(workdir):
        return _train_and_evaluate(config, workdir)


def _train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    num_devices = jax.local_device_count()
    print(f"{config.name}: reading the data", flush=True)
    train, val = open_source(config, "train"), open_source(config, "val")
    config = resolve(config, train, val)
    steps_each = steps_per_epoch(train, config.data.batch_size)
    total_steps = config.training.steps or config.training.epochs * steps_each
    epochs = -(-total_steps // steps_each)
    for line in brief(config, train, val):
        print(line, flush=True)
    slots, over = count_slots(train, config.data.max_boxes)
    images = TrainingImages(train, config)

    print(f"{config.name}: building the network", flush=True)
    model = build_model(config.model, config.precision)
    resuming = has_checkpoint(workdir)
    variables, origin = (None, "") if resuming else initial_variables(config, model)
    schedule = learning_rate(config.training, steps_each, epochs)
    optimizer = make_optimizer(config.training, schedule)
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
    detect = make_detect(model)
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
    journal = Journal(workdir, start_step, total_steps, rated=metrics is not None)
    journal.say(images.describe())
    stored = store(images, num_devices) if config.data.cache == "device" else None
    render = make_render(config, num_devices, stored)
    if not resuming and is_folded(variables):
        measured = training_batches(images, config, slots)
        inputs = (
            jax.device_get(render(next(measured)).images)
            for _ in tqdm(range(UNFOLD_BATCHES), "measuring batch norms", leave=False)
        )
        state = begin_with(unfold(model, variables, inputs))
        origin += f"; batch norms, folded there, measured on {UNFOLD_BATCHES} batches"
    journal.say(
        f"{config.name}: {len(train)} training and {len(val)} validation images, "
        f"{len(train.categories)} classes, {slots} box slots; {total_steps} steps "
        f"({steps_each} an epoch) of {config.data.batch_size} images on {num_devices} "
        f"{jax.default_backend()} device(s); {origin}"
    )
    if over:
        journal.say(
            f"note: config.data.max_boxes={slots} leaves out {sum(n for _, n in over)} boxes of "
            f"{len(over)} images, of {over[0][0]} first; 0 keeps all"
        )

    if start_step < total_steps:
        journal.say("compiling the first step: a minute or two, once; later runs take it from disk")

    def due(every: int, step: int) -> bool:
        return step == total_steps or (step % steps_each == 0 and step // steps_each % every == 0)

    skips = Skips(config.training.max_skipped, lambda step: images_of_step(train, config, step))
    feed = Feed(training_batches(images, config, slots, start_step), make_place(num_devices))
    with closing(checkpoints), closing(journal), closing(feed), Interrupt() as interrupt:

        def evaluate_now(step: int) -> dict[str, Any] | None:
            result = scoring.run_evaluation(
                detect,
                state.inference_variables,
                val,
                config,
                pictures=VAL_PICTURES,
                should_stop=lambda: interrupt.received is not None,
            )
            backend.close_holes()
            if result is None:
                return None
            journal.evaluated(step, -(-step // steps_each), result.metrics)
            journal.picture("val", step, scoring.picture(val, result.pictured))
            checkpoints.rate(step, result.metrics)
            return result.metrics

        if resuming and metrics is None and due(config.training.eval_every, start_step):
            # The run was stopped between this step and its evaluation.
            metrics = evaluate_now(start_step)
        device_metrics = None
        stepped = feed.waited = 0.0
        clock = time.perf_counter()
        for step in range(start_step + 1, total_steps + 1):
            if interrupt.received is not None:
                break
            batch = render(feed.next(device_metrics))
            state, device_metrics = train_step(state, batch)
            if step == 1:  # drawn and written while the device is busy
                journal.picture("train", 0, draw_batch(jax.device_get(batch), config, train))
            if step == start_step + 1:
                backend.close_holes()  # that compiling the step has left
                interrupt.catch()
            skips.add(step, device_metrics.pop("skipped"))
            stepped += 1
            journal.advance()
            if step % config.training.log_every == 0 or step == total_steps:
                numbers = {name: float(x) for name, x in jax.device_get(device_metrics).items()}
                elapsed = time.perf_counter() - clock
                numbers["images_per_second"] = stepped * config.data.batch_size / elapsed
                try:
                    skips.tell(journal.say)
                except UserError:
                    checkpoints.save(state)
                    raise
                journal.train(step, -(-step // steps_each), numbers, feed.waited / elapsed)
                stepped = feed.waited = 0.0
                clock = time.perf_counter()
            if due(config.training.checkpoint_every, step) or due(config.training.eval_every, step):
                checkpoints.save(state)
            if due(config.training.eval_every, step):
                paused = time.perf_counter()
                metrics = evaluate_now(step)
                clock += time.perf_counter() - paused
        if interrupt.received is not None:
            checkpoints.save(state)
            checkpoints.wait()
            journal.say(f"stopped and saved at step {int(state.step)}; the same command goes on")
            interrupt.leave()
    if metrics is None:
        raise UserError(f"{workdir}: this run is complete, but was saved without an evaluation")
    return metrics
