"""Check a folder of fixtures that were recorded from the original.

    python tests/parity.py FOLDER [--only REGEX] [--weights-dir DIR] [--images-dir DIR]

One row per fixture shows the largest error, its tolerance and the result. The exit status is 1 if
any fixture fails or none matches. Fixtures of parts that this project does not have are listed as
absent, never as passed. Where float32 cannot determine a number to within the tolerance, its
resolution is measured and printed. See `compare_network` in
`tests/tools/parity_checks/comparison.py`.
"""

import argparse
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanodet_jax.runtime.process import setup_process
from tests.tools.parity_checks import find_checks
from tests.tools.parity_checks.comparison import Worst


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--only", default="", help="regular expression that fixture names must match"
    )
    parser.add_argument("--weights-dir", type=Path, help="default: FOLDER/../weights")
    parser.add_argument("--images-dir", type=Path, help="default: FOLDER/../data/coco_mini/val2017")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        print(f"error: {args.folder}: not a folder", file=sys.stderr)
        return 2
    setup_process()
    weights = args.weights_dir or args.folder.parent / "weights"
    images = args.images_dir or args.folder.parent / "data" / "coco_mini" / "val2017"
    checks = [
        (name, check)
        for name, check in find_checks(args.folder, weights, images)
        if re.search(args.only, name)
    ]
    if not checks:
        print(f"nothing in {args.folder} matches {args.only!r}", file=sys.stderr)
        return 1
    failed = ran = 0
    for name, check in checks:
        if check is None:
            print(f"{name:34s} absent: not in this project")
            continue
        ran += 1
        try:
            worst = check()
        except Exception as error:
            worst = Worst(f"{type(error).__name__}: {error}", math.nan, 0)
        failed += not worst.passed
        verdict = "ok" if worst.passed else "FAILED"
        if worst.resolution > worst.tolerance:
            verdict += f" (float32 resolves {worst.resolution:.1e})"
        print(f"{name:34s} {worst.what:40s} {worst.error:9.2e} <= {worst.tolerance:.0e}  {verdict}")
    print(f"{ran - failed} passed, {failed} failed, {len(checks) - ran} absent")
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
