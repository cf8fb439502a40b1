"""Files: the cache folder, writing a file whole or not at all, SHA-256 of a tree of arrays."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_numbers = itertools.count()


def cache_folder(cache_dir: Path | None = None) -> Path:
    """The cache folder: `cache_dir`, `$XDG_CACHE_HOME/jaxdae` or `~/.cache/jaxdae`.

    It may not exist yet.
    """
    return cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdae"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, and moves it to `path` when the block ends.

    `path` is written whole or not at all: if anything fails, the temporary file is removed and
    `path` stays as it was. Missing parent folders are made. The temporary name is hidden, differs
    between processes and threads, and has the suffix of `path`.

    Raises:
      OSError: the file system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{next(_numbers)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all, as `replacing` does; text as UTF-8.

    Raises:
      OSError: the file system refuses.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def tree_sha256(tree: Any) -> str:
    """The SHA-256 of a tree's leaves: paths, types, shapes and bytes, as a hexadecimal string."""
    import jax  # `jaxdae.data` is read without it

    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}:{array.dtype.str}{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
