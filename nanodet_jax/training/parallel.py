"""Run the training step and prepare its input, on one or more devices and processes.

`num_devices` is always the number of devices of each process.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt8

from nanodet_jax.config import Config, Loss, Training
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.device_augment import color_batch, warp_batch
from nanodet_jax.errors import UserError
from nanodet_jax.losses.criterion import Criterion
from nanodet_jax.models.backbones.backbone import trained_parameters
from nanodet_jax.models.nanodet import NanoDet
from nanodet_jax.progress import progress
from nanodet_jax.runtime import backend
from nanodet_jax.state import TrainState
from nanodet_jax.structures import Batch, RawBatch
from nanodet_jax.training.hyperparameters import Hyperparameters
from nanodet_jax.training.optimizer import make_optimizer
from nanodet_jax.training.step import Metrics, train_step

AXIS = "data"
SPLIT, REPLICATED = PartitionSpec(AXIS), PartitionSpec()


def _mesh(num_devices: int) -> Mesh:
    """Return the mesh of the first devices of each process; devices of a process are adjacent."""
    devices = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process_index=process)[:num_devices]
    ]
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _is_parallel(num_devices: int) -> bool:
    return num_devices * jax.process_count() > 1


def count_devices(training: Training) -> int:
    """Return the number of devices that this process trains on.

    Raises:
      UserError: if fewer than `config.training.devices` devices are available.
    """
    available = jax.local_device_count()
    if training.devices > available:
        raise UserError(
            f"config.training.devices={training.devices}: only {available} "
            f"{jax.default_backend()} device(s) available; 0 uses all"
        )
    return training.devices or available


def make_train_step(
    *,
    model: NanoDet,
    criterion: Criterion,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float = 0.0,
    detach_step: int = 0,
    accumulate: int = 1,
    num_devices: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Return the compiled `train_step`. It donates the state that is passed in.

    With several devices, the batch is split and the state is replicated. The loss and its gradients
    are those of the whole batch. Batch norm normalizes within each device, or over all devices with
    `config.model.sync_batch_norm`.

    Args:
      model, criterion, optimizer, schedule, ema_decay, detach_step, accumulate: as for
        `train_step`.
      num_devices: number of `jax.local_devices()` to use; must divide the batch.
    """
    step = partial(
        train_step,
        model=model,
        criterion=criterion,
        optimizer=optimizer,
        schedule=schedule,
        ema_decay=ema_decay,
        detach_step=detach_step,
        accumulate=accumulate,
    )
    return _compile(step, num_devices, (REPLICATED, SPLIT))


