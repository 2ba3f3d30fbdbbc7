"""Precision of the network's computations, and of losses, assignment and batch statistics."""

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def matmul_precision(precision: str) -> AbstractContextManager[None]:
    """Set how convolutions traced in this context, and their gradients, multiply float32 numbers.

    "highest" keeps all bits. Otherwise the device uses its fastest mode. GPUs since Ampere keep 10
    mantissa bits of the factors (TF32), and TPUs keep 7 (bfloat16). Both add in float32. CPUs keep
    all bits.
    """
    return jax.default_matmul_precision("highest" if precision == "highest" else "default")


def at_least_float32(x: Float[Array | np.ndarray, "*n"]) -> Float[Array, "*n"]:
    """Convert `x` to float32 if it has fewer bits. Keep float64, which tests use as a reference.

    Losses, assignment and batch statistics use this function, whatever the network's precision.
    """
    x = jnp.asarray(x)
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
