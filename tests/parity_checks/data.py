"""Fixtures of geometry and of the learning-rate schedule."""

import json
from pathlib import Path


from nanodet_jax import config
from nanodet_jax.training.optimizer import learning_rate
from tests.parity_checks.comparison import Comparisons, Worst


def check_schedule(path: Path) -> Worst:
    """Learning rate, step by step."""
    import jax
    import jax.numpy as jnp

    compare = Comparisons()
    fixture = json.loads(path.read_text())
    for name in ("multistep", "cosine"):
        case = fixture[name]
        base = case["base_lr"]
        training = config.Training(
            learning_rate=base,
            schedule=name,
            milestones=tuple(case.get("milestones", ())),
            gamma=case.get("gamma", 0.1),
            final_fraction=case.get("eta_min", 0.0) / base,
            warmup_steps=case["warmup_steps"],
            warmup_ratio=case["warmup_ratio"],
        )
        schedule = learning_rate(training, case["steps_per_epoch"], case["epochs"])
        rates = jax.vmap(schedule)(jnp.arange(len(case["lr"])))
        compare.relative(name, rates, case["lr"], 1e-6)
    return compare.worst()


def check_warp(path: Path) -> Worst:
    raise AssertionError("to come")
