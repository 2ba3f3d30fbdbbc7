"""Json files, written wholly or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from nanodet_jax.errors import writing


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as json, wholly or not at all: readers never see half a file.

    Raises:
      UserError: naming the path, if it cannot be written.
      ValueError: on nan or infinity, which json does not know.
    """
    path = Path(path)
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: replace is atomic
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
