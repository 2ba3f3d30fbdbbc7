"""A data set through a detector: detections, COCO's numbers, pictures."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from nanodet_jax import visualize
from nanodet_jax.config import Config, check
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import evaluation_batches
from nanodet_jax.data.records import Source, decode
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation import coco_metrics
from nanodet_jax.files import make_folder, write_json
from nanodet_jax.inference.predict import Detect, detect_batches, make_detect
from nanodet_jax.io.weights import Weights, load_weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.runtime import backend, distributed
from nanodet_jax.structures import Detections
from nanodet_jax.terminal import join_first, say

PICTURES = 12
ASKED_EVERY = 8  # images, after which processes ask each other whether to stop


class Evaluation(NamedTuple):
    """What was found in a data set."""

    metrics: dict[str, Any]  # the 12 numbers and per_class
    results: list[dict[str, Any]]  # COCO's result layout, by image
    pictured: dict[int, Detections]  # of the first images, by position in the source


def run_evaluation(
    detect: Detect,
    variables: Any,
    source: Source,
    config: Config,
    *,
    pictures: int = 0,
    progress: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    judging: Callable[[], AbstractContextManager] = nullcontext,
    judge: coco_metrics.Judge | None = None,
) -> Evaluation | None:
    """Detections in every image of `source`, and their score; None if asked to stop on the way.

    The order of the results is that of the source, whatever the grouping into batches. An image
    that cannot be read is one without detections. `judge` is who computes the score, as
    `evaluation.choose_judge` takes it; within the context `judging`, as pycocotools may take a
    minute and asks nobody.

    Of several processes each looks at its share of the images, and stops where one of them is
    asked to. All get all detections and score them: for none to wait while another does, and
    since equal detections have equal scores.
    """
    found: dict[int, Detections] = {}
    share = distributed.share()
    processes = share[1]
    every = 1 if processes == 1 else ASKED_EVERY
    asks = len(source) // processes // every  # of all alike, whatever images they can read
    shown = progress and distributed.is_writer()
    with tqdm(total=len(source) // processes, desc="evaluate", unit="img", leave=False,
              disable=not shown, mininterval=0.5) as bar:  # fmt: skip
        batches = evaluation_batches(source, config, share)
        for index, detections in detect_batches(detect, variables, batches):
            found[index] = detections
            bar.update()
            if len(found) % every == 0 and asks:
                asks -= 1
                if distributed.any_of(should_stop()):
                    return None
    for _ in range(asks):
        if distributed.any_of(should_stop()):
            return None
    found = {index: one for part in distributed.gather(found) for index, one in part.items()}
    results = []
    for index in sorted(found):
        one = found[index]
        results += coco_metrics.to_coco(
            source[index].image_id, one.boxes, one.scores, one.labels, source.categories
        )
    truncated = [source[i].name for i in sorted(found) if found[i].truncated]
    if truncated and distributed.is_writer():
        say(
            f"note: {len(truncated)} images had more candidates than suppression looks at, "
            f"{truncated[0]} first; their weakest detections may be missing"
        )
    with judging():
        metrics = coco_metrics.coco_metrics(
            source.ground_truth(), results, source.categories, judge=judge
        )
    return Evaluation(metrics, results, {i: found[i] for i in sorted(found)[:pictures]})


def picture(source: Source, found: dict[int, Detections], columns: int = 4) -> np.ndarray:
    """A sheet of the images in `found` with their detections."""
    names = [category.name for category in source.categories]
    pixels = partial(decode, max_megapixels=math.inf)  # they were read within bounds before
    drawn = [
        visualize.draw_detections(pixels(source[i]), one.boxes, one.scores, one.labels, names)
        for i, one in found.items()
    ]
    return visualize.grid(drawn, columns=min(columns, len(drawn)), size=(320, 320))


def match_classes(weights: Weights, source: Source) -> None:
    """Refuse weights whose classes are not the data's.

    Raises:
      UserError: naming the first difference.
    """

    def plain(name: str) -> str:
        return name.replace("_", " ")

    names = [category.name for category in source.categories]
    count = weights.config.model.num_classes
    if len(names) != count:
        raise UserError(
            f"the weights know {count} classes, the data has {len(names)} ({join_first(names)}); "
            "evaluate on the data they were trained for, or fine-tune with "
            "--config.training.init_weights"
        )
    for label, (mine, other) in enumerate(zip(weights.class_names, names)):
        if plain(mine) != plain(other):
            raise UserError(
                f"class {label} is {mine!r} in the weights but {other!r} in the data; "
                "the names and their order must agree"
            )


def evaluate(
    config: Config,
    weights: str | Path,
    out: str | Path,
    judge: coco_metrics.Judge | None = None,
) -> dict[str, Any]:
    """Score weights on the validation split of `config.data`, and write what was found.

    The architecture comes with the weights; data, input size and resizing come from `config`.

    Args:
      config: where the data is.
      weights: a file or workdir, as `load_weights` takes it.
      out: folder for `metrics.json`, `detections.json` and `pictures/`.
      judge: who computes the metrics, as `evaluation.choose_judge` takes it.

    Returns:
      The metrics that `metrics.json` holds: those of `evaluation.coco_metrics`, and `judge`, the
      name and version of who computed them.

    Raises:
      UserError: for data, weights or values that cannot be used.
    """
    backend.prepare()
    check(config)
    judge = coco_metrics.choose_judge(judge)
    source = open_source(config, "val")
    loaded = load_weights(weights, max_input_side=None)  # the input size is that of `config`
    match_classes(loaded, source)
    for name in ("input_size", "data.keep_ratio", "compat.pixel_index_warp"):
        mine, trained = (_field(c, name) for c in (config, loaded.config))
        if mine != trained:
            say(f"note: config.{name}={mine}, the weights' own is {trained}")
    detect = make_detect(build_model(loaded.config.model, config.precision))
    result = run_evaluation(
        detect, loaded.variables, source, config, pictures=PICTURES, judge=judge
    )
    assert result is not None
    metrics = {**result.metrics, "judge": f"{judge} {metadata.version(judge)}"}
    out = Path(out)
    write_json(out / "metrics.json", metrics, indent=2)
    write_json(out / "detections.json", result.results)
    if result.pictured:
        folder = make_folder(out / "pictures")
        visualize.save_image(folder / "detections.jpg", picture(source, result.pictured))
    return metrics


def _field(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = getattr(values, part)
    return values
