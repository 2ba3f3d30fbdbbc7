"""Malicious checkpoints: consistent and with valid checksums, but not what was saved.

Files of OCDBT, the format of their databases, are built here because its library cannot write
such content: a manifest names the root of a tree whose nodes contain keys and values. Format:
https://google.github.io/tensorstore/kvstore/ocdbt/index.html
"""

import json
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import tensorstore

from nanodet_jax.io import checksums
from nanodet_jax.io.checkpoint import Checkpoints
from tests.tools import corrupt

STEP = 1
MANIFEST, NODE = 0x0CDB3A2A, 0x0CDB20DE
BLOCK = 128 << 10  # largest decoded size of a block of zstd, in bytes


def save(workdir: Path) -> Path:
    """Save a valid checkpoint, and return its folder."""
    with closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.save(corrupt.state_of(STEP))
    return workdir / "checkpoints" / str(STEP)


def sign(path: Path, value: Any) -> None:
    """Write a json file with a valid checksum; infinity and NaN are written as Python does."""
    path.write_text(
        json.dumps({"value": value, checksums.DIGEST: checksums._digest_of_json(value)})
    )


def change_record(step: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the record; `change` returns a new value, or None after changing it in place."""
    path = step / "record" / "metadata"
    value = json.loads(path.read_text())["value"]
    changed = change(value)
    sign(path, value if changed is None else changed)


def write_keys(part: Path, values: dict[str, bytes]) -> None:
    """Write values to the database of a part with tensorstore."""
    base = {"driver": "file", "path": f"{part}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    for key, value in values.items():
        store.write(key, value).result()


def repeated(byte: int, blocks: int, first: bytes = b"") -> bytes:
    """Return a zstd frame of `first` and `blocks` blocks that repeat one byte, 4 bytes each.

    The frame has a window of 1 MiB, no content size and no checksum.
    """
    frame = b"\x28\xb5\x2f\xfd\x00\x50" + _block(0, len(first)) + first
    run = _block(1, BLOCK) + bytes([byte])
    return frame + run * blocks + _block(0, 0, last=1)


def _block(kind: int, size: int, last: int = 0) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little")


def varint(number: int) -> bytes:
    """Encode an integer as OCDBT and protocol buffers do."""
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def framed(magic: int, body: bytes, compressed: bool = False) -> bytes:
    """Wrap the body of a manifest or node."""
    head = struct.pack(">I", magic) + struct.pack("<Q", len(body) + 18) + bytes([0, compressed])
    return head + body + struct.pack("<I", crc32c(head + body))


def crc32c(data: bytes) -> int:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def files_table(base: str, name: str) -> bytes:
    """Return a table of one data file: `name` below `base`, which is relative to the database."""
    path = (base + name).encode()
    return varint(1) + varint(len(path)) + varint(len(base)) + path


CONFIG = bytes(16) + varint(0) + varint(100) + varint(8 << 20) + bytes([4]) + varint(0)


def manifest(base: str, name: str, length: int) -> bytes:
    """Return a manifest whose root is a node of `length` bytes at the start of a data file."""
    version = varint(1)  # one version, generation 1, height 0
    entry = varint(1) + bytes([0]) + varint(0) + varint(0) + varint(length)
    statistics = varint(1) + varint(length) + varint(0)
    body = CONFIG + files_table(base, name) + version + entry + statistics + bytes(8) + varint(0)
    return framed(MANIFEST, body)


def leaf(
    keys: list[tuple[int, bytes]], values: list[bytes | tuple[int, int]], files: bytes
) -> bytes:
    """Return a node of keys, each given as the length of the prefix that it shares and the rest.

    A value is either bytes, or an offset and a length in the data file.
    """
    inline = [value for value in values if isinstance(value, bytes)]
    placed = [value for value in values if not isinstance(value, bytes)]
    body = bytes([0]) + files + varint(len(keys))
    body += b"".join(varint(shared) for shared, _ in keys[1:])
    body += b"".join(varint(len(rest)) for _, rest in keys)
    body += b"".join(rest for _, rest in keys)
    lengths = (len(value) if isinstance(value, bytes) else value[1] for value in values)
    body += b"".join(map(varint, lengths))
    body += bytes(not isinstance(value, bytes) for value in values)
    body += bytes(len(placed)) + b"".join(varint(offset) for offset, _ in placed)
    return framed(NODE, body + b"".join(inline))


def replace_tree(part: Path, node: bytes) -> None:
    """Replace the database of a part with one node."""
    (part / "d" / "node").write_bytes(node)
    (part / "manifest.ocdbt").write_bytes(manifest("", "d/node", len(node)))
