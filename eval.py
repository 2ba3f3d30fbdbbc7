"""Score weights or a run on the validation images of a config.

    python eval.py --config configs/shapes.py --workdir runs/shapes
    python eval.py --config configs/coco.py --weights nanodet-m_320.pth --out runs/published

Prints COCO's numbers and a table by class; writes metrics.json, detections.json and pictures.
"""

from pathlib import Path

from absl import flags

from nanodet_jax import evaluate
from nanodet_jax.cli import entry_point
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation.coco_metrics import format_table
from nanodet_jax.files import make_folder
from nanodet_jax.terminal import say, say_lines

CONFIG = entry_point.define_config("configs/shapes.py")
WORKDIR = flags.DEFINE_string("workdir", None, "a run, whose best checkpoint is taken")
WEIGHTS = flags.DEFINE_string("weights", None, "a .pth, .ckpt or .npz file")
OUT = flags.DEFINE_string("out", None, "default: WORKDIR/eval, or runs/eval")
JUDGE = flags.DEFINE_enum(
    "judge", None, ["pycocotools", "hotcoco"], "default: hotcoco if installed; they agree"
)


def main() -> None:
    source = WEIGHTS.value or WORKDIR.value
    if not source or (WEIGHTS.value and WORKDIR.value):
        raise UserError("give --workdir of a run or --weights of a file, and not both")
    if OUT.value:
        out = Path(OUT.value)
    else:  # a workdir may come from a stranger: no folder of it leads elsewhere
        out = make_folder(Path(WORKDIR.value) / "eval" if WORKDIR.value else Path("runs/eval"))
    say_lines(format_table(evaluate(CONFIG.value, source, out, evaluator=JUDGE.value)))
    say(f"metrics.json, detections.json and pictures are in {out}")


if __name__ == "__main__":
    entry_point.run(main)
