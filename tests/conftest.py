"""Strict settings for all tests.

Warnings are errors (`pyproject.toml`). Ranks and dtypes are never promoted silently. Shapes in the
signatures of the modules below are checked at run time. This slows down tracing a little, but does
not change programs.
"""

import gc
import os
import signal
from pathlib import Path

# JAX reads this when it is first imported, so set it before any other import. Keep a value that is
# already set. Programs are compiled with few optimizations, since most of them run a few times.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import flax.linen as nn
import jax
import jaxtyping
import optax
import pytest

# The files that take longest run first, so that no core is idle at the end of `pytest -n`.
LONGEST = ("test_kill", "test_parity", "test_loop", "test_docs", "test_plus", "test_legacy",
           "test_precision", "test_full_disks", "test_accumulate")  # fmt: skip

SHAPES_CHECKED = (
    "nanodet_jax.boxes",
    "nanodet_jax.losses",
    "nanodet_jax.inference.postprocess",
    "nanodet_jax.runtime.precision",
)
jaxtyping.install_import_hook(SHAPES_CHECKED, "beartype.beartype")  # before they are imported

from nanodet_jax.runtime.process import setup_process  # noqa: E402
from tests.runs import shallow_backbone  # noqa: E402

# A parent such as nohup, or a shell that starts the tests in the background, may ignore signals.
# The tests of signals need the default handlers, as do the processes that they start.
DEFAULT_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
for number, handler in DEFAULT_HANDLERS.items():
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# Traced programs consist of millions of long-lived objects. With Python's default thresholds, a
# sixth of the suite's time would be spent on garbage collection among them.
gc.set_threshold(200_000, 20, 100)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# These mix dtypes: a mean divides by an int64, Adam raises a float to an int32 power, and a group
# norm of bfloat16 multiplies by a float32 scale.
nn.GroupNorm.__call__ = jax.numpy_dtype_promotion("standard")(nn.GroupNorm.__call__)
nn.avg_pool = jax.numpy_dtype_promotion("standard")(nn.avg_pool)
optax.tree.bias_correction = jax.numpy_dtype_promotion("standard")(optax.tree.bias_correction)
setup_process(cache_dir=Path(__file__).parents[1] / ".jax_cache")


@pytest.fixture(scope="module")
def shallow():
    """Build a shallow backbone in the tests of a module."""
    with shallow_backbone():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
