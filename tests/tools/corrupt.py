"""Damage the files of a checkpoint, and check what is restored.

    python tests/corrupt.py [--cases 200] [--seed 0]

Each case truncates one file of the newest checkpoint at a random position, or flips random bits in
it. Successive cases damage successive files. The restored state must be the newest one bit for bit
(the damage had no effect), or the previous one together with a line that names the damaged
checkpoint. The same holds for the best step and its metrics. An error that names the workdir is
also accepted. The script prints one row per file. The exit status is 1 if there is any other
result.
"""

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
import optax

from nanodet_jax.errors import UserError
from nanodet_jax.evaluation.coco_metrics import METRIC_DESCRIPTIONS
from nanodet_jax.io.checkpoint import CHECKPOINTS, Checkpoints
from nanodet_jax.state import TrainState, create_state

OPTIMIZER = optax.adamw(1e-3)
NEWEST, BEFORE = 2, 1
SCORES = {BEFORE: 0.25, NEWEST: 0.5}


def metrics_of(score: float) -> dict[str, Any]:
    """Return metrics like those of an evaluation, identified by their AP."""
    return dict.fromkeys(METRIC_DESCRIPTIONS, 1.0) | {"AP": score, "per_class": {}}


def state_of(step: int) -> TrainState:
    """Return a state whose arrays all depend on the step, and fill more than one block on disk."""
    draw = np.random.default_rng(step)
    variables = {
        "params": {"conv": {"kernel": draw.normal(size=(40, 50)).astype(np.float32)}},
        "batch_stats": {"norm": {"mean": draw.normal(size=50).astype(np.float32)}},
    }
    state = create_state(variables, OPTIMIZER, ema=True)
    moved = jax.tree.map(lambda leaf: np.asarray(leaf) + np.asarray(step, leaf.dtype), state)
    return moved.replace(step=np.int32(step))


def write(workdir: Path) -> None:
    """Write two checkpoints with metrics."""
    with closing(Checkpoints(workdir)) as checkpoints:
        for step in (BEFORE, NEWEST):
            checkpoints.save(state_of(step))
            checkpoints.save_metrics(step, metrics_of(SCORES[step]))


def same(one: TrainState, other: TrainState) -> bool:
    """Return whether two states are equal bit for bit."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in leaves)


def damage(path: Path, draw: random.Random) -> None:
    """Truncate a file, or flip up to eight of its bits."""
    content = bytearray(path.read_bytes())
    if draw.random() < 0.5:
        path.write_bytes(content[: draw.randrange(len(content))])
        return
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def outcome(workdir: Path) -> str:
    """Return `whole`, `before` or `refused`, or a wrong result in capitals."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            with closing(Checkpoints(workdir)) as checkpoints:
                best = checkpoints.best_step()
                scored = {step: checkpoints.metrics(step) for step in (BEFORE, NEWEST)}
                state = checkpoints.restore_latest(state_of(7))
        except UserError as error:
            return "refused" if str(workdir) in str(error) else f"UNNAMED: {error}"
        except Exception as error:
            return f"ESCAPED: {type(error).__name__}: {error}"
    named = f"{CHECKPOINTS}/{NEWEST}" in output.getvalue()
    truth = {step: metrics_of(score) for step, score in SCORES.items()}
    if not named and (best != NEWEST or scored != truth):
        return "WRONG BEST STEP WITHOUT A MESSAGE"
    if scored[NEWEST] not in (None, truth[NEWEST]):
        return "WRONG METRICS"
    if state is not None and same(state, state_of(NEWEST)):
        return "whole"
    if state is not None and same(state, state_of(BEFORE)):
        return "before" if named else "BEFORE WITHOUT A MESSAGE"
    return "WRONG STATE"


def check(cases: int, seed: int) -> dict[str, Counter[str]]:
    """Run `cases` cases and count their outcomes by damaged file."""
    draw = random.Random(seed)
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        write(whole)
        folder = whole / CHECKPOINTS / str(NEWEST)
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
        for case in range(cases):
            damaged = Path(scratch) / f"case{case}"
            shutil.copytree(whole, damaged)
            file = files[case % len(files)].relative_to(whole)
            damage(damaged / file, draw)
            kind = "/".join("*" if len(part) > 24 else part for part in file.parts[2:])
            found.setdefault(kind, Counter())[outcome(damaged)] += 1
            shutil.rmtree(damaged)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    found = check(args.cases, args.seed)
    for kind, outcomes in sorted(found.items()):
        print(f"{kind:45s}", ", ".join(f"{count} {what}" for what, count in outcomes.items()))
    total: Counter[str] = sum(found.values(), Counter())
    wrong = sum(count for what, count in total.items() if what[:2].isupper())
    print(f"{args.cases} cases: {dict(total)}; {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
