"""The precision in which the network computes, and that in which numbers are decided."""

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp


def multiplying(precision: str) -> AbstractContextManager:
    """How convolutions traced within, and their gradients, multiply float32 numbers.

    With "highest" they keep all bits. Otherwise the device does what it does fastest: a GPU since
    Ampere keeps 10 bits of the factors (TF32), a TPU 7 (bfloat16), and both add in float32; a CPU
    keeps all.
    """
    return jax.default_matmul_precision("highest" if precision == "highest" else "default")


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` widened to float32 if it is narrower; float64 stays, so that tests can have the truth.

    Losses, assignment and batch statistics go through it, whatever the network computes in.
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
