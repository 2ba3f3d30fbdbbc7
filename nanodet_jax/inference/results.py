"""Select, draw, save and convert the detections of one image."""

import difflib
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import cv2
import numpy as np

from nanodet_jax import visualize
from nanodet_jax.errors import UserError
from nanodet_jax.inference.inputs import Color, Image, check_color, read_image
from nanodet_jax.terminal import join_first

NOTEBOOK_SIDE = 1024  # maximum length of the longer side of a picture in a notebook, pixels


class DetectedObject(NamedTuple):
    """One detection."""

    box: np.ndarray  # [4] float32 xyxy, pixels of the image
    score: float
    label: int
    name: str

    def to_dict(self) -> dict[str, Any]:
        """Return the class, the score and the box as json values."""
        return {"class": self.name, "score": self.score, "box_xyxy": self.box.tolist()}


@dataclass(frozen=True, eq=False, repr=False)
class ImageDetections:
    """Detections of one image, best first.

    `len` counts the detections, and iteration yields a `DetectedObject` for each. An integer index
    returns a `DetectedObject`; a slice, mask or array of indices returns an `ImageDetections`.
    Suppression is applied within each class, so one object may be detected as several classes.
    """

    boxes: np.ndarray
    """[n, 4] float32 xyxy, pixels of the image."""
    scores: np.ndarray
    """[n] float32, above 0.05."""
    labels: np.ndarray
    """[n] int32, indices into `Detector.class_names`."""
    size: tuple[int, int]
    """Height and width of the image."""
    known_classes: tuple[str, ...]
    """`Detector.class_names`: names by label."""
    image: Path | np.ndarray | None = None
    """The image to draw on: its path, or its uint8 BGR pixels, which are copied only if necessary.
    `dataclasses.replace(found, image=None)` releases the pixels."""
    threshold: float = visualize.THRESHOLD
    """Lowest score that is drawn: the requested threshold, or 0.35 by default."""

    @property
    def names(self) -> list[str]:
        """The n class names."""
        return [self.known_classes[label] for label in self.labels]

    @property
    def class_names(self) -> list[str]:
        """The n class names; an alias of `names`."""
        return self.names

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[DetectedObject]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> DetectedObject: ...

    @overload
    def __getitem__(self, index: slice | np.ndarray | list[int]) -> "ImageDetections": ...

    def __getitem__(
        self, index: int | slice | np.ndarray | list[int]
    ) -> "DetectedObject | ImageDetections":
        if isinstance(index, int | np.integer):
            label = int(self.labels[index])
            name = self.known_classes[label]
            return DetectedObject(self.boxes[index], float(self.scores[index]), label, name)
        chosen = np.arange(len(self))[index]
        return replace(
            self,
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            labels=self.labels[chosen],
        )

    def __repr__(self) -> str:
        counts = [f"{count} {name}" for name, count in Counter(self.names).most_common()]
        best = f"; best score {self.scores.max():.2f}" if len(self) else ""
        found = f": {join_first(counts)}" if counts else ""
        return f"<{len(self)} detections in {self.size[1]}x{self.size[0]} pixels{found}{best}>"

    def filter(
        self,
        *,
        threshold: float | None = None,
        classes: str | Collection[str] | None = None,
        max_detections: int | None = None,
    ) -> "ImageDetections":
        """Return the detections that meet all given conditions; None means no condition.

        Args:
          threshold: lowest score, in [0, 1]. It is also the lowest score that `draw` shows.
          classes: names of classes to keep, or one name.
          max_detections: keep at most this many of the remaining detections, the best ones. It must
            be at least 1.

        Raises:
          UserError: if a value is invalid, or a name is not in `known_classes`.
        """
        found = self
        check_selection(self.known_classes, threshold, classes, max_detections)
        if threshold is not None:
            kept = found.scores.astype(float) >= threshold  # in float64, as in `select_detections`
            found = replace(found[kept], threshold=float(threshold))
        if classes is not None:
            chosen = {classes} if isinstance(classes, str) else set(classes)
            found = found[np.array([name in chosen for name in found.names], bool)]
        return found[:max_detections]

    def draw(
        self, image: Image | None = None, *, color: Color = "bgr", draw_all: bool = False
    ) -> np.ndarray:
        """Return a copy of the image with the box, class name and score of each object.

        Objects that score less than `threshold` are not drawn.

        Args:
          image: the image, of any kind that `Detector` accepts. None: use the stored `image`.
          color: channel order of an array in `image`, and of the result.
          draw_all: draw every class of an object, not only the best one.

        Returns:
          [height, width, 3] uint8.

        Raises:
          UserError: if the image is not available or cannot be read, or its size is not `size`.
        """
        check_color(color)
        drawn = visualize.draw_detections(
            self._pixels(image, color), self.boxes, self.scores, self.labels, self.known_classes,
            self.threshold, draw_all=draw_all,
        )  # fmt: skip
        return drawn if color == "bgr" else np.ascontiguousarray(drawn[..., ::-1])

    def save(
        self,
        path: str | Path,
        image: Image | None = None,
        *,
        color: Color = "bgr",
        draw_all: bool = False,
    ) -> None:
        """Write the picture that `draw` returns. The path's suffix (.jpg, .png) sets the format.

        Args:
          path: the file to write; missing folders are created.
          image, color, draw_all: as in `draw`.

        Raises:
          UserError: as in `draw`, or naming the path, if it is the original image or cannot be
            written.
        """
        path = Path(path)
        original = self.image if image is None else image
        if isinstance(original, str | Path) and _resolved(path) == _resolved(original):
            raise UserError(f"{path}: is the original image; save the drawn copy elsewhere")
        drawn = self.draw(image, color=color, draw_all=draw_all)
        visualize.save_image(path, drawn if color == "bgr" else drawn[..., ::-1])

    def to_dict(self) -> dict[str, Any]:
        """Return the image size, and the class, score and box of each object, as json values."""
        height, width = self.size
        return {"height": height, "width": width, "objects": [one.to_dict() for one in self]}

    def _repr_png_(self) -> bytes | None:
        """Return the drawn image as a PNG for notebooks; None if it cannot be drawn."""
        try:
            drawn = self.draw()
        except UserError:
            return None
        factor = NOTEBOOK_SIDE / max(self.size)
        if factor < 1:
            width, height = (max(1, round(factor * side)) for side in self.size[::-1])
            drawn = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
        return cv2.imencode(".png", drawn)[1].tobytes()

    def _pixels(self, image: Image | None, color: Color) -> np.ndarray:
        height, width = self.size
        if image is None:
            image, color = self.image, "bgr"
        if image is None:
            raise UserError("the image was not kept; pass it, as in draw(image)")
        # If the file has been replaced by a larger image, it is not decoded.
        pixels = read_image(image, (height * width + 0.5) / 1e6, color=color)
        if pixels.shape[:2] != self.size:
            found = f"is {pixels.shape[1]}x{pixels.shape[0]}"
            raise UserError(f"the image {found}, but the boxes are for {width}x{height} pixels")
        return pixels


def check_selection(
    known_classes: Collection[str],
    threshold: float | None,
    classes: str | Collection[str] | None,
    max_detections: int | None,
) -> None:
    """Check the arguments of `ImageDetections.filter`.

    Raises:
      UserError: naming the invalid value.
    """
    if threshold is not None and not (_is_real(threshold) and 0 <= threshold <= 1):
        raise UserError(f"threshold={threshold!r}: must be a number from 0 to 1")
    if max_detections is not None and not (_is_integer(max_detections) and max_detections >= 1):
        raise UserError(f"max_detections={max_detections!r}: must be an integer of at least 1")
    if classes is None:
        return
    if not isinstance(classes, Collection):
        raise UserError(f"classes={classes!r}: must be a list of class names")
    for name in [classes] if isinstance(classes, str) else classes:
        if name not in known_classes:
            close = difflib.get_close_matches(str(name), known_classes, n=1)
            known = join_first(list(known_classes), limit=10)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {known}"
            raise UserError(f"classes: the detector has no class {name!r}; {hint}")


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _resolved(path: str | Path) -> str:
    return os.path.realpath(os.path.expanduser(path))
