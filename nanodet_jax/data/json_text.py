"""Json text in which no key of an object occurs twice: Python would keep the last one silently."""

import json
import reprlib
from typing import Any

from nanodet_jax.errors import UserError


def loads_unique(text: str) -> Any:
    """Parse json text.

    Raises:
      UserError: naming the key and its object, if a key occurs twice.
      ValueError, RecursionError: as `json.loads`.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                where = ascii(reprlib.repr(made))
                raise UserError(f"key {key[:100]!a} occurs twice in an object {where}")
            seen.add(key)
    return made
