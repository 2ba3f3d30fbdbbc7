"""The step of whole networks over 1, 2, 4 and 8 devices, batch norm over all of them.

In float32 rounding hides what is to be seen: a deep network amplifies it beyond 1e-6, with jumps
where an activation changes sides. In float64 nothing is left of it, whatever the order of sums.
`python tests/many_devices.py` has the figures of both.
"""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import shapes
from nanodet_jax.models import shufflenet_v2
from tests.many_devices import COUNTS, after_a_step, differences, make_task, results_of, worst

DOC = Path(__file__).parents[2] / "docs" / "many_devices.md"
VARIANTS = ("nanodet-m-tiny", "nanodet-plus-m-tiny")


@pytest.fixture(scope="module", autouse=True)
def devices():
    if jax.local_device_count() < max(COUNTS):
        pytest.skip(f"needs {max(COUNTS)} devices, and XLA_FLAGS was set otherwise")


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """A block per stage of the backbone: a third of the compilation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shufflenet_v2, "STAGE_BLOCKS", (1, 1, 1))
        yield


def small_task(variant, dtype):
    settings = shapes.get_config(variant)
    settings.input_size = (64, 64)
    settings.model.channels = 32
    settings.model.stacked_convs = settings.model.guidance_convs = 1
    settings.model.guidance_channels = 32 if settings.model.guidance_channels else 0
    return make_task(settings, dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_devices_takes_the_step_of_one(variant):
    with jax.enable_x64(True):
        task = small_task(variant, "float64")
        one = after_a_step(task, 1)
        assert {leaf.dtype for leaf in jax.tree.leaves(one["gradients"])} == {np.dtype(np.float64)}
        assert one["loss"]["positives"] > 0
        for count in COUNTS[1:]:
            found = after_a_step(task, count)
            for what in one:
                largest, name = worst(differences(found[what], one[what]))
                assert largest < 1e-9, (count, what, name)


def test_without_it_statistics_are_those_of_a_device():
    with jax.enable_x64(True):
        task = small_task(VARIANTS[0], "float64")
        model = task.parts["model"]
        apart = model.clone(
            model=model.model.__class__(**(vars(model.model) | {"sync_batch_norm": False}))
        )
        found = [
            after_a_step(task._replace(parts=task.parts | {"model": m}), 2) for m in (model, apart)
        ]
    assert worst(differences(found[1]["gradients"], found[0]["gradients"]))[0] > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_pmap_as_documented_is_equal_to_the_last_bit(variant):
    task = small_task(variant, "float32")
    code = re.search(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)[1]
    names = {"parts": task.parts, "state": task.state, "batch": task.batch}
    exec(code, names)
    ours = results_of(names["state"], {k: v[0] for k, v in names["metrics"].items()})
    jax.tree.map(np.testing.assert_array_equal, ours, after_a_step(task, 8))
    for leaf in jax.tree.leaves(names["states"]):
        assert np.all(np.asarray(leaf) == np.asarray(leaf[:1]))  # all devices have the same
