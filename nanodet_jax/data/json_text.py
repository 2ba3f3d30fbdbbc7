"""JSON parsing that rejects repeated keys. Python's `json` silently keeps the last value."""

import json
import reprlib
from typing import Any

from nanodet_jax.errors import UserError


def loads_unique(text: str) -> Any:
    """Parse JSON text.

    Raises:
      UserError: naming the key and the object, if an object contains a key twice.
      ValueError, RecursionError: as in `json.loads`.
    """
    return json.loads(text, object_pairs_hook=_check_unique)


def _check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                where = ascii(reprlib.repr(content))
                raise UserError(f"key {key[:100]!a} occurs twice in the object {where}; keep one")
            seen.add(key)
    return content
