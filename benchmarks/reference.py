"""The original NanoDet as a subprocess: `original_worker.py` in a Python that has PyTorch."""

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import cpu_count
from benchmarks.timing import Row, Times, peak_resident_mb
from benchmarks.workload import LEARNING_RATE, Workload, random_batch
from nanodet_jax.errors import UserError

CONFIGS = {  # file in the original's folder `config`, by the name of our config
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
SCRIPT = Path(__file__).with_name("original_worker.py")
# Seconds after a run until its threads stop spinning. Disabling the spinning
# (OMP_WAIT_POLICY=passive) would slow the original down by a tenth.
SETTLE_S = 0.02
REQUIRED_MODULES = ("torch", "yaml", "yacs", "numpy", "cv2")


class Reference(NamedTuple):
    """A checkout of the original, and the Python that runs it."""

    checkout: Path
    python: str

    def check(self) -> None:
        """Check that the original can run.

        Raises:
          UserError: if this is not a checkout of the original, or a required module is missing.
        """
        if not (self.checkout / "nanodet" / "model").is_dir():
            raise UserError(f"--reference {self.checkout}: not a checkout of the original NanoDet")
        command = [self.python, "-c", f"import {', '.join(REQUIRED_MODULES)}"]
        try:
            tried = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UserError(f"--reference-python {self.python}: {error.strerror}") from error
        if tried.returncode:
            raise UserError(
                f"--reference-python {self.python}: {tried.stderr.strip().splitlines()[-1]}; pass "
                f"a Python that has {', '.join(REQUIRED_MODULES)}"
            )


class Original:
    """The original's network on the same batch, to run alternately with this project's network.

    Args:
      reference: the original.
      mode: the mode of `original_worker.py`: step | network | onnxruntime | ncnn.
      workload: must have a counterpart in CONFIGS.

    Attributes:
      memory: peak memory of the process, from `timing.peak_resident_mb`; set on exit.

    Raises:
      UserError: if there is no counterpart, or the process fails.
    """

    def __init__(self, reference: Reference, mode: str, workload: Workload) -> None:
        config = workload.load()
        if config.name not in CONFIGS:
            raise UserError(f"--reference: {workload.file} has no counterpart in the original")
        self.memory: Row = {}
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        batch = random_batch(workload, config.input_size)
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
                CONFIGS[config.name], mode, str(folder / "batch.npz"), str(cpu_count()),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Original":
        try:
            self._read_times()  # after this, the network is built and has run once
        except UserError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.memory = peak_resident_mb(self._process.pid)
        self._process.communicate()  # closes stdin, which ends the process
        self._errors.close()
        self._folder.cleanup()

    def run(self) -> Times:
        """Run the network once."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        times = self._read_times()
        time.sleep(SETTLE_S)
        return Times(times["wall"], times["cpu"])

    def _read_times(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["without an error message"])[-1]
            raise UserError(f"--reference: the original ended: {last}")
        return json.loads(line)
