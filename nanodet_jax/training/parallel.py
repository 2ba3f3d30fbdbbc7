"""The training step on one device or all of this machine's, and what it eats brought there."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from nanodet_jax import backend
from nanodet_jax.config import Config
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.render import color_batch, warp_batch
from nanodet_jax.structures import Batch, RawBatch
from nanodet_jax.training.step import train_step

AXIS = "data"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


def _mesh(num_devices: int) -> Mesh:
    return jax.make_mesh(
        (num_devices,),
        (AXIS,),
        axis_types=(AxisType.Auto,),
        devices=jax.local_devices()[:num_devices],
    )


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
        step = jax.shard_map(
            partial(step, axis_name=AXIS),
            mesh=_mesh(num_devices),
            in_specs=(WHOLE, SPLIT),
            out_specs=WHOLE,
            check_vma=False,  # sums over the axis are written out in the step
        )
    return backend.jit(step, donate_argnums=0)


def make_place(num_devices: int = 1) -> Callable[[Any], Any]:
    """A function that starts to move a batch, numpy, to where the step takes it: split if many."""
    if num_devices == 1:
        return jax.device_put
    return partial(jax.device_put, device=NamedSharding(_mesh(num_devices), SPLIT))


def make_render(
    config: Config, num_devices: int = 1, stored: jax.Array | None = None
) -> Callable[[Any], Batch]:
    """A function from what `training_batches` yields to the `Batch` that the step eats.

    With augment=host that is the same. Otherwise images are warped and coloured on the devices, in
    two programs (`render`), each device its part.

    Args:
      config: input size, normalisation, and where and how images are warped.
      num_devices: as the step has.
      stored: of `store`, with cache=device.
    """
    data = config.data
    if data.augment == "host":
        return lambda batch: batch
    shrinks = not config.compat.pixel_index_warp
    warp: Callable[..., jax.Array] = partial(
        warp_batch, input_size=config.input_size, shrinks=shrinks
    )
    color: Callable[..., jax.Array] = partial(color_batch, mean=data.mean, std=data.std)
    if num_devices > 1:
        over = partial(jax.shard_map, mesh=_mesh(num_devices), out_specs=SPLIT, check_vma=False)
        warp = over(warp, in_specs=(SPLIT, WHOLE))
        color = over(color, in_specs=SPLIT)
    warp, color = backend.jit(warp), backend.jit(color)

    def render(raw: RawBatch) -> Batch:
        return Batch(color(warp(raw, stored), raw.filled, raw.colors), raw.ground_truth)

    return render


def store(images: TrainingImages, num_devices: int = 1) -> jax.Array:
    """The canvases of all images, [N, Hc, Wc, 3] uint8, on each device; N x Hc x Wc as theirs."""
    shape = (len(images), *images.canvas, 3)
    where = NamedSharding(_mesh(num_devices), WHOLE) if num_devices > 1 else None
    stored = jax.jit(partial(jnp.zeros, shape, jnp.uint8), out_shardings=where)()
    # Donated, so that there is never more than one of it.
    write = jax.jit(lax.dynamic_update_slice, donate_argnums=0)
    with tqdm(total=len(images), desc="images onto the device", unit="img", leave=False) as bar:
        for chunk in images.canvases():
            stored = write(stored, chunk, (bar.n, 0, 0, 0))
            bar.update(len(chunk))
    return stored
