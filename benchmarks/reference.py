"""The original NanoDet in a process of its own: `original.py` under a Python that has PyTorch."""

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import cpu_count
from benchmarks.subject import LEARNING_RATE, Subject, random_batch
from benchmarks.timing import Row, Times, resident_mb
from nanodet_jax.errors import UserError

CONFIGS = {  # of ours, by name: the file in the original's folder `config`
    "nanodet-m_320": "legacy_v0.x_configs/nanodet-m.yml",
    "nanodet-m_416": "legacy_v0.x_configs/nanodet-m-416.yml",
    "nanodet-m-0.5x": "legacy_v0.x_configs/nanodet-m-0.5x.yml",
    "nanodet-m-1.5x": "legacy_v0.x_configs/nanodet-m-1.5x.yml",
    "nanodet-m-1.5x_416": "legacy_v0.x_configs/nanodet-m-1.5x-416.yml",
    "nanodet-plus-m_320": "nanodet-plus-m_320.yml",
    "nanodet-plus-m_416": "nanodet-plus-m_416.yml",
    "nanodet-plus-m-1.5x_320": "nanodet-plus-m-1.5x_320.yml",
    "nanodet-plus-m-1.5x_416": "nanodet-plus-m-1.5x_416.yml",
}
SCRIPT = Path(__file__).with_name("original.py")
# Seconds after a run until its threads no longer wait for work by spinning. To forbid them to
# spin (OMP_WAIT_POLICY=passive) costs the original a tenth of its speed.
SETTLE = 0.02
NEEDED = ("torch", "yaml", "yacs", "numpy", "cv2")


class Reference(NamedTuple):
    """Where the original is, and what runs it."""

    checkout: Path
    python: str

    def check(self) -> None:
        """Refuse what cannot run.

        Raises:
          UserError: if there is no original, or a module that it needs is missing.
        """
        if not (self.checkout / "nanodet" / "model").is_dir():
            raise UserError(f"--reference {self.checkout}: no checkout of the original NanoDet")
        command = [self.python, "-c", f"import {', '.join(NEEDED)}"]
        try:
            tried = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UserError(f"--reference-python {self.python}: {error.strerror}") from error
        if tried.returncode:
            raise UserError(
                f"--reference-python {self.python}: {tried.stderr.strip().splitlines()[-1]}; name "
                f"a Python that has {', '.join(NEEDED)}"
            )


class Original:
    """The original's network on the same images and boxes, to be run in turn with ours.

    Attributes:
      memory: the most that its process held, of `timing.resident_mb`, once it has ended.
    """

    def __init__(self, reference: Reference, what: str, subject: Subject):
        """Args: `what` is one of `original.py`. Raises UserError if it does not start."""
        config = subject.load()
        if config.name not in CONFIGS:
            raise UserError(f"--reference: {subject.file} has no counterpart in the original")
        self.memory: Row = {}
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        batch = random_batch(subject, config.input_size)
        np.savez(
            folder / "batch.npz",
            images=np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2)),
            learning_rate=LEARNING_RATE,
            **batch.ground_truth._asdict(),
        )
        self._errors = (folder / "errors.txt").open("w+")
        self._process = subprocess.Popen(
            [
                reference.python, str(SCRIPT), str(reference.checkout.resolve()),
                CONFIGS[config.name], what, str(folder / "batch.npz"), str(cpu_count()),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Original":
        try:
            self._answer()  # it has built its network and run once
        except UserError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.memory = resident_mb(self._process.pid)
        self._process.communicate()  # the end of its input ends it
        self._errors.close()
        self._folder.cleanup()

    def run(self) -> Times:
        """Run it once."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        answer = self._answer()
        time.sleep(SETTLE)
        return Times(answer["wall"], answer["cpu"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"--reference: the original ended: {last}")
        return json.loads(line)
