"""Write the files of a corrected copy: annotations, and images as hard links where possible."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from nanodet_jax.data.image_files import is_truncated, shown_size
from nanodet_jax.errors import reporting_write_errors
from nanodet_jax.files import open_regular, read_regular

IMAGE_LIMIT = 1 << 30  # bytes; largest image file that is read to check its end


def copy_image(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system does not allow a link.

    A file that cannot be read is left out.

    Raises:
      UserError: naming the target, if it cannot be written.
    """
    with reporting_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.link(os.path.realpath(source), target)
            return
        try:
            stream = open_regular(source)
        except (OSError, ValueError):
            return
        with stream, open(target, "xb") as copy:
            shutil.copyfileobj(stream, copy)


def is_unreadable(image: Path) -> bool:
    """Return whether the header of an image cannot be read, or its end is missing."""
    if shown_size(image) is None:
        return True
    try:
        return is_truncated(read_regular(image, IMAGE_LIMIT, "an image"))
    except (OSError, ValueError):
        return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write a new file, and create missing folders.

    Raises:
      UserError: naming the file, if it cannot be written.
    """
    with reporting_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
