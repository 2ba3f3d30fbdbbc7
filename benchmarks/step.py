"""The training step and its parts."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax

from benchmarks.timing import Program, Row, compile_and_run
from benchmarks.workload import LEARNING_RATE, Network, Workload, on_device, random_batch
from nanodet_jax.data.run_length import RunLength
from nanodet_jax.runtime import backend
from nanodet_jax.state import create_state
from nanodet_jax.training.hyperparameters import hyperparameters_of
from nanodet_jax.training.optimizer import make_optimizer
from nanodet_jax.training.parallel import make_adjustable_step
from nanodet_jax.training.step import update_ema

# The guidance also trains the backbone and the neck until the end of the only epoch.
ONE_EPOCH = RunLength(steps_per_epoch=2**30, total_steps=2**30)


def training_step(workload: Workload) -> dict[str, Program]:
    """Build the training step of `train.py`, on one device."""
    network = Network(workload)
    batch = on_device(random_batch(workload, network.config.input_size))
    training = replace(
        network.config.training, learning_rate=LEARNING_RATE, warmup_steps=0, detach_epoch=1
    )
    hyperparameters = hyperparameters_of(network.config, training, ONE_EPOCH)
    step = make_adjustable_step(model=network.model, criterion=network.criterion, training=training)
    optimizer = make_optimizer(training, hyperparameters.rates.at)
    state = create_state(network.variables, optimizer, training.ema_decay > 0)
    program = compile_and_run(
        step,
        state,
        batch,
        hyperparameters,
        next_args=lambda result: (result[0], batch, hyperparameters),
        images=workload.batch,
        roofline="training",
    )
    return {"": program}


def parts(workload: Workload) -> dict[str, Program]:
    """Build the parts of the step.

    Their times add up to more than the time of the step, which need not store intermediate results.
    """
    network = Network(workload)
    batch = on_device(random_batch(workload, network.config.input_size))
    variables = jax.device_put(network.variables)
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    decay = network.config.training.ema_decay
    optimizer = make_optimizer(network.config.training, optax.constant_schedule(LEARNING_RATE))

    def forward(params, images):
        return network.model.apply(
            {"params": params, **rest}, images, method="branches", mutable=["batch_stats"]
        )

    def forward_and_backward(params, images, direction):
        branches, backward, updated = jax.vjp(partial(forward, images=images), params, has_aux=True)
        return branches, backward(direction), updated

    def update(gradients, opt_state, params):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return opt_state, optax.apply_updates(params, updates)

    forward_program = compile_and_run(backend.jit(forward), params, batch.images)
    branches = forward_program.run()[0]
    programs = {
        "forward": forward_program,
        "forward + backward": compile_and_run(
            backend.jit(forward_and_backward), params, batch.images, branches
        ),
        "assignment + loss + gradient": compile_and_run(
            backend.jit(jax.value_and_grad(network.criterion, has_aux=True)),
            branches,
            batch.ground_truth,
        ),
        "optimizer": compile_and_run(
            backend.jit(update, donate_argnums=(1, 2)),
            params,  # in place of gradients, which have the same shapes
            optimizer.init(params),
            jax.tree.map(jnp.array, params),
            next_args=lambda result: (params, *result),
        ),
    }
    if decay > 0:
        average = partial(update_ema, variables=variables, step=jnp.int32(1000), decay=decay)
        programs["moving average"] = compile_and_run(
            backend.jit(average, donate_argnums=0),
            jax.tree.map(jnp.array, variables),
            next_args=lambda result: (result,),
        )
    return programs


def with_backward(rows: dict[str, Row]) -> dict[str, Row]:
    """Add a row for the backward pass: the time that it adds to the forward pass of `parts`."""
    both, forward = rows["forward + backward"], rows["forward"]
    keys = ("wall_ms", "wall_min_ms", "cpu_ms")
    return rows | {"backward, by difference": {key: both[key] - forward[key] for key in keys}}


def assignment_and_loss(workload: Workload) -> dict[str, Program]:
    """Build assignment, loss and gradient with respect to the predictions of the network.

    On average, half of the slots are filled.
    """
    network = Network(workload)
    batch = on_device(random_batch(workload, network.config.input_size))
    predict = backend.jit_once(partial(network.model.apply, method="branches", train=False))
    branches = predict(network.variables, batch.images)

    def loss(branches, truth):
        return network.criterion(branches, truth)[0]

    gradient = backend.jit(jax.grad(loss))
    return {"": compile_and_run(gradient, branches, batch.ground_truth)}
