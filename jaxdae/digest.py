"""A fingerprint of parameters and data."""

import hashlib
from typing import Any

import jax
import numpy as np


def tree_sha256(tree: Any) -> str:
    """The SHA-256 of a tree's leaves: paths, types, shapes and bytes, as a hexadecimal string."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}:{array.dtype.str}{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
