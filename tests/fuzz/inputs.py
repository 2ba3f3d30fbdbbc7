"""What fuzz tests share: how many examples, odd values, and what may come of them.

Crashers that were found stay as examples. More of them are looked for with FUZZ_EXAMPLES=5000.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from nanodet_jax.errors import UserError

SOUGHT = "FUZZ_EXAMPLES" in os.environ  # then others each time; else the same
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 60))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not SOUGHT,
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
    """What comes of it, None for a UserError, whose message must be fit for a line."""
    try:
        return read(*arguments)
    except UserError as error:
        assert str(error)
        repr(str(error)).encode()
        return None
