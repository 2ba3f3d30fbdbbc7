"""The configs in `configs/` as a package: `from nanodet_jax.configs import voc`.

In a wheel the files of `configs/` are this package. In a checkout they stay at the top level, where
users look for them, and this file points there.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
