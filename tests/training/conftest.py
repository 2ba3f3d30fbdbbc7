"""A shallow backbone for the tests of training."""

import pytest

from nanodet_jax.models.backbones import shufflenet_v2


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """Build the backbone with one block per stage, for a third of the compilation time.

    Trajectories of the whole network are checked against the original in `tests/parity.py`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shufflenet_v2, "STAGE_BLOCKS", (1, 1, 1))
        yield
