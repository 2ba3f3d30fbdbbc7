"""One of several processes of test_distributed: `python two_processes.py PORT COUNT INDEX`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanodet_jax.config import Training
from nanodet_jax.errors import UserError
from nanodet_jax.runtime import distributed


def main(port: str, count: str, index: str) -> None:
    training = Training(coordinator=f"127.0.0.1:{port}", processes=int(count), process=int(index))
    distributed.join(training)
    distributed.join(training)  # harmless
    here, _ = distributed.share()
    ballot = distributed.Ballot()
    told = {
        "share": distributed.share(),
        "writer": distributed.is_writer(),
        "gathered": distributed.gather({"process": here, "bytes": "x" * 10 ** (2 + here)}),
        "any": [distributed.any_of(vote) for vote in (False, here == 1, True)],
        "ballot": [ballot.any_of(here == 1 and call == 3) for call in range(7)],
    }
    distributed.must_agree({"seed": 1, "step": 2})
    try:
        distributed.must_agree({"seed": 1, "step": here})
    except UserError as error:
        told["differs"] = str(error)
    print("told", json.dumps(told), flush=True)
    fail_alone(here)


@distributed.ends_with_the_others
def fail_alone(here: int) -> None:
    """Process 1 finds a fault in its data, while the others wait for it."""
    if here == 1:
        raise UserError("its image cannot be read")
    distributed.any_of(False)


if __name__ == "__main__":
    main(*sys.argv[1:])