def make_adjustable_step(
    *, model: NanoDet, criterion: Criterion, training: Training, num_devices: int = 1
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return the compiled step of a run: (state, batch, hyperparameters) to (state, metrics).

    The step does the same as the step of `make_train_step`, but takes the hyperparameters of the
    run as an input. Runs that differ only in their hyperparameters therefore share one program,
    which the persistent cache stores.

    Args:
      model, num_devices: as for `make_train_step`.
      criterion: its weights are replaced by the weights in the hyperparameters.
      training: provides the optimizer's name, accumulation, and whether gradients are clipped.
    """

    def step(
        state: TrainState,
        batch: Batch,
        hyperparameters: Hyperparameters,
        axis_name: str | None = None,
    ) -> tuple[TrainState, Metrics]:
        schedule = hyperparameters.rates.at
        return train_step(
            state,
            batch,
            model=model,
            criterion=replace(criterion, weights=Loss(**hyperparameters.loss)),
            optimizer=make_optimizer(
                training, schedule, hyperparameters.update, trained_parameters(model.model)
            ),
            schedule=schedule,
            ema_decay=hyperparameters.ema,
            detach_step=hyperparameters.detach_step,
            accumulate=training.accumulate,
            axis_name=axis_name,
            seed=training.seed,
        )

    return _compile(step, num_devices, (REPLICATED, SPLIT, REPLICATED))


def _compile(
    step: Callable[..., tuple[TrainState, Metrics]],
    num_devices: int,
    in_specs: tuple[PartitionSpec, ...],
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compile a step for the devices. `in_specs` has one spec per input; input 0 is donated."""
    if _is_parallel(num_devices):
        step = jax.shard_map(
            partial(step, axis_name=AXIS),
            mesh=_mesh(num_devices),
            in_specs=in_specs,
            out_specs=REPLICATED,
            check_vma=False,  # the step sums over the axis explicitly
        )
    return backend.jit(step, donate_argnums=0)


def make_place_batch(num_devices: int = 1) -> Callable[[Any], Any]:
    """Return a function that starts copying a numpy batch to the devices of the step.

    With several devices, it splits the batch. With several processes, each process passes its own
    part, as `training_batches` yields it.
    """
    if not _is_parallel(num_devices):
        return jax.device_put
    split = NamedSharding(_mesh(num_devices), SPLIT)
    if jax.process_count() == 1:
        return partial(jax.device_put, device=split)
    return partial(jax.tree.map, partial(jax.make_array_from_process_local_data, split))


def replicate(state: Any, num_devices: int = 1) -> Any:
    """Copy a state to every device, sharded like the step's output.

    All processes must pass the same state.

    jit would also copy a state from a single device, but would then compile the step again.
    """
    if not _is_parallel(num_devices):
        return state
    replicated = NamedSharding(_mesh(num_devices), REPLICATED)
    if jax.process_count() == 1:
        return jax.device_put(state, replicated)

    def place(leaf: Any) -> jax.Array:
        value = np.asarray(leaf)
        return jax.make_array_from_process_local_data(replicated, value, value.shape)

    return jax.tree.map(place, state)


def local_part(batch: Any, num_devices: int = 1) -> Any:
    """Return the part of a placed batch on the devices of this process, so that it can be read."""
    return _local(batch, num_devices, SPLIT)


def local_copy(state: Any, num_devices: int = 1) -> Any:
    """Return the copy of a replicated state, or of a part of it, on this process's devices."""
    return _local(state, num_devices, REPLICATED)


def _local(tree: Any, num_devices: int, spec: PartitionSpec) -> Any:
    if jax.process_count() == 1:
        return tree
    return multihost_utils.global_array_to_host_local_array(tree, _mesh(num_devices), spec)


def split_detection(num_devices: int = 1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the `split` argument of `make_detect` that splits batches over local devices.

    Each process detects objects in its own images, independently of the others.
    """
    if num_devices == 1:
        return lambda detect: detect
    return partial(
        jax.shard_map,
        mesh=_mesh(num_devices).local_mesh,
        in_specs=(REPLICATED, SPLIT, SPLIT, SPLIT, SPLIT),
        out_specs=SPLIT,
        check_vma=False,
    )


def make_augment(
    config: Config, num_devices: int = 1, stored: UInt8[jax.Array, "N Hc Wc 3"] | None = None
) -> Callable[[Any], Batch]:
    """Return a function that converts an element of `training_batches` to a `Batch`.

    With augment=host it changes nothing. Otherwise each device warps its part of the images and
    changes their colors, in two programs.

    Args:
      config: provides the input size, the normalization, and where and how images are warped.
      num_devices: as for `make_train_step`.
      stored: canvases of all images, from `upload_images`; only with cache=device.
    """
    data = config.data
    if data.augment == "host":
        return lambda batch: batch
    shrinks = not config.compat.pixel_index_warp
    warp: Callable[..., jax.Array] = partial(
        warp_batch, input_size=config.input_size, shrinks=shrinks
    )
    color: Callable[..., jax.Array] = partial(color_batch, mean=data.mean, std=data.std)
    if _is_parallel(num_devices):
        over = partial(jax.shard_map, mesh=_mesh(num_devices), out_specs=SPLIT, check_vma=False)
        warp = over(warp, in_specs=(SPLIT, REPLICATED))
        color = over(color, in_specs=SPLIT)
    warp, color = backend.jit(warp), backend.jit(color)

    def augment(raw: RawBatch) -> Batch:
        return Batch(color(warp(raw, stored), raw.filled, raw.colors), raw.ground_truth)

    return augment


def upload_images(images: TrainingImages, num_devices: int = 1) -> UInt8[jax.Array, "N Hc Wc 3"]:
    """Copy the canvases of all N images, which take N * Hc * Wc * 3 bytes, to each device."""
    shape = (len(images), *images.canvas, 3)
    sharding = NamedSharding(_mesh(num_devices), REPLICATED) if _is_parallel(num_devices) else None
    stored = jax.jit(partial(jnp.zeros, shape, jnp.uint8), out_shardings=sharding)()
    # Donated, so that there is never more than one copy on a device.
    write = jax.jit(lax.dynamic_update_slice, donate_argnums=0)
    uploaded = 0
    with progress(len(images), "uploading images", "images") as shown:
        for chunk in images.canvases():
            stored = write(stored, chunk, (uploaded, 0, 0, 0))
            uploaded += len(chunk)
            shown.update(len(chunk))
    return stored
