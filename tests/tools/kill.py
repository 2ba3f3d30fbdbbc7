"""Kill training runs at random times, resume them, and compare their final states.

    python tests/kill.py [--runs 50] [--signal KILL|TERM|HUP ...] [--overlap] [--seed 0]

Each run is `train.py` on the shapes dataset, with one to three data threads chosen at random. It is
killed a few times, and restarted until it is complete. Its final state and its log must equal those
of an uninterrupted run, bit for bit. A row is printed for every run. It shows when the run was
killed: some seconds after its start, after a line of its log, or while it wrote a checkpoint. With
TERM and HUP the row also shows how long the process took to exit. With `--overlap` the next process
starts before the previous one is killed. The exit status is 1 if any run ends differently.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from nanodet_jax.io.checkpoint import CHECKPOINTS, Checkpoints
from tests.runs import TINY, Launch, abstract_state, final_state, journal

STEPS, STEPS_EACH, BATCH = 24, 4, 4
FLAGS = (
    *TINY,
    f"--config.data.batch_size={BATCH}",
    f"--config.data.train_size={BATCH * STEPS_EACH}",
    f"--config.training.steps={STEPS}",
    "--config.training.eval_every=3",
)
KILLS = 2  # at most, per run
MOMENTS = ("start", "step", "step", "save", "save")  # moments of a kill, with their frequencies


def lines(workdir: Path) -> int:
    """Return the number of log lines so far."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(workdir: Path) -> bool:
    """Return whether a checkpoint is being written."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())


def newest(workdir: Path) -> int:
    """Return the step of the newest checkpoint, or 0 if there is none."""
    folder = workdir / CHECKPOINTS
    steps = (
        [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if folder.is_dir()
        else []
    )
    return max(steps, default=0)


def await_moment(launch: Launch, draw: random.Random, seconds: float) -> str:
    """Wait for a random moment of a run. Describe it, or return "" if the run ends earlier."""
    moment, delay = draw.choice(MOMENTS), draw.uniform(0, 0.03)
    if moment == "start":
        at = draw.uniform(0, seconds)
        reached = launch.wait_for(lambda: time.monotonic() > launch.started + at)
        when = f"{at:.1f} s"
    elif moment == "step":
        done = lines(launch.workdir)
        wanted = done + draw.randint(1, max(1, STEPS - newest(launch.workdir)))
        # A resumed run first drops the lines that it will write again.
        reached = launch.wait_for(lambda: lines(launch.workdir) >= wanted)
        when = f"line {wanted} + {1e3 * delay:.0f} ms"
    else:
        there = newest(launch.workdir)
        later = there + STEPS_EACH * draw.randint(0, max(0, (STEPS - there) // STEPS_EACH - 1))
        reached = launch.wait_for(
            lambda: newest(launch.workdir) >= later and saving(launch.workdir)
        )
        when = f"saving after step {later} + {1e3 * delay:.0f} ms"
    if not reached:
        return ""
    if moment != "start":
        time.sleep(delay)
    return when


def strike(launch: Launch, number: signal.Signals) -> str:
    """Send the signal. Describe the position of the run and how it ended."""
    inside = ", during a save" if saving(launch.workdir) else ""
    if launch.process.poll() is not None:
        return ", but had already ended"
    _, took = launch.end(number)
    left = f", exited after {took:.1f} s" if number != signal.SIGKILL else ""
    return f"{inside}{left}: at step {newest(launch.workdir)}"


def difference(workdir: Path, expected: Path) -> str:
    """Return what differs between the final state of a run and the expected one, or ""."""
    with (
        closing(Checkpoints(workdir, writing=False)) as ours,
        closing(Checkpoints(expected, writing=False)) as theirs,
    ):
        for name in ("latest_step", "best_step"):
            if getattr(ours, name)() != getattr(theirs, name)():
                return f"different {name}"
        best = theirs.best_step()
        if best is not None and ours.metrics(best) != theirs.metrics(best):
            return "different metrics of the best step"
    if jax.tree.structure(abstract_state(workdir)) != jax.tree.structure(abstract_state(expected)):
        return "different structure"
    pairs = zip(
        jax.tree.leaves_with_path(final_state(workdir, STEPS)),
        jax.tree.leaves(final_state(expected, STEPS)),
    )
    for (path, one), other in pairs:
        if not np.array_equal(one, other):
            return f"different {jax.tree_util.keystr(path)}"
    return "" if journal(workdir) == journal(expected) else "different log"


def run(folder: Path, name: str, expected: Path, draw: random.Random, seconds: float,
        number: signal.Signals, overlap: bool) -> tuple[str, list[str]]:  # fmt: skip
    """Kill a new run up to KILLS times, and then let it end.

    With `overlap` the next process starts before the previous one is killed.

    Returns:
      What differs from the expected final state, and the times of the kills.
    """
    workdir, kills = folder / name, []

    def launch() -> Launch:
        return Launch(workdir, [*FLAGS, f"--config.data.workers={draw.randint(1, 3)}"])

    current = launch()
    for _ in range(KILLS):
        when = await_moment(current, draw, seconds)
        if not when:
            break
        following = None
        if overlap:
            following = launch()
            lead = draw.uniform(0, seconds / 3)  # after a longer time most runs have ended
            with suppress(subprocess.TimeoutExpired):
                current.process.wait(lead)
            when += f", {lead:.1f} s after the start of the next process"
        kills.append(when + strike(current, number))
        current.end()
        current = following or launch()
    status, _ = current.end()
    return f"exit status {status}" if status else difference(workdir, expected), kills


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument(
        "--signal", choices=("KILL", "TERM", "HUP"), nargs="+", default=["KILL"],
        help="with several, the runs use them in turn",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", action="store_true", help="start the next process before the previous one ends"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    numbers = [signal.Signals[f"SIG{name}"] for name in args.signal]
    draw, failed, kills = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        expected = folder / "unbroken"
        for again in ("compiled", "unbroken"):  # the second run is timed, after compilation
            launch = Launch(folder / again, FLAGS)
            status, seconds = launch.end()
            if status:
                print((folder / f"{again}.log").read_text(), file=sys.stderr)
                return 1
        print(f"unbroken: {STEPS} steps in {seconds:.1f} s", flush=True)
        for index in range(args.runs):
            number = numbers[index % len(numbers)]
            reason, when = run(folder, f"run{index}", expected, draw, seconds, number, args.overlap)
            failed, kills = failed + bool(reason), kills + len(when)
            verdict = f"FAILED: {reason}" if reason else "same"
            print(
                f"{index:3d}  {number.name[3:]:4s} {verdict:8s} {'; '.join(when) or 'not killed'}",
                flush=True,
            )
            if reason:
                print((folder / f"run{index}.log").read_text()[-3000:], file=sys.stderr)
    print(f"{args.runs - failed} of {args.runs} runs, killed {kills} times, ended the same")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
