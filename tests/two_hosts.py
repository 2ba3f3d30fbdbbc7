"""What one of several processes does for test_hosts: `python two_hosts.py PORT COUNT INDEX`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanodet_jax import hosts
from nanodet_jax.config import Training
from nanodet_jax.errors import UserError


def main(port: str, count: str, index: str) -> None:
    training = Training(coordinator=f"127.0.0.1:{port}", processes=int(count), process=int(index))
    hosts.join(training)
    hosts.join(training)  # harmless
    here, _ = hosts.share()
    ballot = hosts.Ballot()
    told = {
        "share": hosts.share(),
        "writer": hosts.is_writer(),
        "gathered": hosts.gather({"process": here, "bytes": "x" * 10 ** (2 + here)}),
        "any": [hosts.any_of(vote) for vote in (False, here == 1, True)],
        "ballot": [ballot.any_of(here == 1 and call == 3) for call in range(7)],
    }
    hosts.must_agree({"seed": 1, "step": 2})
    try:
        hosts.must_agree({"seed": 1, "step": here})
    except UserError as error:
        told["differs"] = str(error)
    print("told", json.dumps(told), flush=True)
    fail_alone(here)


@hosts.ends_with_the_others
def fail_alone(here: int) -> None:
    """Process 1 finds a fault in its data, while the others wait for it."""
    if here == 1:
        raise UserError("its image cannot be read")
    hosts.any_of(False)


if __name__ == "__main__":
    main(*sys.argv[1:])
