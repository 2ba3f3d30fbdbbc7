"""A reader process that cannot run is an error, and no sign of a damaged checkpoint."""

import sys
from contextlib import closing

import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.io import checkpoint_arrays
from nanodet_jax.io.checkpoint import Checkpoints
from tests.tools import corrupt

FAILURES = {
    "no such program": (sys, "executable", "/missing/python", "cannot start /missing/python"),
    "another program": (sys, "executable", "/bin/false", "ended with status 1"),
    "too slow": (checkpoint_arrays, "TIMEOUT_S", 0.01, "could not be read within 0.01 s"),
    "no libraries": (sys, "path", [], "ended with status 1 .*No module named"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_of_the_reader_process_does_not_move_the_checkpoint_aside(
    tmp_path, monkeypatch, case
):
    where, name, value, message = FAILURES[case]
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(corrupt.state_of(1))
        checkpoints.wait()
        with monkeypatch.context() as patched:
            patched.setattr(where, name, value)
            if case == "no libraries":
                patched.setattr(sys, "executable", _python_without_packages(tmp_path))
            with pytest.raises(UserError, match=f"{tmp_path}/checkpoints/1: .*{message}"):
                checkpoints.restore_latest(corrupt.state_of(7))
        restored = checkpoints.restore_latest(corrupt.state_of(7))
    assert corrupt.same(restored, corrupt.state_of(1))


def _python_without_packages(folder):
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    program.chmod(0o755)
    return str(program)
