"""The training state: everything that the next step depends on, except its batch."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanodet_jax import config
from nanodet_jax.models.backbones.backbone import Backbone
from nanodet_jax.models.guidance import copy_neck_to_guidance
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.nanodet import NanoDet
from nanodet_jax.runtime import backend

SMALLEST_INPUT = np.zeros((1, 32, 32, 3), np.float32)  # [B, H, W, 3]; enough to create variables


@flax.struct.dataclass
class TrainState:
    """Pytree of the training state. A training step donates it, and a checkpoint stores it.

    `io.checkpoint` defines the names of the fields on disk.
    """

    step: jax.Array  # [] int32, steps done
    params: Any
    batch_stats: Any
    ema: Any  # exponential moving average of params and batch_stats, or None
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that a training step starts from."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def inference_variables(self) -> dict[str, Any]:
        """The variables to evaluate and export: the moving average if there is one."""
        return self.variables if self.ema is None else self.ema


def abstract_variables(model: NanoDet, guided: bool = False) -> Any:
    """Return the shapes and dtypes of the model's variables without computing their values.

    By default, these are the variables of the deployed network. `guided` adds the variables of the
    guidance module, if the model has one.
    """
    init = partial(model.init, method="branches", guided=guided)
    return jax.eval_shape(init, jax.random.key(0), SMALLEST_INPUT)


def abstract_backbone(model: config.Model) -> Any:
    """Return the shapes and dtypes of a backbone's variables, nested as in the network's."""
    backbone = Backbone(model, lambda **options: BatchNorm(True, **options), train=False)
    variables = jax.eval_shape(backbone.init, jax.random.key(0), SMALLEST_INPUT)
    return {collection: {"backbone": tree} for collection, tree in variables.items()}


def init_variables(model: NanoDet, seed: int) -> Any:
    """Initialize the variables of the training model as in the original; return numpy arrays."""
    init = partial(model.init, method="branches")
    variables = backend.jit_once(init)(jax.random.key(seed), SMALLEST_INPUT)
    return jax.tree.map(np.asarray, copy_neck_to_guidance(variables))


def create_state(
    variables: Any, optimizer: optax.GradientTransformation, ema: bool = False
) -> TrainState:
    """Return the state before the first step.

    Args:
      variables: `params` and `batch_stats`. They are copied, so donating the state
        does not free them.
      optimizer: initialized on the parameters.
      ema: keep a moving average of the variables, which starts as a copy of them.
    """

    @jax.jit  # compiles one small program in place of hundreds
    def create(variables: Any) -> TrainState:
        def copy() -> dict[str, Any]:
            return jax.tree.map(jnp.copy, variables)

        return TrainState(
            step=jnp.zeros((), jnp.int32),
            **copy(),
            ema=copy() if ema else None,
            opt_state=optimizer.init(variables["params"]),
        )

    return create(variables)
