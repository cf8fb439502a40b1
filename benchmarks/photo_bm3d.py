"""BM3D in its own process; what it has restored is kept as PNG files of 8 bits."""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.peers import Worker
from benchmarks.photo_protocol import Bytes, Case, read, to_bytes
from jaxdae.files import replacing
from jaxdae.image_io.pillow import read_uint8


class Bm3d:
    """BM3D in an environment that has it.

    Args:
      python: of the environment.
      cache: folder that gets a folder for each version, with one for each case.
      threads: 0 for all cores; only with 1 does an image have the same bits each time.

    Fields:
      about: the versions.
      folder: of this version, in `cache`.
      worker: the process, to be closed.
    """

    def __init__(self, python: str, cache: Path, threads: int) -> None:
        self.worker = Worker(f"bm3d:{threads}", python, "float32", {}, "bm3d_worker.py")
        versions = self.worker.ask({"task": "about"})
        self.about = {name: versions[name] for name in ("bm3d", "bm4d")}
        self.folder = cache / f"bm3d-{versions['bm3d']}"

    def restore(self, root: Path, case: Case, name: str) -> None:
        """Restores an image and keeps the result, if it is not there.

        Raises:
          RuntimeError: the process has stopped.
        """
        from PIL import Image

        path = _path(self.folder, case, name)
        if path.exists():
            return
        with tempfile.TemporaryDirectory() as folder:
            noisy, result = Path(folder, "noisy.npy"), Path(folder, "restored.npy")
            np.save(noisy, read(root, case, name).noisy)
            words = {"task": "restore", "noisy": str(noisy), "restored": str(result)}
            level = {} if case.sigma is None else {"sigma": case.sigma / 255}
            self.worker.ask({**words, **level})
            pixels = to_bytes(np.load(result))
        with replacing(path) as temporary:
            Image.fromarray(pixels.squeeze()).save(temporary)


def kept(folder: Path, case: Case, name: str) -> Bytes | None:
    """A restored image, from the folder of a version; None if there is none."""
    path = _path(folder, case, name)
    return read_uint8(path) if path.exists() else None


def _path(folder: Path, case: Case, name: str) -> Path:
    return folder / case.key / f"{name}.png"
