"""Processes that agree, and what becomes of them when one does not: over loopback, on CPUs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nanodet_jax.config import Training
from nanodet_jax.errors import UserError
from nanodet_jax.runtime import distributed

SCRIPT = Path(__file__).with_name("two_processes.py")
COUNT = 2


def start(arguments):
    """A process with a single device; warnings in it are not ours to judge."""
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[2] / ".jax_cache"),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=SCRIPT.parents[1],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes, seconds=60):
    """(exit code, standard output, standard error) of each."""
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ended():
    """Two processes, when both have ended."""
    port = free_port()
    return finish([start([SCRIPT, port, COUNT, i]) for i in range(COUNT)])


@pytest.fixture(scope="module")
def told(ended):
    lines = [line for _, out, _ in ended for line in out.splitlines() if line.startswith("told ")]
    assert len(lines) == COUNT, ended
    return [json.loads(line.removeprefix("told ")) for line in lines]


def test_each_knows_its_place(told):
    assert [one["share"] for one in told] == [[0, 2], [1, 2]]
    assert [one["writer"] for one in told] == [True, False]


def test_values_of_any_size_are_gathered_in_order(told):
    expected = [{"process": i, "bytes": "x" * 10 ** (2 + i)} for i in range(COUNT)]
    assert all(one["gathered"] == expected for one in told)


def test_a_vote_of_one_is_that_of_all(told):
    assert all(one["any"] == [False, True, True] for one in told)


def test_a_ballot_is_counted_later_but_by_all_at_once(told):
    expected = [call - distributed.AHEAD == 3 for call in range(7)]
    assert all(one["ballot"] == expected for one in told)


def test_what_differs_is_named_in_every_process(told):
    for one in told:
        assert one["differs"].startswith("process 1 has another step than process 0 (1, not 0)")


def test_a_process_that_fails_says_why_and_ends_the_others(ended):
    (code, _, survivor), (failed, _, cause) = ended
    assert (code, failed) == (2, 2)
    assert cause.splitlines()[-1] == "error: process 1: its image cannot be read"
    assert "error: process 0: a process of this run ended or cannot be reached" in survivor


def test_alone_all_is_as_asked():
    distributed.join(Training())
    ballot = distributed.Ballot()
    assert distributed.share() == (0, 1) and distributed.is_writer()
    assert distributed.gather([1]) == [[1]]
    assert [distributed.any_of(vote) for vote in (False, True)] == [False, True]
    assert [ballot.any_of(vote) for vote in (False, True, False)] == [False, True, False]
    distributed.must_agree({"anything": object()})
    with pytest.raises(UserError, match=r"^as it is$"):
        distributed.ends_with_the_others(_refuse)()


def _refuse():
    raise UserError("as it is")
