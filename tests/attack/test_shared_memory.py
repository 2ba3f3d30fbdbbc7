"""Training and evaluation without a usable /dev/shm, as in some containers."""

import os
import subprocess
import sys

import pytest

from tests.runs import REPO, TINY

FLAGS = (
    *TINY,
    "--config.data.train_size=8",
    "--config.data.batch_size=4",
    "--config.training.steps=2",
    "--config.training.eval_every=1",
)
# A read-only file system without free space, in a separate mount namespace.
WITHOUT = 'mount -t tmpfs -o ro,size=4k tmpfs /dev/shm && ! touch /dev/shm/x 2>/dev/null && "$@"'


@pytest.mark.long
def test_training_and_evaluation_need_no_shared_memory(tmp_path):
    if sys.platform != "linux":
        pytest.skip("/dev/shm is Linux's")
    namespace = ["unshare", "--mount", "sh", "-c", WITHOUT, "sh"]
    tried = subprocess.run([*namespace, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"a mount namespace is not permitted here: {tried.stderr.strip()}")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    for program in ("train.py", "eval.py"):
        done = subprocess.run(
            [*namespace, sys.executable, program, *FLAGS, f"--workdir={tmp_path / 'run'}"],
            cwd=REPO, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "eval" / "metrics.json").is_file()
