"""From images to boxes: the network, what follows it, and what comes before it."""

import time
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp

from benchmarks.subject import Network, Subject, on_device, random_batch
from benchmarks.timing import Program, compile_and_run
from nanodet_jax.data.pipeline import evaluation_batches
from nanodet_jax.data.records import Record, decode, make_record
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.inference.detector import Detector
from nanodet_jax.inference.predict import detect_batch, make_detect
from nanodet_jax.io.weights import Weights
from nanodet_jax.models.guidance import strip_guidance
from nanodet_jax.runtime import backend

FILES = 32  # photographs, which serve again and again
FILE_SIZE = (480, 640)  # height and width, of most of COCO's
READ_AHEAD = 4  # batches that a run of several images consists of


def network(subject: Subject) -> dict[str, Program]:
    """Images on the device to predictions."""
    built = Network(subject)
    images = on_device(random_batch(subject, built.config.input_size)).images
    variables = jax.device_put(strip_guidance(built.variables))
    program = compile_and_run(
        backend.jit(built.model.apply), variables, images, images=subject.batch, limit="inference"
    )
    return {"": program}


def network_and_boxes(subject: Subject) -> dict[str, Program]:
    """Images on the device to boxes on the device. What the boxes are does not matter to time."""
    built = Network(subject)
    size = built.config.input_size
    images = on_device(random_batch(subject, size)).images
    variables = jax.device_put(strip_guidance(built.variables))
    warps = jnp.broadcast_to(jnp.eye(3), (subject.batch, 3, 3))
    sizes = jnp.broadcast_to(jnp.asarray(size, jnp.float32), (subject.batch, 2))
    detect = make_detect(built.model)
    return {"": compile_and_run(detect, variables, images, warps, sizes, images=subject.batch)}


def draw_files(folder: Path) -> None:
    """Fill a folder with JPEGs of drawn shapes, for `files_to_boxes`."""
    height, width = FILE_SIZE
    shapes = ShapesSource("val", size=max(FILE_SIZE), count=FILES)
    for index in range(FILES):
        cv2.imwrite(str(folder / f"{index:03d}.jpg"), decode(shapes[index])[:height, :width])


class _Files:
    """The files of a folder as a source, over and over until there are `count`."""

    def __init__(self, folder: Path, count: int):
        self._paths = sorted(folder.glob("*.jpg"))
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        path = self._paths[index % len(self._paths)]
        return make_record(index, path.name, path, (0, 0), [], [], [], [])


def files_to_boxes(subject: Subject, folder: Path) -> dict[str, Program]:
    """Image files to boxes in their pixels: `Detector` for one, `eval.py`'s pipeline for more.

    Args:
      subject: its batch is how many images are detected together.
      folder: of `draw_files`.
    """
    built = Network(subject)
    variables: Any = jax.device_put(strip_guidance(built.variables))
    started = time.perf_counter()
    if subject.batch == 1:
        detector = Detector(Weights(variables, built.config, ()))
        path = min(folder.glob("*.jpg"))

        def run() -> Any:
            return detector.detect_one(path)

        batches = 1
    else:
        batches = READ_AHEAD
        config = built.config
        config.data.batch_size = subject.batch
        detect = make_detect(built.model)
        source: Any = _Files(folder, batches * subject.batch)

        def run() -> Any:
            for batch in evaluation_batches(source, config):
                for _ in detect_batch(detect, variables, batch):
                    pass

    run()
    facts = {"first_s": time.perf_counter() - started}
    return {"": Program(run, facts, images=batches * subject.batch, batches=batches)}
