"""The training step on one device or many, of one process or many, and what it eats brought there.

`num_devices` is always the number of devices of each process.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from nanodet_jax.config import Config, Training
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.device_augment import color_batch, warp_batch
from nanodet_jax.errors import UserError
from nanodet_jax.runtime import backend
from nanodet_jax.structures import Batch, RawBatch
from nanodet_jax.training.step import train_step

AXIS = "data"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


def _mesh(num_devices: int) -> Mesh:
    """The first devices of all processes, those of a process side by side."""
    devices = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process_index=process)[:num_devices]
    ]
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _are_many(num_devices: int) -> bool:
    return num_devices * jax.process_count() > 1


def count_devices(training: Training) -> int:
    """How many devices of this process train.

    Raises:
      UserError: if there are fewer than `config.training.devices`.
    """
    there = jax.local_device_count()
    if training.devices > there:
        raise UserError(
            f"config.training.devices={training.devices}: there are {there} "
            f"{jax.default_backend()} devices; 0 takes all"
        )
    return training.devices or there


def make_train_step(
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    num_devices: int = 1,
    **parts: Any,
):
    """`train_step`, compiled; the state that is passed in is used up.

    Over several devices the batch is split and the state replicated. The loss and its gradients
    are those of the whole batch; batch statistics normalise within a device, or over all of them
    with `config.Model.sync_batch_norm`.

    Args:
      optimizer, schedule: of `training.optimizer`.
      num_devices: how many of `jax.local_devices()`; must divide the batch.
      **parts: all that `train_step` takes besides: model, priors, assigner, ...
    """
    step = partial(train_step, optimizer=optimizer, schedule=schedule, **parts)
    if _are_many(num_devices):
        step = jax.shard_map(
            partial(step, axis_name=AXIS),
            mesh=_mesh(num_devices),
            in_specs=(WHOLE, SPLIT),
            out_specs=WHOLE,
            check_vma=False,  # sums over the axis are written out in the step
        )
    return backend.jit(step, donate_argnums=0)


def make_place(num_devices: int = 1) -> Callable[[Any], Any]:
    """A function that starts to move a batch, numpy, to where the step takes it: split if many.

    Of several processes each brings its part: what `training_batches` makes for it.
    """
    if not _are_many(num_devices):
        return jax.device_put
    split = NamedSharding(_mesh(num_devices), SPLIT)
    if jax.process_count() == 1:
        return partial(jax.device_put, device=split)
    return partial(jax.tree.map, partial(jax.make_array_from_process_local_data, split))


def replicate(state: Any, num_devices: int = 1) -> Any:
    """A state that all processes have the same of, as the step returns it: whole on each device.

    From a single one jit would bring it there too, but compile another step for that.
    """
    if not _are_many(num_devices):
        return state
    whole = NamedSharding(_mesh(num_devices), WHOLE)
    if jax.process_count() == 1:
        return jax.device_put(state, whole)

    def place(leaf: Any) -> jax.Array:
        value = np.asarray(leaf)
        return jax.make_array_from_process_local_data(whole, value, value.shape)

    return jax.tree.map(place, state)


def own_part(batch: Any, num_devices: int = 1) -> Any:
    """What of a placed batch lies on devices of this process, as arrays that it can read."""
    return _of_this_process(batch, num_devices, SPLIT)


def own_copy(state: Any, num_devices: int = 1) -> Any:
    """A replicated state or a part of it, on the devices of this process alone."""
    return _of_this_process(state, num_devices, WHOLE)


def _of_this_process(tree: Any, num_devices: int, spec: PartitionSpec) -> Any:
    if jax.process_count() == 1:
        return tree
    return multihost_utils.global_array_to_host_local_array(tree, _mesh(num_devices), spec)


def split_detection(num_devices: int = 1) -> Callable[[Callable], Callable]:
    """What makes of a detector, as `make_detect` has it, one over the devices of this process.

    Each process detects in images of its own, without the others.
    """
    if num_devices == 1:
        return lambda detect: detect
    return partial(
        jax.shard_map,
        mesh=_mesh(num_devices).local_mesh,
        in_specs=(WHOLE, SPLIT, SPLIT, SPLIT),
        out_specs=SPLIT,
        check_vma=False,
    )


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
    if _are_many(num_devices):
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
    where = NamedSharding(_mesh(num_devices), WHOLE) if _are_many(num_devices) else None
    stored = jax.jit(partial(jnp.zeros, shape, jnp.uint8), out_shardings=where)()
    # Donated, so that there is never more than one of it.
    write = jax.jit(lax.dynamic_update_slice, donate_argnums=0)
    with tqdm(total=len(images), desc="images onto the device", unit="img", leave=False) as bar:
        for chunk in images.canvases():
            stored = write(stored, chunk, (bar.n, 0, 0, 0))
            bar.update(len(chunk))
    return stored
