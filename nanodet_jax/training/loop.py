"""Training loop."""

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import jax

from nanodet_jax.config import Config, check
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation import evaluate
from nanodet_jax.runtime import backend, distributed
from nanodet_jax.runtime.out_of_memory import reporting_out_of_memory
from nanodet_jax.runtime.process import setup_process
from nanodet_jax.training.batch_picture import draw_batch
from nanodet_jax.training.build import Run, build
from nanodet_jax.training.interrupt import Aborted, Interrupt
from nanodet_jax.training.parallel import count_devices, local_copy, local_part
from nanodet_jax.training.step import Metrics
from nanodet_jax.training.throughput import Throughput

VAL_PICTURES = 8


@distributed.fail_together
def train_and_evaluate(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Train a detector, evaluate it, and keep the best checkpoint.

    If `workdir` contains a checkpoint, the run resumes from it. The result is the same, bit for
    bit, as if the run had never been stopped.

    Args:
      config: not changed. The run uses a copy, in which the fields that depend on the data are
        filled in, and saves that copy in the workdir.
      workdir: created if it does not exist. The run writes `config.json`, `data.json`,
        `about.json`, `history.jsonl`, `metrics.jsonl`, `checkpoints/`, `pictures/` and
        `tensorboard/` to it. All processes of a run must have access to it.

    Returns:
      Metrics of the last evaluation; see `evaluation.coco_metrics`. Empty if
      config.data.val=none, because nothing is evaluated.

    Raises:
      UserError: before anything is compiled, for data, weights or values that cannot be used; at
        any time, for a batch or a cache that does not fit in memory, or a file that cannot be
        written.
      KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, once the state is saved.
    """
    check(config)
    setup_process()
    distributed.join(config.distributed)
    check(config, count_devices(config.training) * jax.process_count())
    with (
        reporting_out_of_memory(config, training=True),
        build(config, Path(workdir).expanduser()) as run,
        Interrupt() as interrupt,
    ):
        if not _train(run, interrupt):
            _save_and_exit(run, interrupt)
    if run.val is None:
        return {}
    if run.metrics is None:
        raise UserError(f"{workdir}: this run is complete, but was saved without an evaluation")
    return run.metrics


def _train(run: Run, interrupt: Interrupt) -> bool:
    """Train until the end; return False if a signal asks the run to stop earlier."""
    config, length = run.config, run.length
    training = config.training
    start_step = int(run.state.step)
    votes = distributed.DelayedVote()
    if run.val is None:
        run.logger.say("config.data.val=none: no evaluation; the last checkpoint is the result")

    # Evaluate the restored step, if the run was stopped between saving and evaluating it.
    unevaluated = run.resumed and run.metrics is None
    is_due = start_step >= length.total_steps or length.is_due(training.eval_every, start_step)
    missed = unevaluated and is_due
    if missed and not _evaluate(run, start_step, interrupt):
        return False

    if start_step < length.total_steps:
        run.logger.say(
            "compiling the first step takes a minute or two; later runs load it from the cache"
        )
    throughput = Throughput(config.data.batch_size, run.prefetch)
    metrics = None
    for step in range(start_step + 1, length.total_steps + 1):
        # Stop all processes after the same step.
        if votes.any_of(interrupt.received is not None):
            return False

        # Train. The step is dispatched here, and the devices run it in the background.
        batch = run.augment(run.prefetch.next(metrics))
        run.state, metrics = run.train_step(run.state, batch)

        # After the first step of the run, draw its batch while the devices are busy. After the
        # first step of the process, release the memory that compilation left behind, and save on
        # signals from now on.
        if step == 1 and distributed.is_writer():
            shown = jax.device_get(local_part(batch, run.num_devices))
            run.logger.log_image("train", 0, draw_batch(shown, config, run.train))
        run.leg.step = step
        if step == start_step + 1:
            run.leg.begin()
            backend.defragment_heap()
            interrupt.catch()

        # Log.
        run.skipped_steps.add(step, metrics.pop("skipped"))
        throughput.count_step()
        run.logger.advance()
        if step % training.log_every == 0 or step == length.total_steps:
            _log(run, step, metrics, throughput)

        # Save, then evaluate.
        evaluation_due = length.is_due(training.eval_every, step)
        if evaluation_due or length.is_due(training.checkpoint_every, step):
            run.checkpoints.save(run.state)
        if evaluation_due:
            with throughput.paused():
                if not _evaluate(run, step, interrupt):
                    return False
    return not distributed.any_of(interrupt.received is not None)


def _log(run: Run, step: int, metrics: Metrics, throughput: Throughput) -> None:
    """Log the metrics of a step, and the steps that skipped their update since the last log.

    Raises:
      UserError: if too many updates in a row were skipped; the state is saved first.
    """
    numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
    numbers["images_per_second"], waiting = throughput.measure()
    try:
        run.skipped_steps.report(run.logger.say)
    except UserError:
        run.checkpoints.save(run.state)
        raise
    run.logger.log_train(step, run.length.epoch_of(step), numbers, waiting)
    throughput.restart()


def _evaluate(run: Run, step: int, interrupt: Interrupt) -> bool:
    """Evaluate the state after `step`, and log and save the metrics; return False if interrupted.

    Without validation images, do nothing.
    """
    if run.val is None:
        return True
    result = None
    # Several processes stop together: one that stopped alone would leave the others waiting.
    interruptible = interrupt.abort_on_signal if jax.process_count() == 1 else nullcontext
    with suppress(Aborted):
        result = evaluate.run_evaluation(
            run.detect,
            local_copy(run.state.inference_variables, run.num_devices),
            run.val,
            run.config,
            num_examples=VAL_PICTURES,
            should_stop=lambda: interrupt.received is not None,
            evaluator_context=interruptible,
        )
    backend.defragment_heap()
    run.metrics = None if result is None else result.metrics
    if result is None:
        return False
    run.logger.log_evaluation(step, run.length.epoch_of(step), result.metrics)
    if distributed.is_writer():
        run.logger.log_image("val", step, evaluate.draw_examples(run.val, result.examples))
    run.checkpoints.save_metrics(step, result.metrics)
    return True


def _save_and_exit(run: Run, interrupt: Interrupt) -> None:
    """Save the state after a signal, and end the process as the signal would have."""
    run.checkpoints.save(run.state)
    run.checkpoints.wait()
    run.logger.say(
        f"stopped and saved at step {int(run.state.step)}; the same command resumes the run"
    )
    interrupt.exit()
