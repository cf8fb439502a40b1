"""Seconds and memory for a megapixel: jaxdae's network, in other frameworks too, DnCNN and BM3D."""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers import KEPT, Worker, environment
from benchmarks.timing import markdown, spread

OURS = "jaxdae"
SCRIPT = "photo_worker.py"
ALLOWED = {"float32": 1e-4, "bfloat16": 0.05}  # difference from jaxdae in float32, at most


class Peer(NamedTuple):
    """What is timed.

    Fields:
      name: of the framework and its setting, as `benchmarks.photo_worker` takes it.
      environment: that it runs in; None for this one.
      dtype: to compute in.
      same: True if it is the same network with the same parameters, whose results must agree.
    """

    name: str
    environment: str | None
    dtype: str = "float32"
    same: bool = True


PEERS = {
    OURS: Peer("jaxdae", None),
    "jaxdae, bfloat16": Peer("jaxdae", None, "bfloat16"),
    "PyTorch": Peer("torch:eager", "torch"),
    "PyTorch, bfloat16": Peer("torch:eager", "torch", "bfloat16"),
    "torch.compile": Peer("torch:compile", "torch"),
    "torch.compile, bfloat16": Peer("torch:compile", "torch", "bfloat16"),
    "onnxruntime": Peer("onnxruntime", "exported"),
    "DnCNN, PyTorch": Peer("dncnn-torch:eager", "torch", same=False),
    "DnCNN, Flax": Peer("dncnn-flax", None, same=False),
    "DnCNN, jaxdae's layers": Peer("dncnn-jaxdae", None, same=False),
    "BM3D": Peer("bm3d:0", "bm3d", same=False),
}


def write_network(folder: Path, model: Any, params: Any, card: Mapping[str, Any]) -> None:
    """Writes a network as `benchmarks.photo_worker` reads it.

    Raises:
      InputError: onnx is not installed.
    """
    from jaxdae import pretrained
    from jaxdae.export import to_onnx

    known = ("channels", "features", "blocks", "level_features")
    fields = {name: getattr(model, name) for name in known}
    np.savez(folder / "network.npz", **pretrained.flat(params))
    (folder / "network.json").write_text(json.dumps(fields))
    (folder / "network.onnx").write_bytes(to_onnx(model, params, card))


def start(name: str, python: str, folder: Path, variables: Mapping[str, str]) -> Worker:
    """A peer's process, which has read the network."""
    peer = PEERS[name]
    worker = Worker(peer.name, python, peer.dtype, dict(variables), SCRIPT)
    worker.ask({"task": "load", "folder": str(folder)})
    return worker


def check(workers: Mapping[str, Worker], folder: Path, channels: int) -> dict[str, float]:
    """The largest difference of each peer with the same network from jaxdae, relative to the image.

    Raises:
      RuntimeError: one differs by more than `ALLOWED`.
    """
    noisy = np.random.default_rng(0).random((40, 52, channels), np.float32)
    np.save(folder / "noisy.npy", noisy)
    found = {name: 0.0 for name in workers if PEERS[name].same and name != OURS}
    for level in ({}, {"sigma": 0.1}):  # estimated, and told
        words = {"task": "run", "noisy": str(folder / "noisy.npy"), **level}
        ours = restored(workers[OURS], words, folder)
        scale = max(1.0, float(np.abs(ours).max()))
        for name, worst in found.items():
            difference = float(np.abs(restored(workers[name], words, folder) - ours).max()) / scale
            if not difference <= ALLOWED[PEERS[name].dtype]:
                raise RuntimeError(f"{name} gives another image than jaxdae: {difference:.1e}")
            found[name] = max(worst, difference)
    return found


def restored(worker: Worker, words: Mapping[str, Any], folder: Path) -> np.ndarray:
    """What a peer makes of an image."""
    result = folder / "restored.npy"
    worker.ask({**words, "restored": str(result)})
    return np.load(result)


def measure(
    folder: Path,
    envs: Path,
    channels: int,
    names: Sequence[str],
    side: int,
    memory_sides: tuple[int, int],
    repeats: int,
) -> dict[str, Any]:
    """Times all peers in turn, then takes the memory of each, in fresh processes.

    Args:
      folder: of the network, from `write_network`.
      envs: folder of the environments.
      channels: of the images.
      names: of the peers, with `OURS`.
      side: of the images to time, in pixels.
      memory_sides: of two images whose peaks of memory are compared.
      repeats: turns.

    Returns:
      "seconds" for an image in each turn and "memory", MB by side, of each peer; "differences" from
      jaxdae; "about", the versions; and what the arguments were.

    Raises:
      RuntimeError: a process has stopped, or gives another image.
    """
    pythons = {name: environment(envs, PEERS[name].environment) for name in names}
    workers: dict[str, Worker] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    try:
        for name in names:
            workers[name] = start(name, pythons[name], folder, KEPT)
        about = {name: worker.ask({"task": "about"}) for name, worker in workers.items()}
        differences = check(workers, folder, channels)
        for turn in range(repeats + 1):  # the first one compiles, and does not count
            for name, worker in workers.items():
                found = worker.ask({"task": "time", "side": side})["seconds"]
                if turn:
                    seconds[name].append(found)
    finally:
        for worker in workers.values():
            worker.close()
    memory = {
        name: {side: peak(name, pythons[name], folder, side) for side in memory_sides}
        for name in names
    }
    shape = {"side": side, "channels": channels, "memory_sides": memory_sides}
    figures = {"seconds": seconds, "memory": memory, "differences": differences, "about": about}
    return {**shape, **figures}


def peak(name: str, python: str, folder: Path, side: int) -> float:
    """The largest memory, in MB, of a process that denoises one image."""
    worker = start(name, python, folder, {})
    try:
        worker.ask({"task": "once", "side": side})
        return worker.ask({"task": "peak"})["megabytes"]
    finally:
        worker.close()


def table(report: Mapping[str, Any]) -> str:
    """Seconds and MB a megapixel of each peer, and how many times as much as jaxdae takes."""
    pixels = report["side"] ** 2 / 1e6
    small, large = report["memory_sides"]
    ours = report["seconds"][OURS]
    lines = []
    for name, seconds in report["seconds"].items():
        each = [second / pixels for second in seconds]
        digits = 2 if statistics.median(each) < 10 else 1
        ratio = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
        peaks = {int(side): megabytes for side, megabytes in report["memory"][name].items()}
        growth = (peaks[large] - peaks[small]) / ((large**2 - small**2) / 1e6)
        cells = [name, spread(each, digits), f"{ratio:.2f}×", f"{growth:,.0f}"]
        lines.append([*cells, f"{peaks[large]:,.0f}"])
    columns = ["method", "s a megapixel", "beside jaxdae", "MB a megapixel"]
    return markdown([*columns, f"largest memory at {large}×{large}, MB"], lines)


def run(model: Any, params: Any, card: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """`measure` for a network, which is written to a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_network(Path(folder), model, params, card)
        return measure(Path(folder), channels=model.channels, **options)
