"""Train for a long time, and watch the memory, open files and threads of the process.

    python tests/tools/soak.py [--steps 2000]

The script runs `train.py` on synthetic shapes, with an evaluation and a checkpoint every 50 steps,
and prints a row every 200 steps. The exit status is 1 if the run fails, or if from the first row to
the last, memory grows by more than MAX_GROWTH or the number of open files grows.
"""

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.runs import TINY, Launch

STEPS_PER_EPOCH = 50
STEPS_PER_ROW = 200
MAX_GROWTH = 0.05  # as a fraction of the memory at the first row
FLAGS = (
    *TINY,
    "--config.data.batch_size=4",
    f"--config.data.train_size={4 * STEPS_PER_EPOCH}",
    "--config.training.eval_every=1",
    "--config.training.log_every=10",
)


def resources(process: int) -> tuple[float, int, int]:
    """Return resident memory in MB, open files and threads of a process."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines()
    )
    megabytes = 1024 * float(fields["VmRSS"].split()[0]) / 1e6
    return megabytes, len(os.listdir(f"/proc/{process}/fd")), int(fields["Threads"])


def logged(log: Path, step: int) -> bool:
    """Return whether the log of a run has a line of this step."""
    return log.exists() and f'"step": {step},' in log.read_text()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch) / "run"
        launch = Launch(workdir, (*FLAGS, f"--config.training.steps={args.steps}"))
        log = workdir / "metrics.jsonl"
        print(f"{'step':>6s}{'MB':>9s}{'files':>7s}{'threads':>9s}")
        for step in range(STEPS_PER_ROW, args.steps, STEPS_PER_ROW):
            # Measure between evaluations, because their temporary memory is not growth.
            if not launch.wait_for(
                partial(logged, log, step + STEPS_PER_EPOCH // 2 // 10 * 10), poll=0.1
            ):
                break
            rows.append(resources(launch.process.pid))
            print(f"{step:6d}{rows[-1][0]:9.1f}{rows[-1][1]:7d}{rows[-1][2]:9d}", flush=True)
        status, _ = launch.end()
        if status or not rows:
            print(Path(f"{workdir}.log").read_text()[-3000:], file=sys.stderr)
            return 1
    megabytes, files, _ = zip(*rows)
    print(f"memory {megabytes[-1] / megabytes[0] - 1:+.1%}, open files {files[-1] - files[0]:+d}")
    return int(megabytes[-1] > (1 + MAX_GROWTH) * megabytes[0] or files[-1] > files[0])


if __name__ == "__main__":
    sys.exit(main())
