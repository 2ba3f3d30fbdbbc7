"""Train a detector, or go on with a run that was stopped.

    python train.py --config configs/shapes.py
    python train.py --config configs/coco.py:nanodet-m_416 --workdir runs/m --config.data.workers=8

Every field of the config can be given as a flag. Ctrl-C saves; the same command goes on.
"""

from pathlib import Path

from absl import flags

from nanodet_jax import train_and_evaluate
from nanodet_jax.cli import entry_point
from nanodet_jax.evaluation.coco_metrics import format_table
from nanodet_jax.runtime import distributed
from nanodet_jax.terminal import say, say_lines

CONFIG = entry_point.define_config("configs/shapes.py")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default: runs/<config.name>")


def main() -> None:
    workdir = Path(WORKDIR.value or f"runs/{CONFIG.value.name}")
    metrics = train_and_evaluate(CONFIG.value, workdir)
    if distributed.is_writer():
        say_lines(format_table(metrics))
        say(f"checkpoints, metrics.jsonl and pictures of detections are in {workdir}")


if __name__ == "__main__":
    entry_point.run(main)
