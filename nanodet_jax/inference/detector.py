"""A detector to call: images or their paths in, boxes with names out."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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


class Found(NamedTuple):
    """The objects in one image, best first."""

    boxes: np.ndarray  # [n, 4] float32 xyxy, pixels of the image
    scores: np.ndarray  # [n] float32, above 0.05
    class_names: list[str]  # n names
    labels: np.ndarray  # [n] int32


class Detector:
    """A network with its weights, its way of resizing, and its class names.

    Attributes:
      config: of the training; `input_size` and `data.keep_ratio` decide how images are resized,
        `max_megapixels` which are too large to be read.
      max_megapixels: the weights' `data.max_megapixels`, but at most `records.MAX_MEGAPIXELS`,
        unless the caller has given a value.
      class_names: by label.
    """

    def __init__(self, weights: Weights, max_megapixels: float | None = None):
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
        """A detector from a `.pth`, `.ckpt` or `.npz` file, or from a run's workdir.

        Args:
          weights_or_workdir: the file or workdir.
          max_input_side: the largest height or width of input that the weights may ask for.
          max_megapixels: larger images are not read; default: as the weights say, within bounds.

        Raises:
          UserError: if there is nothing there, or not what it should be.
        """
        return cls(load_weights(weights_or_workdir, max_input_side), max_megapixels)

    def __call__(self, images: Image | Sequence[Image]) -> Found | list[Found]:
        """Objects in an image, or in each of several.

        Args:
          images: a path, pixels uint8 BGR [height, width, 3] as OpenCV reads them, or a list.

        Returns:
          One `Found` for one image, a list for a list.

        Raises:
          UserError: naming the image that cannot be read, or because of weights that yield boxes
            without finite coordinates.
        """
        if isinstance(images, str | Path | np.ndarray):
            return self.detect_one(images)
        return [self.detect_one(image) for image in images]

    def detect_one(self, image: Image) -> Found:
        """Objects in one image; a program is compiled for each new shape of input."""
        pixels = read_image(image, self.max_megapixels)
        prepared = prepare_for_inference(pixels, self.config)
        batch = stack([(0, prepared)], batch_size=1)
        [(_, found)] = detect_batch(self._detect, self._variables, batch)
        if not np.isfinite(found.boxes).all():
            raise UserError("the network yields boxes that are not finite; its weights are damaged")
        names = [self.class_names[label] for label in found.labels]
        return Found(found.boxes, found.scores, names, found.labels)


def read_image(image: Image, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Pixels uint8 BGR [height, width, 3] of a path, or of an array that is checked.

    Raises:
      UserError: if the file cannot be read or is larger, or the array is not such pixels.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
            raise UserError(
                f"an image must be uint8 [height, width, 3] BGR, not {image.dtype} {image.shape}"
            )
        if image.ndim == 2:
            return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        if image.shape[2] != 3:
            raise UserError(f"an image must have 3 channels (BGR), not {image.shape[2]}")
        return image
    path = Path(image)
    with contextlib.suppress(RuntimeError):  # a file called ~name, without such a user
        path = path.expanduser()
    return decode(make_record(0, path.name, path, (0, 0), [], [], [], []), max_megapixels)
