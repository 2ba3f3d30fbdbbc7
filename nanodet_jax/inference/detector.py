"""Detect objects in images or image files with trained weights."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import cv2
import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data.pipeline import prepare_for_inference, stack
from nanodet_jax.data.records import MAX_MEGAPIXELS, decode, make_record
from nanodet_jax.errors import UserError
from nanodet_jax.inference.predict import detect_batch, make_detect
from nanodet_jax.io.weights import MAX_INPUT_SIDE, Weights, class_names_of, load_weights
from nanodet_jax.models.nanodet import build_model

Image = str | Path | np.ndarray


class ImageDetections(NamedTuple):
    """Detections of one image, best first.

    Suppression is applied within each class, so one object may be detected as several classes.
    """

    boxes: np.ndarray  # [n, 4] float32 xyxy, pixels of the image
    scores: np.ndarray  # [n] float32, above 0.05
    class_names: list[str]  # n names
    labels: np.ndarray  # [n] int32, indices into `Detector.class_names`


class Detector:
    """A network with its weights, preprocessing and class names.

    Attributes:
      config: the config of the training run. Images are resized as `input_size` and
        `data.keep_ratio` specify.
      max_megapixels: size limit of images that are read from files.
      class_names: names by label.
    """

    def __init__(self, weights: Weights, max_megapixels: float | None = None) -> None:
        """Build the network of `weights`.

        Args:
          weights: variables, config and class names.
          max_megapixels: refuse to read larger image files. None: `data.max_megapixels` of the
            weights' config, but at most `records.MAX_MEGAPIXELS`.

        Raises:
          UserError: if `max_megapixels` is not positive.
        """
        self.config: Config = weights.config
        if max_megapixels is None:
            max_megapixels = min(weights.config.data.max_megapixels, MAX_MEGAPIXELS)
        if not max_megapixels > 0:
            raise UserError(f"max_megapixels={max_megapixels}: must be positive")
        self.max_megapixels = max_megapixels
        self.class_names = class_names_of(weights)
        self._variables = weights.variables
        self._detect = make_detect(build_model(weights.config.model, weights.config.precision))

    @classmethod
    def load(
        cls,
        weights_or_workdir: str | Path,
        max_input_side: float = MAX_INPUT_SIDE,
        max_megapixels: float | None = None,
    ) -> "Detector":
        """Load a detector from a `.pth`, `.ckpt` or `.npz` file, or from the workdir of a run.

        Args:
          weights_or_workdir: the file or workdir.
          max_input_side: refuse weights whose config has a larger input height or width, pixels.
          max_megapixels: refuse to read larger image files; see `__init__` for the default.

        Raises:
          UserError: naming the path, if it is missing, damaged or not a file of weights.
        """
        return cls(load_weights(weights_or_workdir, max_input_side), max_megapixels)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of str too
        self, images: Image
    ) -> ImageDetections: ...

    @overload
    def __call__(self, images: Sequence[Image]) -> list[ImageDetections]: ...

    def __call__(self, images: Image | Sequence[Image]) -> ImageDetections | list[ImageDetections]:
        """Detect objects in one image or in each image of a sequence.

        Args:
          images: a path, an array uint8 BGR [height, width, 3] as OpenCV reads it or uint8 gray
            [height, width], or a sequence of these.

        Returns:
          One `ImageDetections` for one image, a list for a sequence.

        Raises:
          UserError: naming an image that cannot be read, or if damaged weights produce boxes that
            are not finite.
        """
        if isinstance(images, str | Path | np.ndarray):
            return self.detect_one(images)
        return [self.detect_one(image) for image in images]

    def detect_one(self, image: Image) -> ImageDetections:
        """Detect objects in one image; see `__call__`. Compiles once per input shape."""
        pixels = read_image(image, self.max_megapixels)
        prepared = prepare_for_inference(pixels, self.config)
        batch = stack([(0, prepared)], batch_size=1)
        [(_, detections)] = detect_batch(self._detect, self._variables, batch)
        if not np.isfinite(detections.boxes).all():
            raise UserError(
                "the network produced boxes that are not finite: its weights are damaged; load "
                "another copy or checkpoint"
            )
        names = [self.class_names[label] for label in detections.labels]
        return ImageDetections(detections.boxes, detections.scores, names, detections.labels)


def read_image(image: Image, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Return the pixels of an image file, or check those of an array.

    Args:
      image: a path, or an array uint8 BGR [height, width, 3] or gray [height, width].
      max_megapixels: refuse to read a larger file.

    Returns:
      [height, width, 3] uint8 BGR.

    Raises:
      UserError: if the file is too large or cannot be read, or the array has another dtype or
        shape.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
            raise UserError(
                f"image of dtype {image.dtype} and shape {image.shape}: must be uint8 BGR "
                "[height, width, 3], and not empty"
            )
        if image.ndim == 2:
            return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        if image.shape[2] != 3:
            raise UserError(f"image of shape {image.shape}: must have 3 channels, BGR")
        return image
    path = Path(image)
    with contextlib.suppress(RuntimeError):  # a file named "~name" where no such user exists
        path = path.expanduser()
    return decode(make_record(0, path.name, path, (0, 0), [], [], [], []), max_megapixels)
