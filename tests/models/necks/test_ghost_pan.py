"""GhostPAN against an implementation in numpy, and the initialization of its kernels."""

import functools
from functools import partial

import jax
import numpy as np
import pytest

from nanodet_jax.io.torch_names import flatten
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.necks.ghost_pan import GhostPAN
from nanodet_jax.runtime import backend
from tests.models.test_guidance import drawn
from tests.models.test_nanodet import check_normal

WIDTHS = (6, 5, 7)  # of the backbone's features, finest first
COARSEST = (3, 5)  # odd, so that half of it is rounded
LAST = len(WIDTHS) - 1
FUSIONS = ("top_down", "bottom_up")
REDUCTIONS = ("downsample_0", "downsample_1", "extra_entry", "extra_last")


def features_of(widths=WIDTHS, seed=0):
    """Draw features of two images; each level has twice the size of the next."""
    random = np.random.default_rng(seed)
    sizes = [tuple(side << LAST - i for side in COARSEST) for i in range(len(widths))]
    levels = [random.normal(size=(2, *size, width)) for size, width in zip(sizes, widths)]
    return [level.astype(np.float32) for level in levels]


def module(channels=4, kernel_size=5, blocks=1, extra_level=True):
    norm = partial(BatchNorm, use_running_average=True)
    return GhostPAN(channels, kernel_size, blocks, extra_level, norm)


def shapes_of(neck):
    return jax.eval_shape(neck.init, jax.random.key(0), features_of())


