"""All that decides the next step."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanodet_jax.models.guidance import copy_neck_to_guidance
from nanodet_jax.models.nanodet import NanoDet
from nanodet_jax.runtime import backend

SMALLEST = np.zeros((1, 32, 32, 3), np.float32)  # an image of the least size


@flax.struct.dataclass
class TrainState:
    """A pytree: what is donated to a step, and what a checkpoint holds."""

    step: jax.Array  # [] int32: steps done
    params: Any
    batch_stats: Any
    average: Any  # exponential moving average of both, or None
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What a training step starts from."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def inference_variables(self) -> dict[str, Any]:
        """What is evaluated and kept: the average where there is one."""
        return self.variables if self.average is None else self.average


def abstract_variables(model: NanoDet, guided: bool = False) -> Any:
    """Shapes and dtypes of the model's variables, without computing them.

    They are those of the deployed network; with `guided`, of the guidance too if it has one.
    """
    init = partial(model.init, method="branches", guided=guided)
    return jax.eval_shape(init, jax.random.key(0), SMALLEST)


def init_variables(model: NanoDet, seed: int) -> Any:
    """Variables of the training model as the reference draws them, from `seed`; numpy arrays."""
    init = partial(model.init, method="branches")
    variables = backend.jit_once(init)(jax.random.key(seed), SMALLEST)
    return jax.tree.map(np.asarray, copy_neck_to_guidance(variables))


def create_state(
    variables: Any, optimizer: optax.GradientTransformation, ema: bool = False
) -> TrainState:
    """State before the first step. Copies: a donated state leaves `variables` alone.

    With `ema` the average of the variables is kept, and starts as their copy.
    """

    @jax.jit  # one small program instead of hundreds
    def create(variables: Any) -> TrainState:
        def copy():
            return jax.tree.map(jnp.copy, variables)

        return TrainState(
            step=jnp.zeros((), jnp.int32),
            **copy(),
            average=copy() if ema else None,
            opt_state=optimizer.init(variables["params"]),
        )

    return create(variables)
