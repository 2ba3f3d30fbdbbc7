"""`python -m nanodet_jax`, which does the same as the command `nanodet-jax`."""

import sys

from nanodet_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
