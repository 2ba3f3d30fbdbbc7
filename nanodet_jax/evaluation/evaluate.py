"""Run a detector on a dataset, and compute COCO's metrics."""

import math
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.typing import VariableDict

from nanodet_jax import visualize
from nanodet_jax.config import Config, check
from nanodet_jax.data.class_map import class_names, rename_classes
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import evaluation_batches
from nanodet_jax.data.records import Source, decode
from nanodet_jax.data.split import read_split
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation import coco_metrics
from nanodet_jax.files import make_folder, write_json
from nanodet_jax.inference.postprocess import SCORE_THRESHOLD
from nanodet_jax.inference.predict import Detect, detect_batches, make_detect
from nanodet_jax.io.weights import Weights, load_weights
from nanodet_jax.models.fuse import build_fused
from nanodet_jax.progress import track
from nanodet_jax.runtime import distributed
from nanodet_jax.runtime.out_of_memory import reporting_out_of_memory
from nanodet_jax.runtime.process import setup_process
from nanodet_jax.structures import Detections
from nanodet_jax.terminal import join_first, say

NUM_EXAMPLES = 12  # images in pictures/detections.jpg
STOP_CHECK_EVERY = 8  # images between exchanges of `should_stop` among processes


class Evaluation(NamedTuple):
    """Result of an evaluation."""

    metrics: dict[str, Any]  # as `coco_metrics.coco_metrics` returns them
    results: list[dict[str, Any]]  # rows of a COCO result file, in the order of the source
    examples: dict[int, Detections]  # detections in the first images, by index in the source


