"""Inference: the network alone, with decoding and suppression, and from image files."""

import time
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp

from benchmarks.timing import Program, compile_and_run
from benchmarks.workload import Network, Workload, on_device, random_batch
from nanodet_jax.data.pipeline import evaluation_batches
from nanodet_jax.data.records import Record, decode, make_record
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.data.transforms import padded_size
from nanodet_jax.inference.detector import Detector
from nanodet_jax.inference.predict import detect_batch, make_detect
from nanodet_jax.io.weights import Weights
from nanodet_jax.models.fuse import build_fused
from nanodet_jax.models.guidance import strip_guidance
from nanodet_jax.runtime import backend

NUM_FILES = 32  # image files; they are read repeatedly
FILE_SIZE = (480, 640)  # height and width, a common size of COCO's images
BATCHES_PER_RUN = 4  # if a batch has more than one image; otherwise 1


def network(workload: Workload) -> dict[str, Program]:
    """Build the program from images on the device to predictions, with the deployed network."""
    built = Network(workload)
    images = on_device(random_batch(workload, padded_size(built.config.input_size))).images
    trained = strip_guidance(built.variables)
    model, variables = build_fused(built.config.model, workload.precision, trained)
    program = compile_and_run(
        backend.jit(model.apply),
        jax.device_put(variables),
        images,
        images=workload.batch,
        roofline="inference",
    )
    return {"": program}


def network_and_boxes(workload: Workload) -> dict[str, Program]:
    """Build the program from images on the device to boxes on the device."""
    built = Network(workload)
    size = built.config.input_size
    images = on_device(random_batch(workload, size)).images
    variables = jax.device_put(strip_guidance(built.variables))
    warps = jnp.broadcast_to(jnp.eye(3), (workload.batch, 3, 3))
    sizes = jnp.broadcast_to(jnp.asarray(size, jnp.float32), (workload.batch, 2))
    detect = make_detect(built.model)
    return {"": compile_and_run(detect, variables, images, warps, sizes, images=workload.batch)}


def draw_files(folder: Path) -> None:
    """Write JPEGs of drawn shapes to a folder, for `files_to_boxes`."""
    height, width = FILE_SIZE
    shapes = ShapesSource("val", size=max(FILE_SIZE), count=NUM_FILES)
    for index in range(NUM_FILES):
        cv2.imwrite(str(folder / f"{index:03d}.jpg"), decode(shapes[index])[:height, :width])


class _Files:
    """Source of `count` records that repeats the files of a folder."""

    def __init__(self, folder: Path, count: int):
        self._paths = sorted(folder.glob("*.jpg"))
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        path = self._paths[index % len(self._paths)]
        return make_record(index, path.name, path, (0, 0), [], [], [], [])


def files_to_boxes(workload: Workload, folder: Path) -> dict[str, Program]:
    """Build the program from image files to boxes in the pixels of these files.

    A batch of one image uses `Detector`; larger batches use the pipeline of `eval.py`.

    Args:
      workload: its batch is the number of images that are processed together.
      folder: from `draw_files`.
    """
    built = Network(workload)
    variables: Any = jax.device_put(strip_guidance(built.variables))
    started = time.perf_counter()
    if workload.batch == 1:
        detector = Detector(Weights(variables, built.config, ()))
        path = min(folder.glob("*.jpg"))

        def run() -> Any:
            return detector.detect_one(path)

        batches = 1
    else:
        batches = BATCHES_PER_RUN
        config = built.config
        config.data.batch_size = workload.batch
        detect = make_detect(built.model)
        source: Any = _Files(folder, batches * workload.batch)

        def run() -> Any:
            for batch in evaluation_batches(source, config):
                for _ in detect_batch(detect, variables, batch):
                    pass

    run()
    facts = {"first_s": time.perf_counter() - started}
    return {"": Program(run, facts, images=batches * workload.batch, batches=batches)}
