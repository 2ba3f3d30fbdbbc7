"""Processes that exchange values and fail together: over loopback, on CPUs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nanodet_jax.config import Distributed
from nanodet_jax.errors import UserError
from nanodet_jax.runtime import distributed
from tests.runs import REPO

SCRIPT = Path(__file__).with_name("two_processes.py")
COUNT = 2


def start(arguments):
    """Start a Python process with a single device."""
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(REPO / ".jax_cache"),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPO,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes, seconds=60):
    """Return (exit code, standard output, standard error) of each process."""
    try:
        texts = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, texts)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ended():
    """Run two processes to their end."""
    port = free_port()
    return finish([start([SCRIPT, port, COUNT, i]) for i in range(COUNT)])


@pytest.fixture(scope="module")
def results(ended):
    """Results of each process, in order."""
    lines = [line for _, out, _ in ended for line in out.splitlines() if line.startswith("result ")]
    assert len(lines) == COUNT, ended
    return [json.loads(line.removeprefix("result ")) for line in lines]


def test_only_process_0_is_the_writer(results):
    assert [one["process"] for one in results] == [[0, 2], [1, 2]]
    assert [one["writer"] for one in results] == [True, False]


def test_gather_returns_values_of_any_size_in_process_order(results):
    expected = [{"process": i, "bytes": "x" * 10 ** (2 + i)} for i in range(COUNT)]
    assert all(one["gathered"] == expected for one in results)


def test_any_of_returns_the_same_in_all_processes(results):
    assert all(one["any"] == [False, True, True] for one in results)


def test_ballot_returns_results_late_but_in_the_same_call_everywhere(results):
    expected = [call - distributed.VOTE_DELAY == 3 for call in range(7)]
    assert all(one["ballot"] == expected for one in results)


def test_must_agree_names_the_difference_in_every_process(results):
    for one in results:
        assert one["differs"].startswith("process 1 differs from process 0 in step (1, not 0)")


def test_failing_process_reports_its_error_and_ends_the_others(ended):
    (code, _, survivor), (failed, _, cause) = ended
    assert (code, failed) == (2, 2)
    assert cause.splitlines()[-1] == "error: process 1: its image cannot be read"
    assert "error: process 0: a process of this run ended or cannot be reached" in survivor


def test_single_process_needs_no_communication():
    distributed.join(Distributed())
    ballot = distributed.DelayedVote()
    assert distributed.is_writer()
    assert distributed.gather([1]) == [[1]]
    assert [distributed.any_of(vote) for vote in (False, True)] == [False, True]
    assert [ballot.any_of(vote) for vote in (False, True, False)] == [False, True, False]
    distributed.must_agree({"anything": object()})
    with pytest.raises(UserError, match=r"^as it is$"):
        distributed.fail_together(_refuse)()


def _refuse():
    raise UserError("as it is")
