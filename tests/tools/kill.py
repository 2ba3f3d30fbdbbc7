"""Kill training runs at random moments, resume them, and compare their final state.

    python tests/kill.py [--runs 50] [--kills 2] [--signal KILL|TERM|HUP ...] [--overlap]
        [--shallow]

Each run is `train.py` on synthetic shapes. It is killed up to `--kills` times and restarted until
it is complete, each time with one to three loader threads. Its final state and its log must equal
those of an uninterrupted run, bit for bit. One row per run shows when it was killed: some seconds
after the start, after a line of the log, or while a checkpoint was being written. For TERM and HUP
the row also shows how long the process took to exit. With `--overlap` the next process starts
before the previous one is killed. With `--shallow` the network has a shallow backbone, which
compiles faster. The exit status is 1 if any run ended differently.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, nullcontext, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from nanodet_jax.io.checkpoint import CHECKPOINTS, Checkpoints
from tests.runs import TINY, Launch, abstract_state, final_state, journal, shallow_backbone

STEPS, STEPS_EACH, BATCH = 24, 4, 4
FLAGS = (
    *TINY,
    f"--config.data.batch_size={BATCH}",
    f"--config.data.train_size={BATCH * STEPS_EACH}",
    f"--config.training.steps={STEPS}",
    "--config.training.eval_every=3",
)
MOMENTS = ("start", "step", "step", "save", "save")  # kinds of moments; repeated ones are likelier


def lines(workdir: Path) -> int:
    """Return the number of lines of the log."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(workdir: Path) -> bool:
    """Return whether a checkpoint is being written."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())


def newest(workdir: Path) -> int:
    """Return the step of the newest checkpoint, or 0 before the first."""
    folder = workdir / CHECKPOINTS
    steps = (
        [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if folder.is_dir()
        else []
    )
    return max(steps, default=0)


def await_moment(launch: Launch, draw: random.Random, seconds: float) -> str:
    """Wait for a random moment of a run, and describe it; return "" if the run ends earlier."""
    moment, delay = draw.choice(MOMENTS), draw.uniform(0, 0.03)
    if moment == "start":
        at = draw.uniform(0, seconds)
        reached = launch.wait_for(lambda: time.monotonic() > launch.started + at)
        when = f"{at:.1f} s"
    elif moment == "step":
        done = lines(launch.workdir)
        wanted = done + draw.randint(1, max(1, STEPS - newest(launch.workdir)))
        # A resumed run first removes the lines that it will write again.
        reached = launch.wait_for(lambda: lines(launch.workdir) >= wanted)
        when = f"line {wanted} + {1e3 * delay:.0f} ms"
    else:
        saved = newest(launch.workdir)
        later = saved + STEPS_EACH * draw.randint(0, max(0, (STEPS - saved) // STEPS_EACH - 1))
        reached = launch.wait_for(
            lambda: newest(launch.workdir) >= later and saving(launch.workdir)
        )
        when = f"saving after step {later} + {1e3 * delay:.0f} ms"
    if not reached:
        return ""
    if moment != "start":
        time.sleep(delay)
    return when


def send(launch: Launch, number: signal.Signals) -> str:
    """Send the signal; describe the state of the run and how it ended."""
    during = ", during a save" if saving(launch.workdir) else ""
    if launch.process.poll() is not None:
        return ", after its end"
    _, seconds = launch.end(number)
    exited = f", exited after {seconds:.1f} s" if number != signal.SIGKILL else ""
    return f"{during}{exited}: at step {newest(launch.workdir)}"


def difference(workdir: Path, expected: Path) -> str:
    """Describe the first difference between two complete runs; "" if there is none."""
    with (
        closing(Checkpoints(workdir, writing=False)) as actual,
        closing(Checkpoints(expected, writing=False)) as reference,
    ):
        for name in ("latest_step", "best_step"):
            if getattr(actual, name)() != getattr(reference, name)():
                return f"different {name}"
        best = reference.best_step()
        if best is not None and actual.metrics(best) != reference.metrics(best):
            return "different metrics of the best checkpoint"
    if jax.tree.structure(abstract_state(workdir)) != jax.tree.structure(abstract_state(expected)):
        return "different structure of the state"
    pairs = zip(
        jax.tree.leaves_with_path(final_state(workdir, STEPS)),
        jax.tree.leaves(final_state(expected, STEPS)),
    )
    for (path, one), other in pairs:
        if not np.array_equal(one, other):
            return f"different {jax.tree_util.keystr(path)}"
    return "" if journal(workdir) == journal(expected) else "different log"


def run(
    folder: Path,
    name: str,
    expected: Path,
    draw: random.Random,
    seconds: float,
    number: signal.Signals,
    max_kills: int,
    overlap: bool,
    shallow: bool,
) -> tuple[str, list[str]]:
    """Kill a new run up to `max_kills` times, then let it end.

    Returns:
      The difference from the expected run, and a description of each kill.
    """
    workdir, kills = folder / name, []

    def launch() -> Launch:
        workers = f"--config.data.workers={draw.randint(1, 3)}"
        return Launch(workdir, [*FLAGS, workers], shallow)

    current = launch()
    for _ in range(max_kills):
        when = await_moment(current, draw, seconds)
        if not when:
            break
        following = None
        if overlap:
            following = launch()
            lead = draw.uniform(0, seconds / 3)  # with a longer lead, the run would often end first
            with suppress(subprocess.TimeoutExpired):
                current.process.wait(lead)
            when += f", next process {lead:.1f} s earlier"
        kills.append(when + send(current, number))
        current.end()
        current = following or launch()
    status, _ = current.end()
    return f"exit status {status}" if status else difference(workdir, expected), kills


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=2, help="maximum number of kills per run")
    parser.add_argument(
        "--signal", choices=("KILL", "TERM", "HUP"), nargs="+", default=["KILL"],
        help="signals to send; if there are several, they alternate from run to run",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", action="store_true", help="start the next process before the previous one ends"
    )
    parser.add_argument("--shallow", action="store_true", help="train a shallow backbone")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    numbers = [signal.Signals[f"SIG{name}"] for name in args.signal]
    draw, failed, kills = random.Random(args.seed), 0, 0
    network = shallow_backbone() if args.shallow else nullcontext()
    with network, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        expected = folder / "uninterrupted"
        # If there is more than one run, the first process only fills the compilation cache.
        names = ("compiles", "uninterrupted") if args.runs > 1 else ("uninterrupted",)
        for name in names:
            launch = Launch(folder / name, FLAGS, args.shallow)
            status, seconds = launch.end()
            if status:
                print((folder / f"{name}.log").read_text(), file=sys.stderr)
                return 1
        print(f"uninterrupted: {STEPS} steps in {seconds:.1f} s", flush=True)
        for index in range(args.runs):
            number = numbers[index % len(numbers)]
            reason, when = run(
                folder, f"run{index}", expected, draw, seconds, number, args.kills, args.overlap,
                args.shallow,
            )  # fmt: skip
            failed, kills = failed + bool(reason), kills + len(when)
            verdict = f"FAILED: {reason}" if reason else "same"
            moments = "; ".join(when) or "ended before it was killed"
            print(f"{index:3d}  {number.name[3:]:4s} {verdict:8s} {moments}", flush=True)
            if reason:
                print((folder / f"run{index}.log").read_text()[-3000:], file=sys.stderr)
    print(
        f"{args.runs - failed} of {args.runs} runs had the same result; {kills} kills in all runs"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
