"""Call a detector with images of many sizes; print its memory and number of compiled programs.

    python tests/tools/detector_memory.py [--calls 2000] [--sizes 500] [--side 128]

The network is tiny, and its weights are zero. Every tenth call passes a list of up to eight images;
the others pass one image. The last line compares the memory after the last call with the memory
after half of the calls. The exit status is 1 if there are too many programs. Linux only.
"""

import argparse
import gc
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from nanodet_jax.config import Config, Model
from nanodet_jax.inference.detector import MAX_PROGRAMS, Detector
from nanodet_jax.io.weights import Weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.runtime.process import setup_process
from nanodet_jax.state import abstract_variables

MAX_SIDE = 640  # pixels of an image
LIST_EVERY, LIST_IMAGES = 10, 8
LINES = 8


def tiny_detector(side: int) -> Detector:
    """Return a detector whose weights are all zero, with inputs of up to side x side pixels."""
    model = Model(num_classes=1, width=0.5, channels=32, stacked_convs=1)
    config = Config(input_size=(side, side), model=model)
    config.data.keep_ratio = True  # many input shapes
    shapes = abstract_variables(build_model(model))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return Detector(Weights(zeros, config, ("thing",)))


def resident_megabytes() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--sizes", type=int, default=500)
    parser.add_argument("--side", type=int, default=128, help="input size, a multiple of 32")
    args = parser.parse_args(argv)
    setup_process()
    detector = tiny_detector(args.side)
    draw = np.random.default_rng(0)
    sizes = draw.integers(16, MAX_SIDE, (args.sizes, 2))
    every = max(1, args.calls // LINES)
    measured = []
    print("calls  seconds  resident MB  programs")
    started = time.perf_counter()
    for call in range(1, args.calls + 1):
        count = int(draw.integers(1, LIST_IMAGES + 1)) if call % LIST_EVERY == 0 else 1
        images = [np.zeros((*sizes[(call + i) % len(sizes)], 3), np.uint8) for i in range(count)]
        detector(images if count > 1 else images[0])
        if call % every == 0:
            gc.collect()
            measured.append(resident_megabytes())
            seconds = time.perf_counter() - started
            print(f"{call:5d}  {seconds:7.0f}  {measured[-1]:11.0f}  {detector.num_programs:8d}")
    grown = measured[-1] - measured[len(measured) // 2 - 1]
    print(f"{grown:+.0f} MB in the second half; at most {MAX_PROGRAMS} programs")
    return int(detector.num_programs > MAX_PROGRAMS)


if __name__ == "__main__":
    sys.exit(main())
