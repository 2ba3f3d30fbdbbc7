"""Checkpoints that refer to other folders or to servers.

The file driver of tensorstore rejects keys with `..`, an empty part or a double slash. Every data
file of a node or manifest is therefore inside the folder of the database. OCDBT files do not name
drivers. A `.zarray`, `zarr.json` or `_METADATA` could name a server only if it were read, and
`array_reader` reads none of them.
"""

import json
import shutil
import socket
import threading
from contextlib import closing

import numpy as np
import pytest

from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.io.checkpoint_restore import DamagedCheckpointError
from tests.attack import checkpoints as made
from tests.tools import corrupt

KERNEL = "params.conv.kernel/0.0"
LIKE = corrupt.state_of(7)


@pytest.fixture
def server():
    """Run a loopback server that only records connections; yield its port and the connections."""
    connections = []
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.1)
    ended = threading.Event()

    def accept():
        while not ended.is_set():
            try:
                connection, address = listening.accept()
            except TimeoutError:
                continue
            connections.append(address)
            connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield listening.getsockname()[1], connections
    ended.set()
    thread.join()
    listening.close()


def restore(workdir):
    with closing(Checkpoints(workdir, writing=False)) as checkpoints:
        return checkpoints.restore(made.STEP, LIKE)


BASES = [
    "../",
    "../../",
    "x/../../",
    "./../",
    "/",
    "//",
    "{outside}/",
    "/{outside}/",
    "file://{outside}/",
]


@pytest.mark.parametrize("base", BASES)
def test_restore_reads_no_file_outside_its_database(tmp_path, base):
    """The chunk of an array refers to a file elsewhere with the saved bytes."""
    step = made.save(tmp_path)
    part = step / "variables"
    kernel = np.asarray(corrupt.state_of(made.STEP).inference_variables["params"]["conv"]["kernel"])
    size = kernel.nbytes
    chunk = b"\x28\xb5\x2f\xfd\x00\x50" + (size << 3 | 1).to_bytes(3, "little") + kernel.tobytes()
    mean = np.asarray(
        corrupt.state_of(made.STEP).inference_variables["batch_stats"]["norm"]["mean"]
    )
    small = b"\x28\xb5\x2f\xfd\x00\x50" + (200 << 3 | 1).to_bytes(3, "little") + mean.tobytes()

    def tree(files):
        keys = [(0, b"batch_stats.norm.mean/0"), (0, KERNEL.encode())]
        return made.leaf(keys, [small, (0, len(chunk))], files)

    (part / "d" / "chunk").write_bytes(chunk)
    made.replace_tree(part, tree(made.files_table("d/", "chunk")))
    assert corrupt.same(restore(tmp_path), corrupt.state_of(made.STEP))  # the attack works inside
    (part / "d" / "chunk").unlink()
    for folder in (step, step.parent):
        (folder / "chunk").write_bytes(chunk)
    base = base.format(outside=str(step)[1:] if base.startswith("/{") else step)
    made.replace_tree(part, tree(made.files_table(base, "chunk")))
    with pytest.raises(DamagedCheckpointError, match=f"{step}: is damaged"):
        restore(tmp_path)


def test_restore_follows_no_manifest_to_another_database(tmp_path):
    """The manifest refers to the variables of another step, which match the record."""
    step = made.save(tmp_path)
    shutil.copytree(step, step.with_name("2"))
    (node,) = (step / "variables" / "d").iterdir()
    path = step / "variables" / "manifest.ocdbt"
    path.write_bytes(made.manifest("", f"d/{node.name}", node.stat().st_size))
    assert corrupt.same(restore(tmp_path), corrupt.state_of(made.STEP))  # the attack works inside
    path.write_bytes(made.manifest("../../2/variables/", f"d/{node.name}", node.stat().st_size))
    with pytest.raises(DamagedCheckpointError, match=f"{step}: is damaged"):
        restore(tmp_path)


SERVERS = {
    "http": {"driver": "http", "base_url": "http://127.0.0.1:{port}/", "path": "x/"},
    "gcs": {
        "driver": "gcs",
        "bucket": "bucket",
        "path": "x/",
        "endpoint": "http://127.0.0.1:{port}",
    },
    "s3": {"driver": "s3", "bucket": "bucket", "path": "x/", "endpoint": "http://127.0.0.1:{port}"},
}


@pytest.mark.parametrize("name", SERVERS)
def test_restore_contacts_no_server(tmp_path, server, name):
    port, connections = server
    step = made.save(tmp_path)
    text = json.dumps(SERVERS[name]).replace("{port}", str(port))
    spec = {"driver": "zarr", "kvstore": json.loads(text)}
    part = step / "variables"
    document = json.loads((part / "_METADATA").read_text())
    (part / "_METADATA").write_text(json.dumps(document | spec | {"ts_spec": spec, "base": spec}))
    for file in ("_sharding", "zarr.json", ".zarray", "array_metadatas"):
        (part / file).write_text(json.dumps(spec))
    keys = [
        key
        for leaf in ("batch_stats.norm.mean", "params.conv.kernel")
        for key in (f"{leaf}/.zarray", f"{leaf}/zarr.json")
    ]
    made.write_keys(part, dict.fromkeys(keys, json.dumps(spec).encode()))
    assert corrupt.same(restore(tmp_path), corrupt.state_of(made.STEP))
    base = spec["kvstore"].get("base_url", "gs://bucket/")
    node = next((part / "d").iterdir())
    manifest = made.manifest(base, f"d/{node.name}", node.stat().st_size)
    (part / "manifest.ocdbt").write_bytes(manifest)
    with pytest.raises(DamagedCheckpointError):
        restore(tmp_path)
    assert not connections