class NumpyGhostPAN:
    """The same network in numpy and float64, from the names of its variables."""

    def __init__(self, variables):
        self.leaves = {path: leaf.astype(np.float64) for path, leaf in flatten(variables).items()}
        self.read = set()

    def leaf(self, kind, path):
        self.read.add(f"{kind}/{path}")
        return self.leaves[f"{kind}/{path}"]

    def norm(self, x, path, activate=True):
        mean, var = (self.leaf("batch_stats", f"{path}/{name}") for name in ("mean", "var"))
        scale, bias = (self.leaf("params", f"{path}/{name}") for name in ("scale", "bias"))
        x = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
        return np.where(x > 0, x, 0.1 * x) if activate else x

    def pointwise(self, x, path):
        return np.einsum("bhwi,io->bhwo", x, self.leaf("params", f"{path}/kernel")[0, 0])

    def depthwise(self, x, path, stride=1):
        kernel = self.leaf("params", f"{path}/kernel")
        size, (_, height, width, _) = len(kernel), x.shape
        output = np.zeros((len(x), -(-height // stride), -(-width // stride), x.shape[-1]))
        for row, column in np.ndindex(output.shape[1:3]):
            for i, j in np.ndindex(size, size):
                y, z = stride * row + i - size // 2, stride * column + j - size // 2
                if 0 <= y < height and 0 <= z < width:
                    output[:, row, column] += x[:, y, z] * kernel[i, j, 0]
        return output

    def ghost_module(self, x, path, activate):
        first = self.norm(self.pointwise(x, f"{path}/primary"), f"{path}/primary_norm", activate)
        second = self.norm(self.depthwise(first, f"{path}/cheap"), f"{path}/cheap_norm", activate)
        return np.concatenate([first, second], axis=-1)

    def bottleneck(self, x, path, shortcut):
        y = self.ghost_module(x, f"{path}/ghost1", activate=True)
        y = self.ghost_module(y, f"{path}/ghost2", activate=False)
        if shortcut:
            path = f"{path}/shortcut"
            x = self.norm(self.depthwise(x, f"{path}/depthwise"), f"{path}/dwnorm", False)
            x = self.norm(self.pointwise(x, f"{path}/pointwise"), f"{path}/pwnorm", False)
        return x + y

    def halved(self, x, path):
        x = self.norm(self.depthwise(x, f"{path}/depthwise", stride=2), f"{path}/dwnorm")
        return self.norm(self.pointwise(x, f"{path}/pointwise"), f"{path}/pwnorm")

    def fuse(self, resized, level, path, blocks):
        x = np.concatenate([resized, level], axis=-1)
        for block in range(blocks):  # only the first one has an input of twice the width
            x = self.bottleneck(x, f"{path}_{block}", shortcut=block == 0)
        return x

    def __call__(self, features, blocks, extra_level):
        p3, p4, p5 = (
            self.norm(self.pointwise(x, f"lateral_{i}/conv"), f"lateral_{i}/norm")
            for i, x in enumerate(features)
        )
        middle = self.fuse(doubled(p5), p4, "top_down_0", blocks)
        finest = self.fuse(doubled(middle), p3, "top_down_1", blocks)
        middle = self.fuse(self.halved(finest, "downsample_0"), middle, "bottom_up_0", blocks)
        coarsest = self.fuse(self.halved(middle, "downsample_1"), p5, "bottom_up_1", blocks)
        levels = [finest, middle, coarsest]
        if extra_level:
            levels.append(self.halved(p5, "extra_entry") + self.halved(coarsest, "extra_last"))
        return levels


def doubled(x):
    """Double height and width by linear interpolation between pixel centers."""
    for axis in (1, 2):
        length = x.shape[axis]
        before = x.take(np.maximum(np.arange(length) - 1, 0), axis)
        after = x.take(np.minimum(np.arange(length) + 1, length - 1), axis)
        pairs = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])
    return x


@pytest.mark.parametrize(("kernel_size", "blocks", "extra_level"), [(5, 1, True), (3, 2, False)])
def test_forward_equals_numpy(kernel_size, blocks, extra_level):
    neck = module(4, kernel_size, blocks, extra_level)
    features, variables = features_of(), drawn(shapes_of(neck))
    levels = backend.jit_once(neck.apply)(variables, features)
    plain = NumpyGhostPAN(variables)
    expected = plain(features, blocks, extra_level)
    assert plain.read == set(flatten(variables))  # all variables are used
    sizes = [(12, 20), (6, 10), (3, 5), (2, 3)][: len(expected)]
    assert [level.shape for level in levels] == [(2, *size, 4) for size in sizes]
    for level, exact in zip(levels, expected, strict=True):
        assert exact.std() > 0.3
        np.testing.assert_allclose(level, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_kernel_size_applies_to_all_depthwise_convolutions_but_the_cheap_ones():
    kernels = {
        path: leaf.shape[0]
        for path, leaf in flatten(shapes_of(module(kernel_size=7, blocks=2))["params"]).items()
        if path.endswith("kernel")
    }
    seven = {path for path, size in kernels.items() if size == 7}
    assert seven == {
        *(f"{name}_{i}_0/shortcut/depthwise/kernel" for name in FUSIONS for i in (0, 1)),
        *(f"{name}/depthwise/kernel" for name in REDUCTIONS),
    }
    three = {path for path, size in kernels.items() if size == 3}
    assert len(three) == 2 * 2 * 2 * 2 and all(path.endswith("cheap/kernel") for path in three)
    assert set(kernels.values()) == {1, 3, 7}


@functools.cache
def initial():
    """Initialize a neck that is wide enough to estimate standard deviations."""
    features = features_of((24, 48, 64))
    return backend.jit_once(module(48).init)(jax.random.key(3), features)


def started(start):
    kernels = {
        path: np.asarray(leaf)
        for path, leaf in flatten(initial()["params"]).items()
        if path.startswith(start) and path.endswith("kernel")
    }
    assert kernels
    return kernels


@pytest.mark.parametrize("start", ["lateral", *REDUCTIONS])
def test_convolutions_with_activation_start_he_normal(start):
    # N(0, 2 / fan_out), where fan_out of a depthwise convolution counts all channels.
    for path, kernel in started(start).items():
        rows, columns, _, channels_out = kernel.shape
        std = np.sqrt(2 / (channels_out * rows * columns))
        check_normal(path, kernel, std)
        assert np.abs(kernel).max() > 2.4 * std, path  # not truncated


@pytest.mark.parametrize("start", FUSIONS)
def test_ghost_modules_start_uniform_by_fan_in(start):
    kernels = started(start)
    assert len(kernels) == 2 * 6  # two each of two ghost modules and a shortcut
    for path, kernel in kernels.items():
        bound = 1 / np.sqrt(np.prod(kernel.shape[:3]))  # fan_in, depthwise too
        assert 0.95 * bound < np.abs(kernel).max() <= bound, path
        check_normal(path, kernel, bound / np.sqrt(3))
    first = [kernel.ravel()[0] * np.sqrt(np.prod(kernel.shape[:3])) for kernel in kernels.values()]
    assert len(np.unique(first)) == len(first)  # all from different keys


def test_norms_start_as_identity_and_convolutions_have_no_bias():
    leaves = flatten(initial())
    start = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    for path, leaf in leaves.items():
        module, name = path.rsplit("/", 1)
        assert name == "kernel" or (module.endswith("norm") and np.all(leaf == start[name])), path
    # Three laterals, four fusions of six convolutions, four reductions of two; one norm for each.
    assert sum(path.endswith("/var") for path in leaves) == 3 + 4 * 6 + 4 * 2
    assert sum(path.endswith("/kernel") for path in leaves) == 3 + 4 * 6 + 4 * 2
