"""Synthetic dataset of circles, triangles, squares and stars, drawn on demand.

It needs no download, and a laptop can train on it in minutes. Shapes vary in size by a factor of
three, are rotated, may be partly hidden, and have textured, noisy backgrounds. Each shape
differs in color from the background and from other shapes, so its outline is clear.
"""

import math
from typing import Any

import cv2
import numpy as np

from nanodet_jax.data.records import Category, Record, coco_ground_truth, make_record

NAMES = ("circle", "triangle", "square", "star")
MAX_OBJECTS = 4  # per image
SIZES = (0.2, 0.6)  # diameter of a shape's circumscribed circle, as a fraction of the image side
MIN_DISTANCE = 0.9  # from a shape's center to the image border, as a fraction of its radius
MIN_VISIBLE = 0.85  # visible fraction of each object's pixels once all objects are drawn
MAX_ATTEMPTS = 10  # to place an object
COLOR_CANDIDATES = 16  # random colors per object; the most distinct one is used
NOISE = 8  # largest change to a pixel value; a power of two, to divide the range of a byte evenly
SUBPIXEL_BITS = 4


class ShapesSource:
    """A split of `count` images of `size` x `size` pixels with 1 to 4 objects of 4 classes.

    An image depends only on (seed, split, index); `train` and `val` use separate random streams.
    A box encloses all pixels of its shape, including hidden ones, and is clipped to the image.
    """

    def __init__(self, split: str, size: int, count: int, seed: int = 0) -> None:
        """Create a source. Nothing is drawn yet.

        Args:
          split: "train" or "val".
          size: height and width of each image, pixels.
          count: number of images.
          seed: a different seed gives different images from the same distribution.
        """
        self.categories = tuple(Category(i, name) for i, name in enumerate(NAMES, start=1))
        self._split, self._size, self._count = split, size, count
        self._seed = (seed, ("train", "val").index(split))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(index)
        rng = np.random.default_rng([*self._seed, index])
        pixels, boxes, labels, areas = _draw(rng, self._size)
        size, ignore = (self._size, self._size), [False] * len(labels)
        return make_record(index + 1, self.name(index), pixels, size, boxes, labels, ignore, areas)

    def name(self, index: int) -> str:
        """Return the name of image `index`."""
        return f"shapes-{self._split}-{index:06d}.png"

    def num_boxes(self, index: int) -> int:
        """Return `MAX_OBJECTS`, an upper bound; the exact number would require drawing."""
        return MAX_OBJECTS

    def image_size(self, index: int) -> tuple[int, int]:
        """Return height and width, without drawing."""
        return self._size, self._size

    def ground_truth(self) -> dict[str, Any]:
        """Return the annotations of the split in COCO format. This draws every image once."""
        return coco_ground_truth((self[i] for i in range(len(self))), self.categories)


def _draw(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, list[tuple[int, int, int, int]], list[int], list[int]]:
    """Return pixels uint8 [size, size, 3], boxes xyxy, labels, and areas in pixels."""
    pixels, colors = _background(rng, size)
    owner = np.zeros((size, size), np.uint8)  # topmost object of each pixel: 1, 2, ...; 0: none
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    areas: list[int] = []
    visible = np.zeros(1, int)  # visible pixels by owner; the background's count is not used
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        label = int(rng.integers(len(NAMES)))
        for _ in range(MAX_ATTEMPTS):
            mask = _mask(rng, size, label)
            x, y, width, height = cv2.boundingRect(mask)
            window = np.s_[y : y + height, x : x + width]
            inside = mask[window] > 0
            remains = visible - np.bincount(owner[window][inside], minlength=len(visible))
            if np.all(remains[1:] >= MIN_VISIBLE * np.asarray(areas)):
                break
        else:
            continue  # no free space found: draw one fewer object
        boxes.append((x, y, x + width, y + height))
        labels.append(label)
        areas.append(int(np.count_nonzero(inside)))
        visible = np.append(remains, areas[-1])
        owner[window][inside] = len(areas)
        colors.append(_distinct_color(rng, colors))
        pixels[window][inside] = colors[-1]
    pixels = cv2.blur(pixels, (3, 3))  # soft edges, as in a photograph
    noise = np.frombuffer(rng.bytes(pixels.size), np.uint8).reshape(pixels.shape)
    pixels = cv2.add(pixels, noise % np.uint8(2 * NOISE))
    return cv2.subtract(pixels, np.full_like(pixels, NOISE)), boxes, labels, areas


def _mask(rng: np.random.Generator, size: int, label: int) -> np.ndarray:
    """Draw one shape of random size, rotation and position: uint8 [size, size], 255 inside."""
    low, high = np.log(SIZES)
    radius = 0.5 * size * math.exp(rng.uniform(low, high))
    center = rng.uniform(MIN_DISTANCE * radius, size - MIN_DISTANCE * radius, 2)
    mask = np.zeros((size, size), np.uint8)
    scale = 1 << SUBPIXEL_BITS
    match NAMES[label]:
        case "circle":
            x, y = np.rint(center * scale).astype(int).tolist()
            cv2.circle(mask, (x, y), round(radius * scale), 255, -1, shift=SUBPIXEL_BITS)
            return mask
        case "triangle":
            corners, inner = 3, 1.0
        case "square":
            corners, inner = 4, 1.0
        case _:  # star: every second corner lies closer to the center
            corners, inner = 10, 0.45
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * (2 * np.pi / corners)
    radii = radius * np.where(np.arange(corners) % 2, inner, 1.0)
    points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(mask, [np.rint(points * scale).astype(np.int32)], 255, shift=SUBPIXEL_BITS)
    return mask


def _distinct_color(rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    """Return the random color most distinct from all `others`: uint8 [3].

    The distance between two colors is their difference in the channel that differs most.
    """
    candidates = rng.integers(0, 256, (COLOR_CANDIDATES, 3))
    distances = np.abs(candidates[:, None] - np.stack(others)).max(axis=2)
    return candidates[np.argmax(distances.min(axis=1))].astype(np.uint8)


def _background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Blend two colors in a gradient, stripes or clouds: uint8 [size, size, 3], and the colors."""
    first, second = rng.uniform(20, 235, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    position = np.arange(size, dtype=np.float32) / size - 0.5
    along = np.float32(math.cos(angle)) * position + np.float32(math.sin(angle)) * position[:, None]
    mix: np.ndarray
    match rng.integers(3):
        case 0:
            mix = along / np.float32(math.sqrt(2)) + np.float32(0.5)
        case 1:
            waves = np.float32(2 * math.pi * rng.uniform(2, 12))
            mix = np.float32(0.5) + np.float32(0.3) * np.sin(waves * along)
        case _:
            cells = int(rng.integers(3, 20))
            coarse = rng.random((cells, cells), dtype=np.float32)
            mix = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    shades = np.linspace(first, second, 256).astype(np.uint8)
    pixels = shades.take((np.clip(mix, 0, 1) * 255).astype(np.uint8), axis=0)
    return pixels, [first, second]
