"""Detect objects in images or image files with trained weights."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, overload

import numpy as np
from PIL import Image as PillowImage

from nanodet_jax.config import Config
from nanodet_jax.data.pipeline import Prepared, prepare_for_inference
from nanodet_jax.data.records import MAX_MEGAPIXELS
from nanodet_jax.errors import UserError
from nanodet_jax.inference.batches import batches_by_shape
from nanodet_jax.inference.inputs import ACCEPTED, Color, Image, check_color, describe, read_image
from nanodet_jax.inference.predict import Detect, detect_batches, make_detect
from nanodet_jax.inference.results import ImageDetections, check_selection
from nanodet_jax.io.weights import MAX_INPUT_SIDE, Weights, class_names_of, load_weights
from nanodet_jax.models.fuse import build_fused
from nanodet_jax.structures import Array, Detections

# With keep_ratio, an input size of 320 x 320 gives 19 shapes, each in up to four batch sizes.
MAX_PROGRAMS = 64
NOTHING = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)


class Options(TypedDict, total=False):
    """Keyword arguments of `Detector.__call__`."""

    color: Color
    threshold: float | None
    classes: str | Collection[str] | None
    max_detections: int | None


class Detector:
    """A network with its weights, preprocessing and class names.

    Attributes:
      config: the config of the training run. Images are resized as `input_size`,
        `data.keep_ratio` and `data.resize` specify.
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
        if not isinstance(weights, Weights):
            given = type(weights).__name__
            raise UserError(f"weights: {given} is not Weights; use Detector.load(FILE_OR_WORKDIR)")
        self.config: Config = weights.config
        if max_megapixels is None:
            max_megapixels = min(weights.config.data.max_megapixels, MAX_MEGAPIXELS)
        if not max_megapixels > 0:
            raise UserError(f"max_megapixels={max_megapixels}: must be positive")
        self.max_megapixels = max_megapixels
        self.class_names = class_names_of(weights)
        model, self._variables = build_fused(
            weights.config.model, weights.config.precision, weights.variables
        )

        # Each program is compiled for one batch shape. The cache drops the least recently used one.
        @lru_cache(MAX_PROGRAMS)
        def program(shape: tuple[int, ...]) -> Detect:
            return make_detect(model)

        self._program = program

    @classmethod
    def load(
        cls,
        weights_or_workdir: str | Path,
        max_input_side: float = MAX_INPUT_SIDE,
        max_megapixels: float | None = None,
    ) -> "Detector":
        """Load a detector from a weight file, the workdir of a run, or published weights.

        Args:
          weights_or_workdir: a `.pth`, `.ckpt` or `.npz` file, a workdir, or the name of published
            weights, such as "nanodet-plus-m_320", which are downloaded once.
          max_input_side: refuse weights whose config has a larger input side, in pixels.
          max_megapixels: refuse to read larger image files; see `__init__` for the default.

        Raises:
          UserError: naming the path, if it is missing, damaged or not a weight file, or cannot be
            downloaded.
        """
        return cls(load_weights(weights_or_workdir, max_input_side), max_megapixels)

    def __repr__(self) -> str:
        size = self.config.input_size
        return f"Detector({self.config.name!r}, input_size={size}, {len(self.class_names)} classes)"

    @property
    def num_programs(self) -> int:
        """Number of compiled programs in memory, at most `MAX_PROGRAMS`."""
        return self._program.cache_info().currsize

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is iterable too
        self, images: str | Path | PillowImage.Image, **options: Unpack[Options]
    ) -> ImageDetections: ...

    @overload
    def __call__(  # one image or several, depending on the number of axes
        self, images: np.ndarray, **options: Unpack[Options]
    ) -> Any: ...

    @overload
    def __call__(
        self, images: Iterable[Image], **options: Unpack[Options]
    ) -> list[ImageDetections]: ...

    def __call__(
        self,
        images: Image | Iterable[Image],
        *,
        color: Color = "bgr",
        threshold: float | None = None,
        classes: str | Collection[str] | None = None,
        max_detections: int | None = None,
    ) -> ImageDetections | list[ImageDetections]:
        """Detect objects in one image or in several.

        One image is a path, a Pillow image, or a uint8 array: gray [height, width] or
        [height, width, 1], color [height, width, 3], or color and transparency
        [height, width, 4]. Several images are a list or other iterable of these, or an array
        [images, height, width, channels]. Images that have the same shape after resizing are
        processed together, in batches of 1, 2, 4 or 8. Except for rounding, the result for an image
        does not depend on the others.

        An image file is rotated according to its EXIF orientation, and its boxes refer to the
        rotated image. A Pillow image is not rotated; apply `PIL.ImageOps.exif_transpose` to a photo
        first.

        Args:
          images: one image or several.
          color: channel order of arrays, "bgr" as OpenCV reads them, or "rgb".
          threshold: lowest score of a detection, in [0, 1]. Scores are above 0.05 in any case.
          classes: names of the classes to return, or one name; None for all.
          max_detections: maximum number of detections per image. There are never more than 100.

        Returns:
          `ImageDetections` for one image, a list of them for several.

        Raises:
          UserError: if an argument is invalid, an image has an unsupported type, dtype or shape, or
            cannot be read, or if damaged weights produce boxes that are not finite.
        """
        check_color(color)
        check_selection(self.class_names, threshold, classes, max_detections)
        single = isinstance(images, str | Path | PillowImage.Image) or (
            isinstance(images, np.ndarray) and images.ndim != 4
        )
        if single:
            found = self._detect_all([(cast(Image, images), "image")], color)
        elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
            numbered = ((image, f"images[{i}]") for i, image in enumerate(images))
            found = self._detect_all(numbered, color)
        else:
            raise UserError(f"images {describe(images)}; pass {ACCEPTED}, or a list of these")
        found = [
            one.filter(threshold=threshold, classes=classes, max_detections=max_detections)
            for one in found
        ]
        return found[0] if single else found

    def detect_one(self, image: Image) -> ImageDetections:
        """Detect objects in one image; see `__call__`."""
        return self._detect_all([(image, "image")], "bgr")[0]

    def _detect_all(
        self, images: Iterable[tuple[Image, str]], color: Color
    ) -> list[ImageDetections]:
        """Detect objects in images, each of which comes with a name for error messages."""
        results: list[ImageDetections] = []

        def read() -> Iterator[Prepared]:
            for image, name in images:
                pixels = read_image(image, self.max_megapixels, color=color, name=name)
                kept = Path(image) if isinstance(image, str | Path) else pixels
                height, width = pixels.shape[:2]
                results.append(ImageDetections(*NOTHING, (height, width), self.class_names, kept))
                yield prepare_for_inference(pixels, self.config)

        batches = batches_by_shape(read())
        for index, found in detect_batches(self._detect, self._variables, batches):
            if not np.isfinite(found.boxes).all():
                raise UserError(
                    "the network produced boxes that are not finite: its weights are damaged; load "
                    "another copy or checkpoint"
                )
            results[index] = replace(
                results[index], boxes=found.boxes, scores=found.scores, labels=found.labels
            )
        return results

    def _detect(
        self,
        variables: Any,
        images: Array,
        inverse_warps: Array,
        sizes: Array,
        padded_sizes: Array | None,
    ) -> Detections:
        program = self._program(images.shape)
        return program(variables, images, inverse_warps, sizes, padded_sizes)
