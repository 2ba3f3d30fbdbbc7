"""`train.py` with one block per stage of the backbone, for tests that start many processes.

The network then compiles in a third of the time. It writes the same files
and handles signals in the same way.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanodet_jax.cli.main import main
from tests.runs import shallow_backbone

if __name__ == "__main__":
    with shallow_backbone():
        sys.exit(main(["train", *sys.argv[1:]]))
