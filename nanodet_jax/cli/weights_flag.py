"""The `--weights` option of `eval` and `predict`."""

from argparse import _ActionsContainer
from pathlib import Path

from nanodet_jax.io.pretrained import DETECTORS


def add_weights(parser: _ActionsContainer) -> None:
    """Add `--weights` to a parser or a group of options."""
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE_OR_NAME",
        help="a .pth, .ckpt or .npz file, or the name of published weights, which are downloaded "
        f"once: {', '.join(DETECTORS)}",
    )
