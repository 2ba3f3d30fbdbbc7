"""Run the hostile images and annotations of `tests/tools/hostile_images.py` in a subprocess."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "tools" / "hostile_images.py"


def test_hostile_files_are_reported_within_the_memory_bound():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [(cases, wrong)] = re.findall(r"(\d+) cases, \d+ MB at most; (\d+) wrong", done.stdout)
    assert (int(cases) >= 300, int(wrong)) == (True, 0)
