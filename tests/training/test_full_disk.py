"""A full disk during training: one line of error, and earlier checkpoints stay valid."""

import resource

from nanodet_jax.io.checkpoint import Checkpoints
from tests.runs import TINY, Launch, journal

STEPS_EACH = 4
FLAGS = (
    *TINY,
    "--config.data.train_size=16",
    "--config.data.batch_size=4",
    "--config.training.steps=1000",
    "--config.training.eval_every=1000",
)
MAX_FILE_SIZE = 200_000  # bytes; less than the parameters
MAX_LINE = 1000  # characters


def test_checkpoint_that_cannot_be_written_ends_the_run_with_one_line(tmp_path):
    workdir = tmp_path / "run"
    run = Launch(workdir, FLAGS, shallow=True)
    checkpoints = workdir / "checkpoints"
    assert run.wait_for(lambda: (checkpoints / str(STEPS_EACH)).is_dir())
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (MAX_FILE_SIZE, MAX_FILE_SIZE))
    code, _ = run.end()
    said = (tmp_path / "run.log").read_text()
    assert code == 2, said
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert f"{checkpoints}: " in line and "cannot be written: " in line
    assert "File too large" in line and len(line) < MAX_LINE
    whole = Checkpoints(workdir, writing=False)
    assert whole.latest_step() >= STEPS_EACH
    whole.close()
    assert journal(workdir)[-1]["step"] >= whole.latest_step()
