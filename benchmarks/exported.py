"""Exported networks in an environment without jaxdae: do they still give what they gave?

    python -m benchmarks.exported --envs .peers
    python -m benchmarks.exported --python OTHER/bin/python     # an environment that is there

The pretrained blind and unet, and every architecture with random parameters, are exported to
StableHLO and ONNX here, and applied to 1,000 noisy test images of MNIST. In .peers/exported, which
is made from benchmarks/requirements/exported.txt where it is missing, a process that has jax,
onnxruntime and numpy only reads the files, applies them to the same images in batches of 1, 7 and
512, and compares. The table gives the largest absolute difference of any pixel.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.exported_worker import BATCHES
from benchmarks.peers import ROOT, environment
from benchmarks.timing import markdown, not_a_file
from experiments.export import ALLOWED, example
from experiments.runs.models import Loaded, load_model
from jaxdae import pretrained
from jaxdae.export import to_onnx, to_stablehlo
from jaxdae.files import write_whole
from jaxdae.model import Denoiser, build

TRAINED = ("digits-blind", "digits-unet")
RANDOM: dict[str, dict[str, Any]] = {
    "strided": {},
    "maxpool": {},
    "maxpool-transposed": {"features": (32, 32), "upsampling": "transposed"},
    "dense": {},
    "unet-random": {},
}


def networks() -> Iterator[tuple[str, Loaded]]:
    """Everything that is exported, by name."""
    for name in TRAINED:
        yield name, load_model(name)
    for name, fields in RANDOM.items():
        model = build(name.partition("-")[0], **fields)
        params = random_params(model)
        yield name, Loaded(model, params, pretrained.describe(name, model, params, {}))


def random_params(model: Denoiser, seed: int = 0) -> Any:
    """Parameters that keep what goes through the network at its size; biases, too."""
    draw = np.random.default_rng(seed).standard_normal

    def array(leaf: Any) -> np.ndarray:
        inputs = np.prod(leaf.shape[:-1], dtype=np.float32) if leaf.ndim > 1 else np.float32(100)
        return draw(leaf.shape, np.float32) * np.sqrt(2 / inputs)

    images = np.zeros((1, *model.example.shape[1:]), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return jax.tree.map(array, shapes)


def write(folder: Path, name: str, loaded: Loaded) -> None:
    """A network's files, and what it makes of the test images."""
    images, expected = example(loaded, "whole")
    np.savez(folder / f"{name}.npz", images=images, expected=expected)
    (folder / f"{name}.stablehlo").write_bytes(to_stablehlo(loaded.model, loaded.params))
    (folder / f"{name}.onnx").write_bytes(to_onnx(loaded.model, loaded.params, loaded.card))


def compare(python: str, folder: Path) -> dict[str, Any]:
    """What the worker says of the files in a folder, run by this Python.

    Raises:
      RuntimeError: it stopped.
    """
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    worker = ROOT / "benchmarks/exported_worker.py"
    try:
        done = subprocess.run(
            [python, "-I", str(worker), str(folder)],
            env={**outside, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise RuntimeError(f"{error}: give the Python of an environment") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"{python} stopped, and said: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 all the same, 1 something differs or stopped, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.exported", description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add("--envs", type=Path, default=Path(".peers"), help="folder of the environment")
    add("--python", metavar="PYTHON", help="of an environment that is there, instead")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    flags = parser.parse_args(argv)
    if wrong := not_a_file("--json", flags.json):
        print(wrong, file=sys.stderr)
        return 2
    jax.config.update("jax_platforms", "cpu")
    try:
        python = flags.python or environment(flags.envs, "exported")
        with tempfile.TemporaryDirectory() as folder:
            for name, loaded in networks():
                write(Path(folder), name, loaded)
            result = compare(python, Path(folder))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    if flags.json:
        write_whole(flags.json, json.dumps(result, indent=1) + "\n")
    print(f"read by {', '.join(f'{name} {number}' for name, number in result['about'].items())}")
    rows = [
        [name, *(f"{value:.1e}" for value in found.values())]
        for name, found in result["differences"].items()
    ]
    print(markdown(["file", *(f"batch {batch}" for batch in BATCHES)], rows))
    worst = max(value for found in result["differences"].values() for value in found.values())
    print(f"largest of all: {worst:.1e}; allowed: {ALLOWED:.0e}")
    return 0 if worst <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
