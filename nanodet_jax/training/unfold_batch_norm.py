"""Give batch norms back their statistics where weights were published with them folded away.

Deployed files have each batch norm multiplied into the convolution before it, which leaves the
identity and a bias. Evaluation does not notice. Training does: the batch's statistics normalise
what should have kept its scale, and the network starts from other features than those learned.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanodet_jax.io.torch_names import flatten, unflatten
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.nanodet import NanoDet
from nanodet_jax.runtime import backend
from nanodet_jax.structures import Array

EPSILON = BatchNorm.epsilon


def is_folded(variables: Any) -> bool:
    """Whether every batch norm is the identity plus a bias, as no training leaves it.

    Fresh variables are told apart by their variance: 1, where a folded one has 1 - epsilon.
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


def unfold(model: NanoDet, variables: Any, batches: Iterable[Array]) -> Any:
    """The same network in evaluation, with the statistics that training will see.

    Args:
      model: that of the variables.
      variables: params and batch_stats.
      batches: images [B, H, W, 3] as in training; their moments are averaged.

    Returns:
      Variables whose batch norms hold the mean and variance of their inputs, and scales and
      biases that make up for it.
    """

    @backend.jit
    def moments(variables, images):
        _, seen = model.apply(
            variables,
            images,
            method="branches",
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, BatchNorm),
        )
        outputs = flatten(seen["intermediates"])
        return {
            path.removesuffix("/__call__"): (
                jnp.mean(values[0], axis=(0, 1, 2)),
                jnp.mean(jnp.square(values[0]), axis=(0, 1, 2)),
            )
            for path, values in outputs.items()
        }

    each = [jax.device_get(moments(variables, images)) for images in batches]
    leaves = dict(flatten(variables))
    for path in each[0]:
        first, second = (np.mean([batch[path][i] for batch in each], axis=0) for i in (0, 1))
        scale, bias = leaves[f"params/{path}/scale"], leaves[f"params/{path}/bias"]
        mean, var = leaves[f"batch_stats/{path}/mean"], leaves[f"batch_stats/{path}/var"]
        slope = scale / np.sqrt(var + EPSILON)  # of the output over the input
        seen_mean = mean + (first - bias) / slope
        seen_var = np.maximum(second - np.square(first), 0) / np.square(slope)
        leaves[f"batch_stats/{path}/mean"] = seen_mean
        leaves[f"batch_stats/{path}/var"] = seen_var
        leaves[f"params/{path}/scale"] = slope * np.sqrt(seen_var + EPSILON)
        leaves[f"params/{path}/bias"] = bias + slope * (seen_mean - mean)
    return unflatten({path: np.asarray(leaf, np.float32) for path, leaf in leaves.items()})
