"""Tests run strict: warnings are errors (pyproject.toml), and ranks never broadcast silently."""

import os
from pathlib import Path

# Read when jax is first imported, hence before whatever imports it. What is set already, stays.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax

from nanodet_jax.runtime import backend

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
backend.prepare(cache_dir=Path(__file__).parents[1] / ".jax_cache")
