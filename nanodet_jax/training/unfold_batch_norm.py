"""Restore the statistics of batch norms that are folded into the convolutions before them.

In the published weights each batch norm is multiplied into the preceding convolution, and the
remaining batch norm is the identity plus a bias. That does not change inference. In training,
however, the batch's statistics would normalize activations that should keep their scale, and the
network would start from features other than the learned ones.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from nanodet_jax.io.torch_names import flatten, unflatten
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.nanodet import NanoDet
from nanodet_jax.runtime import backend
from nanodet_jax.structures import Array

EPSILON = BatchNorm.epsilon


def is_folded(variables: VariableDict) -> bool:
    """Return whether every batch norm is the identity plus a bias, which training never yields.

    Freshly initialized variables have running variances of 1, and folded ones have 1 - epsilon.
    """
    leaves = flatten(variables)
    means = [leaf for path, leaf in leaves.items() if path.endswith("/mean")]
    variances = [leaf for path, leaf in leaves.items() if path.endswith("/var")]
    scales = [leaf for path, leaf in leaves.items() if path.endswith("/scale")]
    return (
        all(np.all(np.asarray(mean) == 0) for mean in means)
        and all(np.allclose(var, 1 - EPSILON, rtol=0, atol=1e-6) for var in variances)
        and all(np.all(np.asarray(scale) == 1) for scale in scales)
    )


def unfold(model: NanoDet, variables: VariableDict, batches: Iterable[Array]) -> dict[str, Any]:
    """Set the statistics of all batch norms to those of their inputs, without changing inference.

    Args:
      model: network that the variables belong to.
      variables: params and batch_stats.
      batches: images [B, H, W, 3] as in training. Moments are averaged over the batches.

    Returns:
      Variables (float32 NumPy arrays) whose batch norms have the mean and variance of their
      inputs, with scales and biases that compensate for them.
    """

    @backend.jit
    def moments(
        variables: VariableDict, images: jax.Array
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Return mean and mean square of each channel of every batch norm's output, by path."""
        _, captured = model.apply(
            variables,
            images,
            method="branches",
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, BatchNorm),
        )
        outputs = flatten(captured["intermediates"])
        return {
            path.removesuffix("/__call__"): (
                jnp.mean(values[0], axis=(0, 1, 2)),
                jnp.mean(jnp.square(values[0]), axis=(0, 1, 2)),
            )
            for path, values in outputs.items()
        }

    measured = [jax.device_get(moments(variables, images)) for images in batches]
    leaves = dict(flatten(variables))
    for path in measured[0]:
        first, second = (np.mean([batch[path][i] for batch in measured], axis=0) for i in (0, 1))
        scale, bias = leaves[f"params/{path}/scale"], leaves[f"params/{path}/bias"]
        mean, var = leaves[f"batch_stats/{path}/mean"], leaves[f"batch_stats/{path}/var"]
        # The norm computes output = slope * (input - mean) + bias. Solve for the moments of the
        # input, then choose scale and bias such that the same slope and offset remain.
        slope = scale / np.sqrt(var + EPSILON)
        input_mean = mean + (first - bias) / slope
        input_var = np.maximum(second - np.square(first), 0) / np.square(slope)
        leaves[f"batch_stats/{path}/mean"] = input_mean
        leaves[f"batch_stats/{path}/var"] = input_var
        leaves[f"params/{path}/scale"] = slope * np.sqrt(input_var + EPSILON)
        leaves[f"params/{path}/bias"] = bias + slope * (input_mean - mean)
    return unflatten({path: np.asarray(leaf, np.float32) for path, leaf in leaves.items()})
