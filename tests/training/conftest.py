"""A shallow backbone for the tests of training."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def shallow_in_training(shallow):
    """Use the shallow backbone. `tests/parity.py` checks trajectories of the whole network."""
