"""The training step on one device or all of this machine's, as one program."""

from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import AxisType, PartitionSpec

from nanodet_jax import backend
from nanodet_jax.training.step import train_step

AXIS = "data"


def make_train_step(
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    num_devices: int = 1,
    **parts: Any,
):
    """`train_step`, compiled; the state that is passed in is used up.

    Over several devices the batch is split and the state replicated. The loss and its gradients
    are those of the whole batch; batch statistics normalise within a device.

    Args:
      optimizer, schedule: of `training.optimizer`.
      num_devices: how many of `jax.local_devices()`; must divide the batch.
      **parts: all that `train_step` takes besides: model, priors, assigner, ...
    """
    step = partial(train_step, optimizer=optimizer, schedule=schedule, **parts)
    if num_devices > 1:
        mesh = jax.make_mesh(
            (num_devices,),
            (AXIS,),
            axis_types=(AxisType.Auto,),
            devices=jax.local_devices()[:num_devices],
        )
        step = jax.shard_map(
            partial(step, axis_name=AXIS),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,  # sums over the axis are written out in the step
        )
    return backend.jit(step, donate_argnums=0)
