"""The training step of whole networks on 1, 2, 4 and 8 devices, with batch norm over all of them.

The tests use float64. In float32, a deep network amplifies rounding beyond 1e-6, with jumps where
an activation changes its sign. `python tests/tools/many_devices.py` prints the differences in both.
"""

import functools
from functools import partial

import jax
import numpy as np
import pytest

from configs import shapes
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.runtime import backend
from nanodet_jax.state import SMALLEST_INPUT, abstract_variables
from tests.tools.many_devices import COUNTS, after_a_step, compare, make_task, results_of, worst
from tests.training.test_parallel import step_of_the_document

VARIANTS = ("nanodet-m-tiny", "nanodet-plus-m-tiny")


@pytest.fixture(scope="module", autouse=True)
def devices():
    if jax.local_device_count() < max(COUNTS):
        pytest.skip(f"needs {max(COUNTS)} devices, and XLA_FLAGS was set otherwise")


def small_task(variant, dtype):
    settings = shapes.get_config(variant)
    settings.input_size = (64, 64)
    settings.model.channels = 32
    settings.model.stacked_convs = settings.model.guidance_convs = 1
    settings.model.guidance_channels = 32 if settings.model.guidance_channels else 0
    return make_task(settings, dtype)


@pytest.fixture
def plainly_compiled(monkeypatch):
    """Compile without optimizations, in less than half the time, with equal float64 results."""
    monkeypatch.setattr(backend, "jit", backend.jit_once)


@pytest.fixture(scope="module")
def on_one():
    """Return a function that maps a variant to its task and to the results on one device."""

    @functools.cache
    def step(variant):
        task = small_task(variant, "float64")
        return task, after_a_step(task, 1)

    return step


@pytest.mark.parametrize(
    "variant, count",
    [
        pytest.param(variant, count, marks=pytest.mark.long)
        for variant in VARIANTS
        for count in COUNTS[1:]
    ],
)
def test_step_on_many_devices_equals_that_on_one(variant, count, on_one, plainly_compiled):
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True), jax.numpy_dtype_promotion("standard"):  # priors are float32
        task, one = on_one(variant)
        found = after_a_step(task, count)
    assert {leaf.dtype for leaf in jax.tree.leaves(one["gradients"])} == {np.dtype(np.float64)}
    assert one["loss"]["positives"] > 0
    for part, differences in compare(found, one).items():
        largest, name = worst(differences)
        assert largest < 1e-6, (part, name)


@pytest.mark.parametrize("sync", [False, True])
def test_batch_norm_reduces_over_devices_only_with_sync_batch_norm(sync):
    settings = shapes.get_config()
    settings.model.num_classes, settings.model.sync_batch_norm = 4, sync
    model = build_model(settings.model)
    variables = abstract_variables(model)

    def forward(variables, images):
        apply = partial(model.apply, method="branches", axis_name="data", mutable="batch_stats")
        return apply(variables, images)

    program = str(jax.make_jaxpr(forward, axis_env=[("data", 2)])(variables, SMALLEST_INPUT))
    norms = len(jax.tree.leaves(variables["batch_stats"])) // 2
    assert program.count("psum") == (2 * norms if sync else 0)


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_equals_the_documented_pmap_bit_for_bit(variant):
    """This test uses whole networks; `test_parallel.py` has the same test for a tiny one."""
    task = small_task(variant, "float32")
    found = results_of(*step_of_the_document(task.parts, task.state, task.batch))
    jax.tree.map(np.testing.assert_array_equal, found, after_a_step(task, 8))
