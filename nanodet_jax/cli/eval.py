"""`nanodet-jax eval`: evaluate weights or a run on the validation images of a config."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nanodet_jax.cli.config_flags import add_config, apply_overrides, load_config
from nanodet_jax.cli.weights_flag import add_weights
from nanodet_jax.config import Config, check
from nanodet_jax.data.records import MAX_MEGAPIXELS
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation.coco_metrics import format_table
from nanodet_jax.evaluation.evaluate import evaluate
from nanodet_jax.files import make_folder
from nanodet_jax.io.weights import MAX_INPUT_SIDE, load_config_of
from nanodet_jax.terminal import say, say_lines
from nanodet_jax.training.workdir import read_names

# Upper bounds on fields of `data` in a config that comes with weights. Flags may exceed them.
LIMITS = {"max_megapixels": MAX_MEGAPIXELS, "batch_size": 256, "workers": 64, "val_size": 100_000}
EVALUATORS = ("pycocotools", "hotcoco")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `eval`."""
    parser.description = (
        "Evaluate weights on the validation split of a config. Print the COCO metrics and the AP "
        "of each class, and write metrics.json, detections.json and pictures of detections."
    )
    add_config(
        parser,
        default="",
        default_help="the config of the run or .npz file, or shapes for other weights",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        help="workdir of a run; its best checkpoint is evaluated, on the validation images of the "
        "run unless --config or --config.FIELD flags select others",
    )
    add_weights(parser)
    parser.add_argument(
        "--out",
        type=Path,
        help="output folder (default: WORKDIR/eval with --workdir, otherwise runs/eval)",
    )
    parser.add_argument(
        "--evaluator",
        choices=EVALUATORS,
        help="library that computes the metrics; both give the same numbers (default: hotcoco if "
        "installed, since it is faster)",
    )
    parser.add_argument(  # the old name
        "--judge", dest="old_evaluator", choices=EVALUATORS, help=argparse.SUPPRESS
    )
    parser.set_defaults(run=run, terminate_on_sigint=True)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Evaluate, print the metrics and write them."""
    if args.old_evaluator:
        say("note: --judge is now called --evaluator")
    weights = args.weights or args.workdir
    if not weights or (args.weights and args.workdir):
        raise UserError("use either --workdir RUN or --weights FILE")
    if args.workdir and not args.workdir.is_dir():
        raise UserError(f"--workdir={args.workdir}: no such folder; use the workdir of a run")
    config, own = _config(args.config, weights, overrides)
    # A workdir may come from someone else: its eval/ must not be a link to another folder.
    default = args.workdir / "eval" if args.workdir else Path("runs/eval")
    out = args.out or make_folder(default)
    try:
        evaluator = args.evaluator or args.old_evaluator
        metrics = evaluate(config, weights, out, evaluator, _trained_on(weights))
    except UserError as error:
        moved = _missing_paths(config) if own else ""
        if not moved:
            raise
        raise UserError(
            f"{error}; this path comes from the config of {weights}: use {moved} if the data has "
            "moved, or run the command in the folder in which training was started"
        ) from error
    say_lines(format_table(metrics))
    say(f"{out} contains metrics.json, detections.json and pictures of detections")
    return 0


def _config(name: str, weights: Path, overrides: Sequence[str]) -> tuple[Config, bool]:
    """Return the config of `--config` or of the weights, and whether it came from the weights."""
    own = None if name else load_config_of(weights)
    if own is None:
        return load_config(name or "shapes", overrides), False
    config = apply_overrides(_within_limits(own, weights, overrides), overrides)
    check(config)
    read = " and ".join(config.data.sources) or f"data in {config.data.format} format"
    say(f"using the config of {weights}: {config.name}, {read}")
    return config, True


def _trained_on(weights: Path) -> set[str]:
    """Return the names of the images that a run was trained on but not validated on."""
    names = read_names(weights) if weights.is_dir() else None
    return set() if names is None else set(names.train) - set(names.val)


def _within_limits(own: Config, weights: Path, overrides: Sequence[str]) -> Config:
    """Limit the resources that a config requests, since weights may come from someone else."""
    if max(own.input_size) > MAX_INPUT_SIDE and not any("input_size" in flag for flag in overrides):
        height, width = own.input_size
        raise UserError(
            f"{weights}: config.input_size={height},{width}: sides over {MAX_INPUT_SIDE} must be "
            f"confirmed; if you trust the weights, use --config.input_size={height},{width}"
        )
    for name, limit in LIMITS.items():
        setattr(own.data, name, min(getattr(own.data, name), limit))
    return own


def _missing_paths(config: Config) -> str:
    """Return a flag for each path of the validation data that does not exist."""
    return " ".join(
        f"--config.data.{field}=PATH"
        for field in ("root", "val_images", "val_annotations")
        if (path := getattr(config.data, field)) and not Path(path).expanduser().exists()
    )
