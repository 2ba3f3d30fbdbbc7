"""The precision in which numbers are decided."""

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` widened to float32 if it is narrower; float64 stays, so that tests can have the truth.

    Losses, assignment and batch statistics go through it, whatever the network computes in.
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
