"""Train a detector, or resume a run; equivalent to `nanodet-jax train`.

    python train.py --config configs/shapes.py
    python train.py --config configs/coco.py:nanodet-m_416 --workdir runs/m --config.data.workers=8

Every config field can be set with a flag. Ctrl-C saves and stops the run; the same command
resumes it.
"""

import sys

from nanodet_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
