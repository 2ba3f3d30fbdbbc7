"""One of the processes of test_distributed: `python two_processes.py PORT COUNT INDEX`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax

from nanodet_jax.config import Distributed
from nanodet_jax.errors import UserError
from nanodet_jax.runtime import distributed


def main(port: str, count: str, index: str) -> None:
    settings = Distributed(f"127.0.0.1:{port}", int(count), int(index))
    distributed.join(settings)
    distributed.join(settings)  # a second call has no effect
    here = jax.process_index()
    ballot = distributed.DelayedVote()
    results = {
        "process": (jax.process_index(), jax.process_count()),
        "writer": distributed.is_writer(),
        "gathered": distributed.gather({"process": here, "bytes": "x" * 10 ** (2 + here)}),
        "any": [distributed.any_of(vote) for vote in (False, here == 1, True)],
        "ballot": [ballot.any_of(here == 1 and call == 3) for call in range(7)],
    }
    distributed.must_agree({"seed": 1, "step": 2})
    try:
        distributed.must_agree({"seed": 1, "step": here})
    except UserError as error:
        results["differs"] = str(error)
    print("result", json.dumps(results), flush=True)
    fail_alone(here)


@distributed.fail_together
def fail_alone(here: int) -> None:
    """Raise an error in process 1 while the others wait for it."""
    if here == 1:
        raise UserError("its image cannot be read")
    distributed.any_of(False)


if __name__ == "__main__":
    main(*sys.argv[1:])
