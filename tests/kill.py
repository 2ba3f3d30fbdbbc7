"""Run `tests/tools/kill.py`, with the same command line."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tools.kill import main

if __name__ == "__main__":
    sys.exit(main())
