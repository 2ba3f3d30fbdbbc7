"""A detector that computes its detections from the image size, so that nothing is compiled."""

import numpy as np

from nanodet_jax.config import Config, Model
from nanodet_jax.inference import detector as module
from nanodet_jax.inference.detector import Detector
from nanodet_jax.io.weights import Weights
from nanodet_jax.structures import Detections

NAMES = ("cat", "dog", "bird")
# Of each image: boxes in fractions of width and height, scores and labels. The last two boxes
# are one object.
FRACTIONS = np.array([[0, 0, 0.25, 0.5], [0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1]], np.float32)
SCORES, LABELS = np.array([0.9, 0.5, 0.375], np.float32), np.array([1, 0, 2], np.int32)


class StubPrograms:
    """Replaces `make_detect`; `shapes` lists the shape of each program, `calls` of each call."""

    def __init__(self, scores=SCORES):
        self.scores, self.programs, self.calls = scores, [], []

    def make_detect(self, model):
        shapes = set()
        self.programs.append(shapes)

        def detect(variables, images, inverse_warps, sizes, padded_sizes):
            shapes.add(images.shape)
            self.calls.append(images.shape)
            count = len(images)
            scale = np.tile(sizes[:, ::-1], 2)[:, None]  # [B, 1, 4]
            return Detections(
                boxes=FRACTIONS * scale,
                scores=np.tile(self.scores, (count, 1)),
                labels=np.tile(LABELS, (count, 1)),
                valid=np.ones((count, 3), bool),
                truncated=np.zeros(count, bool),
            )

        return detect


def stub_detector(monkeypatch, side=64, keep_ratio=True, scores=SCORES):
    """Return a detector of three classes, and its programs."""
    programs = StubPrograms(np.array(scores, np.float32))
    monkeypatch.setattr(module, "make_detect", programs.make_detect)
    config = Config(input_size=(side, side), model=Model(num_classes=len(NAMES)))
    config.data.keep_ratio = keep_ratio
    return Detector(Weights(None, config, NAMES)), programs