def run_evaluation(
    detect: Detect,
    variables: VariableDict,
    source: Source,
    config: Config,
    *,
    num_examples: int = 0,
    progress: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    evaluator: coco_metrics.Evaluator | None = None,
    evaluator_context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Evaluation | None:
    """Detect objects in every image of `source`, and compute the metrics.

    The results are in the order of the source, whatever the batch size. An image that cannot be
    read counts as an image without detections.

    With several processes, each detects objects in its part of the images. All processes then
    gather all detections and compute the metrics, so that none waits for another. All of them stop
    soon after `should_stop` returns True in any of them.

    Args:
      detect: from `make_detect`.
      variables: variables of the model.
      source: images and ground truth.
      config: input size, resizing and batch size.
      num_examples: number of images whose detections are returned as `examples`.
      progress: whether to show the progress.
      should_stop: checked between images.
      evaluator: as for `coco_metrics.choose_evaluator`.
      evaluator_context: entered while the metrics are computed. pycocotools may take a minute and
        does not check `should_stop`.

    Returns:
      The evaluation, or None if it was stopped before the metrics were computed.
    """
    detections: dict[int, Detections] = {}
    process_index, process_count = jax.process_index(), jax.process_count()
    # All processes exchange `should_stop` equally often, however many images each can read.
    every = 1 if process_count == 1 else STOP_CHECK_EVERY
    checks_left = len(source) // process_count // every
    visible = progress and distributed.is_writer()
    batches = evaluation_batches(source, config, (process_index, process_count))
    detected_images = detect_batches(detect, variables, batches)
    total = len(source) // process_count
    for index, detected in track(detected_images, total, "evaluate", "images", visible):
        detections[index] = detected
        if len(detections) % every == 0 and checks_left:
            checks_left -= 1
            if distributed.any_of(should_stop()):
                return None
    for _ in range(checks_left):
        if distributed.any_of(should_stop()):
            return None

    gathered: dict[int, Detections] = {}
    for part in distributed.gather(detections):
        gathered |= part
    detections = dict(sorted(gathered.items()))
    results = []
    for index, detected in detections.items():
        results += coco_metrics.to_coco_results(
            source[index].image_id,
            detected.boxes,
            detected.scores,
            detected.labels,
            source.categories,
        )
    if not results and distributed.is_writer():
        say(f"note: no detections above a score of {SCORE_THRESHOLD}; train longer")
    truncated = [source[i].name for i, detected in detections.items() if detected.truncated]
    if truncated and distributed.is_writer():
        say(
            f"note: non-maximum suppression cannot process all candidates in {len(truncated)} "
            f"image(s), such as {truncated[0]}; the lowest-scoring detections may be missing"
        )
    with evaluator_context():
        metrics = coco_metrics.coco_metrics(
            source.ground_truth(), results, source.categories, evaluator=evaluator
        )
    return Evaluation(metrics, results, dict(list(detections.items())[:num_examples]))


def draw_examples(source: Source, examples: dict[int, Detections], columns: int = 4) -> np.ndarray:
    """Draw detections on their images, and arrange the images in a grid; uint8 BGR [H, W, 3].

    Args:
      source: source of the images.
      examples: detections by index in the source.
      columns: maximum number of images in a row.
    """
    names = [category.name for category in source.categories]
    # The evaluation has already checked the sizes of these images.
    pixels = partial(decode, max_megapixels=math.inf)
    drawn = [
        visualize.draw_detections(pixels(source[i]), found.boxes, found.scores, found.labels, names)
        for i, found in examples.items()
    ]
    return visualize.grid(drawn, columns=min(columns, len(drawn)), size=(320, 320))


def with_classes_of(weights: Weights, source: Source, *, exclude_others: bool = False) -> Source:
    """Return a dataset with the classes of the weights, in their order.

    The dataset may lack classes of the weights. Spaces and underscores in names are equivalent.

    Args:
      weights: weights whose class names are used.
      source: the dataset; returned unchanged if its classes are the same.
      exclude_others: leave out the boxes of classes that the weights lack.

    Raises:
      UserError: naming the classes that the weights lack, unless `exclude_others` is set.
    """

    def normalize(name: str) -> str:
        return name.replace("_", " ")

    names = class_names(source)
    known = {normalize(name): name for name in weights.class_names}
    unknown = [name for name in names if normalize(name) not in known]
    if unknown and not exclude_others:
        raise UserError(
            f"the weights have {len(weights.class_names)} classes, but the dataset has "
            f"{len(names)} ({join_first(names)}); the weights lack {join_first(unknown)}; evaluate "
            "on the dataset they were trained on, leave those classes out with "
            "--config.data.classes, or fine-tune the weights with --config.training.init_weights"
        )
    if [*map(normalize, names)] == [*map(normalize, weights.class_names)]:
        return source
    renamed = {name: known[normalize(name)] for name in names if normalize(name) in known}
    return rename_classes(source, weights.class_names, renamed)


def evaluate(
    config: Config,
    weights: str | Path,
    out: str | Path,
    evaluator: coco_metrics.Evaluator | None = None,
    trained_on: Collection[str] = (),
) -> dict[str, Any]:
    """Evaluate weights on the validation split of `config.data`, and write the results.

    The architecture comes from the weights. The dataset, the input size and the resizing come from
    `config`.

    Args:
      config: not changed.
      weights: a file, a workdir or a name, as for `load_weights`.
      out: folder for `metrics.json`, `detections.json` and `pictures/`.
      evaluator: as for `coco_metrics.choose_evaluator`.
      trained_on: names of the images that the weights were trained on. If any of them are
        evaluated, a note says so.

    Returns:
      The content of `metrics.json`: the metrics of `coco_metrics.coco_metrics`, and `evaluator`,
      the name and version of the evaluator. A metric without objects is -1 here, but null in
      the file.

    Raises:
      UserError: if the dataset, the weights or a value of the config cannot be used, or a batch
        does not fit in memory.
    """
    setup_process()
    check(config)
    evaluator = coco_metrics.choose_evaluator(evaluator)
    validation = read_split(Path(weights), config.data) if config.data.val_fraction else None
    source = open_source(config, "val", validation=validation)
    loaded = load_weights(weights, max_input_side=None)  # the input size comes from `config`
    if config.data.resize == "short_side" and not loaded.config.model.ignores_padding:
        raise UserError(
            f"config.data.resize=short_side: the network of {weights} cannot ignore padding; use "
            "config.data.resize=to_input"
        )
    source = with_classes_of(loaded, source, exclude_others=config.data.exclude_empty_classes)
    for name in ("input_size", "data.keep_ratio", "data.resize", "compat.pixel_index_warp"):
        value, trained = (_field(c, name) for c in (config, loaded.config))
        if value != trained:
            say(f"note: config.{name}={value}, but the weights were trained with {trained}")
    seen = set(trained_on).intersection(source.name(index) for index in range(len(source)))
    if seen:
        say(
            f"note: {len(seen)} of the {len(source)} images have the name of a training image of "
            f"{weights}, such as {min(seen)}; if they are the same images, the AP is too high"
        )
    network, variables = build_fused(loaded.config.model, config.precision, loaded.variables)
    detect = make_detect(network)
    with reporting_out_of_memory(config, training=False):
        result = run_evaluation(
            detect, variables, source, config, num_examples=NUM_EXAMPLES, evaluator=evaluator
        )
    assert result is not None
    metrics = {**result.metrics, "evaluator": f"{evaluator} {metadata.version(evaluator)}"}
    out = Path(out)
    write_json(out / "metrics.json", coco_metrics.to_json(metrics), indent=2)
    write_json(out / "detections.json", result.results)
    if result.examples:
        folder = make_folder(out / "pictures")
        visualize.save_image(folder / "detections.jpg", draw_examples(source, result.examples))
    return metrics


def _field(config: Config, name: str) -> Any:
    """Return a field of the config by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
