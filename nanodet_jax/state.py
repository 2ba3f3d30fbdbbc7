"""All that decides the next step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanodet_jax import backend
from nanodet_jax.models.detector import NanoDet


@flax.struct.dataclass
class TrainState:
    """A pytree: what is donated to a step, and what a checkpoint holds."""

    step: jax.Array  # [] int32: steps done
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What the model's `apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def abstract_variables(model: NanoDet) -> Any:
    """Shapes and dtypes of the model's variables, without computing them."""
    smallest = jnp.zeros((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), smallest)


def init_variables(model: NanoDet, seed: int) -> Any:
    """Variables as the reference initialises them, drawn from `seed`; numpy arrays."""
    smallest = jnp.zeros((1, 32, 32, 3), jnp.float32)
    return jax.tree.map(np.asarray, backend.jit_once(model.init)(jax.random.key(seed), smallest))


def create_state(variables: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first step. Copies: a donated state leaves `variables` alone."""
    variables = jax.tree.map(jnp.array, variables)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )
