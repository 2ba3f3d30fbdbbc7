"""Evaluate weights or a run on the validation images of a config; same as `nanodet-jax eval`.

    python eval.py --config configs/shapes.py --workdir runs/shapes
    python eval.py --config configs/coco.py --weights nanodet-m_320.pth --out runs/published

Prints the COCO metrics and a table of classes; writes metrics.json, detections.json and pictures.
"""

import sys

from nanodet_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
