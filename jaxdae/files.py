"""Files that can be made again, and fingerprints: the cache folder, SHA-256 of trees."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np


def cache_folder(cache_dir: Path | None = None) -> Path:
    """The folder: as given, `$XDG_CACHE_HOME/jaxdae` or `~/.cache/jaxdae`. It may not exist."""
    return cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdae"


def tree_sha256(tree: Any) -> str:
    """The SHA-256 of a tree's leaves: paths, types, shapes and bytes, as a hexadecimal string."""
    import jax  # `jaxdae.data` is read without it

    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}:{array.dtype.str}{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
