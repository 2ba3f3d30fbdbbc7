"""Precision of the network's computations, and of the numbers that decide."""

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def multiplying(precision: str) -> AbstractContextManager[None]:
    """Set how convolutions traced in this context, and their gradients, multiply float32 numbers.

    "highest" keeps all bits. Otherwise the device uses its fastest way: a GPU since Ampere keeps 10
    bits of the factors (TF32), a TPU 7 (bfloat16), and both add in float32; a CPU keeps all bits.
    """
    return jax.default_matmul_precision("highest" if precision == "highest" else "default")


def at_least_float32(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Widen `x` to float32 if it is narrower. Float64 is kept: tests compute references in it.

    Losses, assignment and batch statistics use it, whatever the network computes in.
    """
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
