"""Settings and strategies of the fuzz tests.

Inputs that once caused a crash are kept as examples. FUZZ_EXAMPLES=5000 searches for more.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from nanodet_jax.errors import UserError

SEARCHING = "FUZZ_EXAMPLES" in os.environ  # with random examples; otherwise always the same
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 60))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not SEARCHING,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.integers()
    | st.sampled_from([10**18, 2**63, 10**400, -(10**400), 1e308, -0.0, float("nan")])
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["a.png", "../a.png", "/a.png", "deep/a.png", "\ud800", "a\0", "loop/loop"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def accepts(read, *arguments):
    """Return the result of `read`, or None for a UserError, whose message must be encodable."""
    try:
        return read(*arguments)
    except UserError as error:
        assert str(error)
        repr(str(error)).encode()
        return None
