"""LC-PAN against an implementation in numpy."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn

from nanodet_jax.io.torch_names import flatten
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.necks.lc_pan import LCPAN
from nanodet_jax.runtime import backend
from tests.models.plain_layers import PlainLayers, drawn, hard_swish

WIDTHS = (6, 5, 7)  # of the backbone's features, finest first
SIZES = ((12, 20), (6, 10), (3, 5))  # the coarsest is odd, so that half of it is rounded


def plain_lc_pan(layers, features, extra_level):
    def fuse(resized, level, name):
        x = np.concatenate([resized, level], axis=-1)
        return layers.separable(layers.separable(x, f"{name}_0"), f"{name}_1")

    def doubled(x):
        return x.repeat(2, axis=1).repeat(2, axis=2)

    def halved(x, name):
        return layers.separable(x, name, stride=2)

    p3, p4, p5 = (
        hard_swish(layers.norm(layers.pointwise(x, f"lateral_{i}/conv"), f"lateral_{i}/norm"))
        for i, x in enumerate(features)
    )
    middle = fuse(doubled(p5), p4, "top_down_0")
    finest = fuse(doubled(middle), p3, "top_down_1")
    middle = fuse(halved(finest, "downsample_0"), middle, "bottom_up_0")
    coarsest = fuse(halved(middle, "downsample_1"), p5, "bottom_up_1")
    levels = [finest, middle, coarsest]
    if extra_level:
        levels.append(halved(p5, "extra_entry") + halved(coarsest, "extra_last"))
    return levels


@pytest.mark.parametrize(("kernel_size", "extra_level"), [(5, True), (3, False)])
def test_forward_equals_numpy(kernel_size, extra_level):
    random = np.random.default_rng(0)
    features = [
        random.normal(size=(2, *size, width)).astype(np.float32)
        for size, width in zip(SIZES, WIDTHS)
    ]
    norm = partial(BatchNorm, use_running_average=True)
    neck = LCPAN(4, kernel_size, extra_level, norm, nn.hard_swish)
    variables = drawn(jax.eval_shape(neck.init, jax.random.key(0), features))
    levels = backend.jit_once(neck.apply)(variables, features)
    plain = PlainLayers(variables)
    expected = plain_lc_pan(plain, features, extra_level)
    assert plain.read == set(flatten(variables))  # all variables are used
    sizes = [*SIZES, (2, 3)][: len(expected)]
    assert [level.shape for level in levels] == [(2, *size, 4) for size in sizes]
    for level, exact in zip(levels, expected, strict=True):
        assert exact.std() > 0.1
        np.testing.assert_allclose(level, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
