"""Evaluate weights or a run on the validation images of a config, like `nanodet-jax eval`.

    python eval.py --config configs/shapes.py --workdir runs/shapes
    python eval.py --config configs/coco.py --weights nanodet-m_320.pth --out runs/published

This prints the COCO metrics and a table of classes, and writes metrics.json, detections.json and
pictures of detections.
"""

import sys

from nanodet_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
