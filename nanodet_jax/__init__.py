"""NanoDet and NanoDet-Plus, small one-stage object detectors, in JAX and Flax.

`train_and_evaluate(config, workdir)` trains, `evaluate(config, weights, out)` evaluates, and
`Detector.load(weights)` finds objects in images. `setup_process()` changes process-wide
settings. `train_and_evaluate` and `evaluate` call it; a `Detector` does not.
"""

from nanodet_jax.evaluation.evaluate import evaluate as evaluate
from nanodet_jax.inference.detector import Detector as Detector
from nanodet_jax.runtime.process import setup_process as setup_process
from nanodet_jax.training.loop import train_and_evaluate as train_and_evaluate
from nanodet_jax.version import __version__ as __version__
