"""Compiles, caches and loads the C++ kernels of `cpp/`.

They are compiled for the processor at hand by `c++`, `g++` or `clang++`, in five to fifteen
seconds, when one is first traced on a CPU. Libraries are kept in the user's cache folder, under a
hash of all that goes into them. Without a compiler the layers are computed by XLA's operations
(`im2col`): both give the same results up to rounding.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxlib.version import __version__ as jaxlib_version

from jaxdae.files import cache_folder

SOURCES = Path(__file__).parent / "cpp"
OPTIONS = (
    *("-std=c++17", "-O2", "-march=native", "-fno-math-errno", "-fno-strict-aliasing"),
    *("-fPIC", "-shared", "-w"),
)
TYPES = (jnp.float32, jnp.bfloat16)  # of images


class Library(NamedTuple):
    """What is compiled together: a source of `SOURCES`, its own options, and its FFI handlers."""

    source: str
    options: tuple[str, ...]
    handlers: tuple[str, ...]


LAYERS = ("conv_forward", "conv_data_grad", "conv_weight_grad", "conv_bias_grad")
LIBRARIES = {
    "float32": Library("layers.cc", ("-DELEMENT=float",), LAYERS),
    "bfloat16": Library("layers.cc", ("-DELEMENT=bfloat16",), LAYERS),
    "adam_normal": Library("adam_normal.cc", (), ("adam", "normal")),
}
_enabled = ContextVar("enabled", default=True)
_lock = threading.Lock()


def available() -> bool:
    """True if the kernels can be used here, and so are; compiles them if need be."""
    return _enabled.get() and jax.default_backend() == "cpu" and _loaded()


@contextmanager
def disabled() -> Iterator[None]:
    """Traces what follows without the kernels: for programs that are to run elsewhere.

    What `jax.jit` has traced before, it does not trace again.
    """
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def uses_amx(dtype: Any) -> bool:
    """True if the kernels multiply this type on AMX tiles, several times as fast as vectors."""
    return available() and dtype in TYPES and bool(_load()[jnp.dtype(dtype).name].jaxdae_uses_amx())


def target(handler: str, dtype: Any) -> str:
    """The FFI target of a layer's handler, for images of this type."""
    return f"jaxdae_{handler}_{jnp.dtype(dtype).name}"


def _loaded() -> bool:
    with _lock:  # of several threads one compiles
        return bool(_load())


@functools.cache
def _load() -> dict[str, ctypes.CDLL]:
    """The libraries by name, their handlers registered; empty if they cannot be had."""
    try:
        with ThreadPoolExecutor() as pool:
            libraries = dict(zip(LIBRARIES, pool.map(_open, LIBRARIES), strict=True))
    except (OSError, subprocess.SubprocessError):
        return {}
    for name, library in libraries.items():
        for handler in LIBRARIES[name].handlers:
            symbol = f"jaxdae_{handler}"
            registered = target(handler, name) if handler in LAYERS else symbol
            capsule = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(registered, capsule, platform="cpu")
    return libraries


def _open(name: str) -> ctypes.CDLL:
    """Loads a library; one that is damaged is built again."""
    path = _build(name)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink()
        return ctypes.CDLL(str(_build(name)))


def _build(name: str) -> Path:
    """The path of a library, from the cache or compiled.

    Raises:
      OSError, subprocess.SubprocessError: there is no compiler, or it fails.
    """
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler")
    library = LIBRARIES[name]
    options = (*OPTIONS, *library.options)
    # The macros that the compiler defines for this processor say all that matters of both.
    ask = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(ask, capture_output=True, check=True, timeout=60).stdout
    command = " ".join([jaxlib_version, library.source, *options]).encode()  # jaxlib has headers
    sources = [path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.is_file()]
    digest = hashlib.sha256(b"\0".join([*sources, macros, command])).hexdigest()
    path = cache_folder() / "kernels" / f"{digest[:32]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            source, headers = str(SOURCES / library.source), f"-I{jax.ffi.include_dir()}"
            build = [compiler, *options, headers, source, "-o", str(made)]
            subprocess.run(build, capture_output=True, check=True, timeout=600)
            made.replace(path)
    return path
