"""Finding the tensors in a file that PyTorch before 1.6 wrote.

Such a file is not an archive. It begins with five pickles: a magic number, the version of the
format, properties of the machine, the saved value, and the keys of its storages. The storages
follow in the order of the keys, each as its number of elements (int64) and its elements.
torchvision and mmdetection still publish such files.
"""

import io
import os
from typing import Any, BinaryIO

import numpy as np

from nanodet_jax.errors import UserError
from nanodet_jax.io import torch_pickle
from nanodet_jax.io.torch_pickle import STORAGE_DTYPES, Storage, quoted

# The pickles of the magic number and of the version, 1001, in the protocol that torch.save uses.
START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + b"\x80\x02M\xe9\x03."
COUNT_BYTES = 8


def locate(file: BinaryIO, pickle_limit: int) -> tuple[Any, dict[str, int]]:
    """Interpret the pickles, and find the storages without reading them.

    Args:
      file: a file that begins with START.
      pickle_limit: maximum size of the five pickles in bytes.

    Returns:
      The saved value, as from `torch_pickle.interpret`, and the position of the first element of
      each storage, by key. Elements are little-endian and lie inside the file.

    Raises:
      UserError: if the file is damaged or comes from a big-endian machine.
    """
    file.seek(len(START))
    head, storages = io.BytesIO(file.read(pickle_limit)), dict[str, Storage]()
    machine, value, keys = [torch_pickle.interpret(head, storages) for _ in range(3)]
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UserError("was written on a big-endian machine; save it again with torch>=1.6")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError("damaged file: its list of storages is not a list of keys")
    size = os.fstat(file.fileno()).st_size
    positions: dict[str, int] = {}
    position = len(START) + head.tell()
    for key in keys:
        if key not in storages or key in positions:
            raise UserError(f"damaged file: storage {quoted(key)} is unexpected")
        file.seek(position)
        count = int.from_bytes(file.read(COUNT_BYTES), "little")
        if count != storages[key].length:
            raise UserError(f"damaged file: storage {quoted(key)} has the wrong length")
        positions[key] = position + COUNT_BYTES
        position += COUNT_BYTES + count * np.dtype(STORAGE_DTYPES[storages[key].kind]).itemsize
    if position > size:
        raise UserError("damaged file: it ends too early; download it again")
    return value, positions
