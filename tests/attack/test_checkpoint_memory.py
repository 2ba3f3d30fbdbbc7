"""Peak memory of restoring small files that decode to gigabytes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nanodet_jax.io import checksums
from tests.attack import checkpoints as made

MEAN = "batch_stats.norm.mean"  # an array of 50 numbers
MEMORY = 700_000_000  # bytes; importing jax alone takes half of it
RESTORE = """
import resource, sys
from contextlib import closing
from pathlib import Path
import jax
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.errors import UserError
from tests.tools import corrupt

with closing(Checkpoints(Path(sys.argv[1]), writing=False)) as checkpoints:
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), corrupt.state_of(1))
    try:
        checkpoints.restore_variables(1, like.inference_variables)
        print("restored")
    except UserError as error:
        print(error)
# Not ru_maxrss of this process, which starts at the memory of the parent process.
status = Path("/proc/self/status").read_text()
print(1024 * int(status.partition("VmHWM:")[2].split()[0]))
print(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def restore(workdir: Path) -> tuple[str, int]:
    """Restore the variables in a subprocess; return its output and its peak memory in bytes."""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", RESTORE, str(workdir)], cwd=root, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    *said, own, children = ended.stdout.splitlines()
    return " ".join(said), max(int(own), int(children))


def declared_chunk(step: Path) -> None:
    """Declare a chunk of 1 GiB, of which the array is the first 200 bytes."""
    zeros = repeat_mean(step)
    stored = {"chunks": [1 << 28], "compressor": {"id": "zstd", "level": 1}, "dtype": "<f4"}
    stored |= {"dimension_separator": ".", "fill_value": None, "filters": None, "order": "C"}
    metadata = json.dumps(stored | {"shape": [50], "zarr_format": 2}).encode()
    made.write_keys(step / "variables", {f"{MEAN}/.zarray": metadata, f"{MEAN}/0": zeros})


def longer_chunk(step: Path) -> None:
    """Write a chunk that is declared correctly and decodes to 1 GiB."""
    made.write_keys(step / "variables", {f"{MEAN}/0": repeat_mean(step)})


def repeat_mean(step: Path) -> bytes:
    """Record zeros for the mean, and return 1 GiB of compressed zeros."""

    def change(record):
        name = "variables/" + MEAN.replace(".", "/")
        zeros = checksums.describe_arrays({"mean": np.zeros(50, np.float32)})["mean"]
        record["arrays"][name] = zeros

    made.change_record(step, change)
    return made.repeated(0, (1 << 30) // made.BLOCK)


def shared_prefixes(step: Path) -> None:
    """Write a node of 0.25 MB with 1.3 GB of keys, which share a prefix of 65000 bytes."""
    keys = [(0, b"a"), (0, b"b" + bytes(65_000))]
    keys += [(65_001, number.to_bytes(3, "big")) for number in range(1, 20_000)]
    made.replace_tree(step / "variables", made.leaf(keys, [b""] * len(keys), made.varint(0)))


def endless_table(step: Path) -> None:
    """Write a manifest of 20 KB whose table declares 2**40 files, of which 650 MB follow."""
    frame = made.repeated(0, 5_000, first=made.CONFIG + made.varint(1 << 40))
    framed = made.framed(made.MANIFEST, frame, compressed=True)
    (step / "variables" / "manifest.ocdbt").write_bytes(framed)


ATTACKS = [declared_chunk, longer_chunk, shared_prefixes, endless_table]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited only on Linux")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_restore_of_a_decompression_bomb_takes_limited_memory(tmp_path, attack):
    step = made.save(tmp_path)
    attack(step)
    said, peak = restore(tmp_path)
    assert f"{step}: is damaged" in said
    assert peak < MEMORY, f"{peak / 1e6:.0f} MB"
