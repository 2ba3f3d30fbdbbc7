"""Kill runs that change settings between legs, and check what their workdirs record.

    python tests/tools/kill_legs.py [--runs 10] [--kills 3] [--seed 0]

Each run is `train.py` on synthetic shapes. It is killed at random moments. Every restart adds an
epoch, and draws a batch size and a learning rate at random. After every kill, `about.json` must
describe the last process that took a step. At the end, `history.jsonl` must have a leg for each of
these processes, in order, each with its command line, its start and its end. The exit status is 1
if anything differs.
"""

import argparse
import itertools
import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanodet_jax.training.history import read_history
from tests.runs import TINY, Launch

IMAGES, BATCHES, RATES, EPOCHS = 48, (4, 8), (1e-3, 2e-3, 5e-3), 4
STEP = re.compile(r"^step (\d+) of \d+ \(epoch (\d+)\): loss", re.MULTILINE)


def flags_of(draw: random.Random, epochs: int) -> list[str]:
    """Return the flags of a leg."""
    return [
        *TINY,
        f"--config.data.train_size={IMAGES}",
        f"--config.data.batch_size={draw.choice(BATCHES)}",
        f"--config.training.learning_rate={draw.choice(RATES)}",
        f"--config.training.epochs={epochs}",
        "--config.training.eval_every=2",
    ]


def fault(workdir: Path, commands: list[list[str]]) -> str:
    """Describe what is wrong in the workdir after legs with these command lines; "" if nothing."""
    if not commands:
        return ""
    about = json.loads((workdir / "about.json").read_text())
    described = [flag for flag in about["leg"]["command"][1:] if not flag.startswith("--workdir")]
    if described != commands[-1]:
        return f"about.json describes {described}, not {commands[-1]}"
    batch = next(flag for flag in commands[-1] if "batch_size" in flag).split("=")[1]
    if about["config"]["data"]["batch_size"] != int(batch):
        return "about.json has the command of one leg and the config of another"
    return ""


def fault_of_history(workdir: Path, commands: list[list[str]]) -> str:
    """Describe what is wrong with the history of a run that is complete; "" if nothing."""
    legs = read_history(workdir)
    if [leg["leg"] for leg in legs] != list(range(1, len(commands) + 1)):
        return f"{len(legs)} legs in the history, but {len(commands)} processes took a step"
    for leg, command in zip(legs, commands):
        if [flag for flag in leg["command"][1:] if not flag.startswith("--workdir")] != command:
            return f"leg {leg['leg']} has a different command line"
    for leg, following in itertools.pairwise(legs):
        if leg["end_step"] != following["start_step"] or leg["reason"] != "killed":
            return f"leg {leg['leg']} ends at {leg['end_step']}: {leg['reason']}"
    return "" if legs[-1]["reason"] == "finished" else "the last leg did not finish"


def await_lines(launch: Launch, log: Path, start: int, wanted: int) -> None:
    """Wait until a process has logged `wanted` steps; its output starts at `start` in the log."""
    launch.wait_for(lambda: len(STEP.findall(log.read_text()[start:])) >= wanted)


def run(folder: Path, name: str, draw: random.Random, kills: int) -> tuple[str, list[str]]:
    """Kill a run `kills` times, then let it end; return a fault, or "", and when it was killed."""
    workdir, log, moments, commands = folder / name, folder / f"{name}.log", [], []
    for number in range(kills + 1):
        flags, written = flags_of(draw, EPOCHS + number), log.stat().st_size if number else 0
        launch = Launch(workdir, flags)
        if number == kills:
            status, _ = launch.end()
            if status:
                return f"exit status {status}", moments
        else:
            wanted, delay = draw.randint(0, 8), draw.uniform(0, 0.2)
            await_lines(launch, log, written, wanted)
            time.sleep(delay)
            launch.process.kill()
            launch.end()
            moments.append(f"line {wanted} + {1e3 * delay:.0f} ms")
        if STEP.search(log.read_text()[written:]):
            commands.append(flags)
        elif (workdir / "about.json").exists():  # it may have been killed before its first log line
            about = json.loads((workdir / "about.json").read_text())["leg"]["command"]
            if about[1:-1] == flags:
                commands.append(flags)
        if reason := fault(workdir, commands):
            return reason, moments
    return fault_of_history(workdir, commands), moments


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=3, help="number of kills per run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    draw, failed = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(args.runs):
            reason, moments = run(Path(scratch), f"run{index}", draw, args.kills)
            failed += bool(reason)
            print(f"{index:3d}  {f'FAILED: {reason}' if reason else 'same'}  {'; '.join(moments)}",
                  flush=True)  # fmt: skip
            if reason:
                print((Path(scratch) / f"run{index}.log").read_text()[-3000:], file=sys.stderr)
    print(f"{args.runs - failed} of {args.runs} runs describe all of their legs")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
