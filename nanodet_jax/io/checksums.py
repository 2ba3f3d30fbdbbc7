"""Checksums of arrays and JSON values, to verify that a file contains what was written.

An array is described by `{"shape": [...], "dtype": "float32", "sha256": "..."}`. The key of the
description is the path of the array in a tree, joined by `/`.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nanodet_jax.terminal import printable

DIGEST = "sha256"


def describe_arrays(tree: Any) -> dict[str, dict[str, Any]]:
    """Return a description of every array in a tree, by name."""
    return {
        name: {**_shape_and_dtype(leaf), DIGEST: _digest(leaf)}
        for name, leaf in flatten(tree).items()
    }


def digest_of_tree(tree: Any) -> str:
    """Return one digest of all arrays in a tree, including their names and shapes."""
    return _digest_of_json(describe_arrays(tree))


def flatten(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree by name, in the order of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def find_structure_mismatch(described: Mapping[str, Any], tree: Any) -> str:
    """Compare structure, shapes and dtypes of a tree with a description.

    Args:
      described: a result of `describe_arrays`.
      tree: arrays, which may be abstract.

    Returns:
      A description of the first difference, or "" if there is none.
    """
    expected = {name: _shape_and_dtype(leaf) for name, leaf in flatten(tree).items()}
    for name in sorted(expected.keys() | described.keys()):
        if name not in described:
            return f"{printable(name)} is not in the checkpoint"
        if name not in expected:
            return f"{printable(name)} is in the checkpoint, but not in the model"
        saved = described[name]
        for what, value in expected[name].items():
            if saved[what] != value:
                return f"{printable(name)} has {what} {printable(str(saved[what]))}, not {value}"
    return ""


def find_content_mismatch(described: Mapping[str, Any], tree: Any) -> str:
    """Return a message about the first array whose bytes differ from the description, or ""."""
    for name, leaf in flatten(tree).items():
        if described[name][DIGEST] != _digest(leaf):
            return f"{printable(name)} is not what was saved"
    return ""


def add_digest(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object that contains a value and its digest."""
    value = json.loads(json.dumps(value))  # as it will be read: JSON keys are strings
    return {"value": value, DIGEST: _digest_of_json(value)}


def verify(document: Any) -> Any:
    """Return the value in a document from `add_digest`.

    The value may be any JSON value. The digest proves that the value is unchanged, not that it
    is trustworthy.

    Raises:
      ValueError: if the value has changed, or the document has a different form.
    """
    if not isinstance(document, dict) or document.keys() != {"value", DIGEST}:
        raise ValueError(f"it is not an object with value and {DIGEST}")
    if _digest_of_json(document["value"]) != document[DIGEST]:
        raise ValueError("it is not what was saved")
    return document["value"]


def _shape_and_dtype(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}


def _digest(leaf: Any) -> str:
    array = np.asarray(leaf, order="C")  # np.ascontiguousarray would give a scalar the shape [1]
    return hashlib.sha256(f"{array.dtype.name}{array.shape}".encode() + array.tobytes()).hexdigest()


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
