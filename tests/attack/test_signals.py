"""A closed terminal saves the run; a closed output does not stop it."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from nanodet_jax.training.interrupt import Interrupt
from tests.runs import ONE_DEVICE, REPO, SHALLOW_TRAIN, TINY, final_state
from tests.tools import kill

HANGUP = signal.SIGHUP
SHORT = (
    *TINY,
    "--config.data.batch_size=4",
    "--config.data.train_size=16",
    "--config.training.steps=8",
)


def test_second_hangup_is_ignored_and_second_interrupt_is_not():
    with Interrupt() as interrupt:
        interrupt.catch()
        os.kill(os.getpid(), HANGUP)
        assert interrupt.received == HANGUP
        os.kill(os.getpid(), HANGUP)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_hangup_ignored_by_the_parent_stays_ignored():
    before = signal.signal(HANGUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            interrupt.catch()
            os.kill(os.getpid(), HANGUP)
            assert interrupt.received is None
        assert signal.getsignal(HANGUP) == signal.SIG_IGN
    finally:
        signal.signal(HANGUP, before)


@pytest.mark.long
@pytest.mark.usefixtures("shallow")
def test_run_continues_after_its_output_is_closed(tmp_path):
    command = [sys.executable, SHALLOW_TRAIN, *SHORT, f"--workdir={tmp_path / 'run'}"]
    with subprocess.Popen(
        command,
        cwd=REPO,
        env=os.environ | ONE_DEVICE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        assert b"reading the data" in process.stdout.readline()
        process.stdout.close()
    assert process.returncode == 0
    assert int(final_state(tmp_path / "run", 8).step) == 8


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_run_is_saved_when_its_terminal_closes(tmp_path):
    flags = [*SHORT[:-1], "--config.training.steps=100000"]
    ours, theirs = pty.openpty()
    # A new session with this pseudo-terminal as its controlling terminal.
    script = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    script += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", script, SHALLOW_TRAIN, *flags, f"--workdir={workdir}"],
        cwd=REPO, env=os.environ | ONE_DEVICE,
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        while kill.lines(workdir) <= 5:
            assert process.poll() is None
            assert os.read(ours, 1 << 16)  # otherwise the terminal fills up
        os.close(ours)
        assert process.wait(60) == 128 + HANGUP
    finally:
        process.kill()
        process.wait()
    assert kill.newest(workdir) > 5
    assert int(final_state(workdir, kill.newest(workdir)).step) == kill.newest(workdir)
