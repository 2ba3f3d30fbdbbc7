"""What `train.py` and `eval.py` share: flags in, one clear line and exit code 2 out."""

import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from nanodet_jax.errors import UserError


def define_config(default: str) -> Any:
    """The `--config FILE[:VARIANT]` flag, with `--config.FIELD=VALUE` for every field."""
    return config_flags.DEFINE_config_file("config", default, "path, or path:variant")


def run(main: Callable[[], None]) -> None:
    """Parse the flags, call `main`, and turn what the user can mend into a line."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            fail(error)
        except (AttributeError, TypeError, ValueError, KeyError, OSError, ImportError) as error:
            fail(f"--config: {error}")
        if rest[1:]:
            fail(f"{rest[1]!r} is no flag; flags are --NAME=VALUE, see --help")
        return rest

    def guarded(_: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the libraries' chatter; --verbosity=0 shows it
        try:
            main()
        except UserError as error:
            fail(error)
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def fail(message: object) -> None:
    """Print `error: ...` on one line and leave with exit code 2."""
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
