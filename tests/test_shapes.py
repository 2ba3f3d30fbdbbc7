"""Checks of the shapes in signatures, which are active only in the tests."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from nanodet_jax import boxes
from nanodet_jax.inference import postprocess
from nanodet_jax.losses import functional
from nanodet_jax.losses.assigners import atss, dynamic_soft_label
from nanodet_jax.losses.assigners.atss import ATSS
from nanodet_jax.runtime import precision

ASSIGNER = ATSS(topk=9, anchor_scale=5.0, ignore_threshold=0.5)
# One call per module with a shape or a dtype that does not fit the others.
WRONG = {
    "boxes": (boxes.iou, (jnp.zeros((3, 5)), jnp.zeros((3, 4)))),
    "functional": (functional.distribution_focal, (jnp.zeros((3, 8)), jnp.zeros(4))),
    "atss": (atss.nearest_per_level, (jnp.zeros(21), (16, 4, 1), 9)),
    "dynamic_soft_label": (
        dynamic_soft_label.assignment_cost,
        (jnp.zeros((3, 2)), jnp.zeros((3, 5)), jnp.zeros(5, int), 3.0),
    ),
    "policy": (ASSIGNER.count_samples, (jnp.zeros((3, 4)),)),
    "postprocess": (postprocess.non_maximum_suppression, (jnp.zeros((3, 4)), jnp.zeros((2, 5)))),
    "precision": (precision.at_least_float32, (jnp.zeros(3, int),)),
}


@pytest.mark.parametrize("module", WRONG)
def test_wrong_shape_is_refused_when_called_and_when_traced(module):
    function, args = WRONG[module]
    with pytest.raises(TypeCheckError, match="Type-check error"):
        function(*args)
    static = [i for i, arg in enumerate(args) if not isinstance(arg, jax.Array)]
    with pytest.raises(TypeCheckError, match="Type-check error"):
        jax.jit(function, static_argnums=static).lower(*args)


def test_checks_do_not_change_the_program():
    spec = importlib.util.spec_from_file_location("boxes_unchecked", boxes.__file__)
    unchecked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchecked)
    assert unchecked.area(jnp.zeros((3, 5))).shape == (3,)  # as outside the tests
    right = jnp.zeros((3, 1, 4)), jnp.zeros((1, 2, 4))
    programs = [str(jax.make_jaxpr(module.giou)(*right)) for module in (boxes, unchecked)]
    assert programs[0] == programs[1]
