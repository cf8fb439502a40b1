"""Compares exported networks with what they gave before: no jaxdae, no flax.

    python benchmarks/exported_worker.py FOLDER

Run by `benchmarks.exported`, with the Python of an environment that has jax, flatbuffers,
onnxruntime and numpy. FOLDER holds, of each network, NAME.stablehlo, NAME.onnx and NAME.npz: images
and what the network made of them. On stdout comes one line of JSON: the versions, and of each file
the largest absolute difference at each batch size.
"""

import json
import platform
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
from jax import export

BATCHES = (1, 7, 512)


def reader(path: Path) -> Any:
    """What a file computes, from and to numpy arrays."""
    if path.suffix == ".stablehlo":
        return jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def difference(path: Path, images: np.ndarray, expected: np.ndarray, batch: int) -> float:
    """The largest of all differences, of so many images at a time and the rest at the end."""
    call = reader(path)
    starts = range(0, len(images), batch)
    found = np.concatenate([call(images[i : i + batch]) for i in starts])
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    return float(np.abs(found - expected).max())


def main(folder: Path) -> None:
    for name in ("jaxdae", "flax"):
        assert find_spec(name) is None, f"{name} is in this environment"
    differences = {}
    for examples in sorted(folder.glob("*.npz")):
        arrays = np.load(examples)
        for path in (examples.with_suffix(suffix) for suffix in (".stablehlo", ".onnx")):
            differences[path.name] = {
                batch: difference(path, arrays["images"], arrays["expected"], batch)
                for batch in BATCHES
            }
    versions = {name: version(name) for name in ("jax", "onnxruntime", "numpy")}
    about = {"python": platform.python_version(), **versions}
    print(json.dumps({"about": about, "differences": differences}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
