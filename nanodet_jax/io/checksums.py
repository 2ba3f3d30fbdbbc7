"""Digests of arrays and json values: what tells that a file holds what was written.

An array is described by `{"shape": [...], "dtype": "float32", "sha256": "..."}`, under its path in
a tree, names joined by `/`.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nanodet_jax.terminal import printable

DIGEST = "sha256"


def of_arrays(tree: Any) -> dict[str, dict[str, Any]]:
    """A description of every array of a tree."""
    return {name: {**_form(leaf), DIGEST: _digest(leaf)} for name, leaf in named(tree).items()}


def of_tree(tree: Any) -> str:
    """One digest of all arrays of a tree, names and shapes included."""
    return _digest_of_json(of_arrays(tree))


def named(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by name, in its order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def difference_in_shape(described: Mapping[str, Any], tree: Any) -> str:
    """The first array that a tree and a description do not share, in words; "" if all agree.

    Nothing but structure, shapes and dtypes is compared: the tree may be of abstract arrays.
    """
    forms = {name: _form(leaf) for name, leaf in named(tree).items()}
    for name in sorted(forms.keys() | described.keys()):
        if name not in described:
            return f"{printable(name)} is not in it"
        if name not in forms:
            return f"{printable(name)} is in it, not in the model"
        saved = described[name]
        for what, wanted in forms[name].items():
            if saved[what] != wanted:
                was = printable(str(saved[what]))
                return f"{printable(name)} has {what} {was} in place of {wanted}"
    return ""


def difference(described: Mapping[str, Any], tree: Any) -> str:
    """The first array of a tree whose bytes are not those that were described; "" if all are."""
    for name, leaf in named(tree).items():
        if described[name][DIGEST] != _digest(leaf):
            return f"{printable(name)} is not what was saved"
    return ""


def signed(value: dict[str, Any]) -> dict[str, Any]:
    """A json object with a digest of itself."""
    value = json.loads(json.dumps(value))  # as it is going to be read: keys are texts
    return {"value": value, DIGEST: _digest_of_json(value)}


def verified(document: Any) -> Any:
    """The value in what `signed` gave; any json value, as whoever wrote it may have signed it.

    Raises:
      ValueError: if it is another, or something else altogether.
    """
    if not isinstance(document, dict) or document.keys() != {"value", DIGEST}:
        raise ValueError("it is no record")
    if _digest_of_json(document["value"]) != document[DIGEST]:
        raise ValueError("it is not what was saved")
    return document["value"]


def _form(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}


def _digest(leaf: Any) -> str:
    array = np.asarray(leaf, order="C")  # np.ascontiguousarray would make [1] of a scalar
    return hashlib.sha256(f"{array.dtype.name}{array.shape}".encode() + array.tobytes()).hexdigest()


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
