"""Equality of the direct class cost and the assigner's, which needs no array of [P, G, C]."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from benchmarks import assignment
from nanodet_jax import boxes
from nanodet_jax.losses.assigners import dynamic_soft_label
from nanodet_jax.runtime import backend

BATCH, SLOTS, CLASSES, SIZE = 2, 7, 33, 96
PRIORS = boxes.make_priors((SIZE, SIZE), assignment.STRIDES, assignment.OFFSET)
DIRECT = [form for form in assignment.FORMS if form != "ours"]


def inputs():
    branches = assignment.random_predictions(BATCH, len(PRIORS.strides), CLASSES)
    return branches, assignment.random_truth(BATCH, SLOTS, CLASSES, SIZE)


def with_form(part, form):
    return assignment.with_cost(assignment.functions(PRIORS)[part], assignment.FORMS[form])


def largest_array(jaxpr: Jaxpr) -> int:
    """Return the number of elements of the largest array in a program, including nested ones."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in (*equation.invars, *equation.outvars)]
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)
        ):
            if isinstance(value, ClosedJaxpr):
                value = value.jaxpr
            if isinstance(value, Jaxpr):
                sizes.append(largest_array(value))
    return max(sizes)


@pytest.mark.parametrize("form", DIRECT)
def test_direct_cost_equals_the_assigners_cost(form):
    random = np.random.default_rng(0)
    logits = random.normal(0, 4, (len(PRIORS.strides), CLASSES)).astype(np.float32)
    overlaps = random.uniform(0, 1, (SLOTS, len(PRIORS.strides))).astype(np.float32)
    overlaps[random.uniform(size=overlaps.shape) < 0.3] = 0  # most pairs do not overlap
    labels = random.integers(0, CLASSES, SLOTS)
    costs = [
        backend.jit(partial(cost, iou_factor=3.0))(logits, overlaps, labels)
        for cost in (assignment.FORMS[form], dynamic_soft_label.assignment_cost)
    ]
    np.testing.assert_allclose(*costs, rtol=1e-5)


def test_direct_cost_yields_the_same_assignment():
    functions = {form: with_form("assignment", form) for form in assignment.FORMS}
    targets = backend.jit(lambda *args: jax.tree.map(lambda f: f(*args), functions))(*inputs())
    ours = targets["ours"]
    assert np.sum(ours.gt_index >= 0) > BATCH * SLOTS  # boxes have several priors
    for form in DIRECT:
        np.testing.assert_array_equal(targets[form].gt_index, ours.gt_index)
        np.testing.assert_allclose(targets[form].overlap, ours.overlap, rtol=1e-5)


def test_assigner_has_no_array_over_priors_slots_and_classes():
    every = BATCH * len(PRIORS.strides) * SLOTS * CLASSES
    sizes = {}
    for form in assignment.FORMS:
        function = with_form("assignment + loss + gradient", form)
        sizes[form] = largest_array(jax.make_jaxpr(function)(*inputs()).jaxpr)
    assert sizes["ours"] < every
    assert all(sizes[form] >= every for form in DIRECT), sizes
