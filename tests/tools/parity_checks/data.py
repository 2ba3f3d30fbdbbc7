"""Checks of geometry and of the learning-rate schedule against fixtures."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nanodet_jax import config
from nanodet_jax.data import transforms
from nanodet_jax.training.optimizer import learning_rate
from nanodet_jax.training.step import ema_weight
from tests.tools.parity_checks.comparison import Comparisons, Worst, absolute, relative


def check_schedule(path: Path) -> Worst:
    """Compare the learning rate, and the weight of each step in the average."""
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
        compare.near(name, rates, relative(case["lr"], 1e-6))
    if "ema" in fixture:
        case = fixture["ema"]
        shares = ema_weight(jnp.asarray(case["t"]), case["decay"])
        # The last digits of 1 - decay are lost in float32: 2e-4 of 1.
        compare.near("average", shares, absolute(case["d"], 1e-6))
    return compare.worst()


def check_warp(path: Path) -> Worst:
    """Compare matrix, size and boxes of images whose augmentation factors are fixed."""
    compare = Comparisons()
    with np.load(path) as fixture:
        for k in sorted({key.split("/")[0] for key in fixture if "/" in key}):
            params = json.loads(str(fixture[f"{k}/params"]))
            stretch = params.get("stretch", [[1, 1], [1, 1]])
            warp = transforms.Warp(
                scale=params.get("scale", [1.0])[0],
                stretch=(stretch[0][0], stretch[1][0]),
                flip=params.get("flip", 0.0) == 1.0,
            )
            unknown = set(params) - {"scale", "stretch", "flip"}
            if unknown:
                compare.add(f"case {k}: no fixed form of {unknown}", np.inf, 0)
            (width, height), (to_width, to_height) = fixture[f"{k}/raw_wh"], fixture[f"{k}/dst_wh"]
            matrix, size = transforms.warp_matrix(
                warp, (height, width), (to_height, to_width), bool(fixture[f"{k}/keep_ratio"])
            )
            moved = transforms.warp_boxes(fixture[f"{k}/boxes"], matrix, size)
            compare.near(f"case {k}: matrix", matrix, absolute(fixture[f"{k}/matrix"], 1e-5))
            compare.equal(f"case {k}: size", size, fixture[f"{k}/out_hw"])
            compare.near(f"case {k}: boxes", moved, absolute(fixture[f"{k}/boxes_out"], 1e-5))
    return compare.worst()
