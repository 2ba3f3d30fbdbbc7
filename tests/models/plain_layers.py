"""Layers of PicoDet in numpy and float64, from the names of their variables."""

import jax
import numpy as np

from nanodet_jax.io.torch_names import flatten


def drawn(shapes, seed=0):
    """Draw variables that differ from their initial values; kernels roughly keep variances."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        match path[-1].key:
            case "kernel":
                return random.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:3]))
            case "var" | "scale":
                return random.uniform(0.5, 2, leaf.shape)
        return random.normal(size=leaf.shape) / 2

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.asarray(draw(path, leaf), np.float32), shapes
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x):
    return np.clip(x / 6 + 0.5, 0, 1)


def hard_swish(x):
    return x * hard_sigmoid(x)


class PlainLayers:
    """Apply layers by their paths. `read` has the paths of all variables that were used."""

    def __init__(self, variables):
        self.leaves = {path: leaf.astype(np.float64) for path, leaf in flatten(variables).items()}
        self.read = set()

    def leaf(self, path):
        self.read.add(path)
        return self.leaves[path]

    def norm(self, x, path):
        mean, var = (self.leaf(f"batch_stats/{path}/{name}") for name in ("mean", "var"))
        scale, bias = (self.leaf(f"params/{path}/{name}") for name in ("scale", "bias"))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def pointwise(self, x, path, bias=False):
        x = np.einsum("bhwi,io->bhwo", x, self.leaf(f"params/{path}/kernel")[0, 0])
        return x + self.leaf(f"params/{path}/bias") if bias else x

    def windows(self, x, path, stride, product):
        """Sum products of kernel taps [I, O] or [1, C] and pixels, with zeros beyond the border."""
        kernel = self.leaf(f"params/{path}/kernel")
        margin = len(kernel) // 2
        padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        rows, columns = x.shape[1:3]
        return sum(
            np.einsum(product, padded[:, i : i + rows : stride, j : j + columns : stride], tap)
            for (i, j), tap in (((i, j), kernel[i, j]) for i, j in np.ndindex(kernel.shape[:2]))
        )

    def dense(self, x, path):
        return self.windows(x, path, 1, "bhwi,io->bhwo")

    def separable(self, x, path, stride=1, squeeze_excite=False):
        x = self.windows(x, f"{path}/depthwise", stride, "bhwc,ic->bhwc")
        x = hard_swish(self.norm(x, f"{path}/dwnorm"))
        if squeeze_excite:
            means = x.mean(axis=(1, 2), keepdims=True)
            reduced = self.pointwise(means, f"{path}/squeeze/reduce", bias=True)
            gate = self.pointwise(np.maximum(reduced, 0), f"{path}/squeeze/expand", bias=True)
            x = x * hard_sigmoid(gate)
        return hard_swish(self.norm(self.pointwise(x, f"{path}/pointwise"), f"{path}/pwnorm"))
