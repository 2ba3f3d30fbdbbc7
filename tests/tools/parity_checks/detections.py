"""Checks of detections of published weights on real images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data.pipeline import prepare_for_inference, stack
from nanodet_jax.data.records import decode, make_record
from nanodet_jax.errors import UserError
from nanodet_jax.inference.predict import detect_batch, make_detect
from nanodet_jax.io.weights import Weights, load_weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.runtime import backend
from tests.tools.parity_checks.comparison import Comparisons, Worst, of_scale
from tests.tools.parity_checks.networks import joined

PIXELS, SCORE = 0.05, 1e-4
MIN_SCORE = 0.06  # below this, a detection may fall on the other side of the threshold of 0.05


def detections_check(path: Path, weights: Path, images: Path) -> Callable[[], Worst] | None:
    """Return the check of a detections_<weights>.npz, or None for a model that is not supported."""
    file = weights / f"{path.stem.split('_', 1)[1]}.pth"
    if not file.exists():
        return partial(_missing, file)
    try:
        loaded = load_weights(file)
    except UserError:
        return None
    return partial(check_detections, path, loaded, images)


def _missing(file: Path) -> Worst:
    raise FileNotFoundError(f"{file}; pass --weights-dir")


def check_detections(path: Path, weights: Weights, images: Path) -> Worst:
    """Check network input, predictions and detections of each image."""
    compare = Comparisons()
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    names = [str(fixture[f"{k}/file"]) for k in range(int(fixture["count"]))]
    photos = [decode(make_record(0, n, images / n, (0, 0), [], [], [], [])) for n in names]
    config = weights.config
    _set_input_from_warps(config, photos, [fixture[f"{k}/warp_matrix"] for k in range(len(names))])
    model = build_model(config.model)
    detect = make_detect(model)
    network = backend.jit(model.apply)
    for k, (name, pixels) in enumerate(zip(names, photos)):
        prepared = prepare_for_inference(pixels, config)
        if f"{k}/input" in fixture:
            recorded = fixture[f"{k}/input"].transpose(0, 2, 3, 1)
            compare.near(f"{name} input", prepared.image[None], of_scale(recorded, 1e-5))
            predictions = joined(network(weights.variables, prepared.image[None]))
            compare.near(f"{name} predictions", predictions, of_scale(fixture[f"{k}/preds"], 1e-5))
        [(_, found)] = detect_batch(detect, weights.variables, stack([(0, prepared)], 1))
        compare.equal(f"{name} truncated", found.truncated, False)
        recorded = fixture[f"{k}/detections"]
        ours = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None]], axis=1)
        for there, here in ((recorded, ours), (ours, recorded)):
            _match(compare, name, there, here)
    return compare.worst()


def _set_input_from_warps(
    config: Config, photos: list[np.ndarray], matrices: list[np.ndarray]
) -> None:
    """Set input_size and keep_ratio, which the weight files do not contain."""
    scales = np.array([(matrix[1, 1], matrix[0, 0]) for matrix in matrices])  # height, width
    sides = scales * [photo.shape[:2] for photo in photos]
    config.data.keep_ratio = bool(np.allclose(scales[:, 0], scales[:, 1], rtol=1e-6))
    reached = sides.max(axis=0)
    if config.data.keep_ratio:
        reached = np.full(2, sides.max())  # a square input, filled along the longer side
    height, width = (int(32 * np.round(side / 32)) for side in reached)
    config.input_size = (height, width)


def _match(compare: Comparisons, name: str, rows: np.ndarray, others: np.ndarray) -> None:
    """Check that every detection has a match of its class and position in `others`."""
    # At the limit of 100 detections, the last may differ by rounding of their scores.
    lowest = others[:, 4].min() + SCORE if len(others) == 100 else 0.0
    for row in rows[rows[:, 4] > max(MIN_SCORE, lowest)]:
        same = others[others[:, 5] == row[5]]
        if not len(same):
            compare.add(f"{name}: no box of class {int(row[5])}", np.inf, PIXELS)
            continue
        # Compare coordinates, because the iou of a box without area is 0 even with itself.
        distances = np.abs(same[:, :4] - row[:4]).max(axis=1)
        nearest = np.argmin(distances)
        compare.add(f"{name} box", distances[nearest], PIXELS)
        compare.add(f"{name} score", abs(same[nearest, 4] - row[4]), SCORE)
