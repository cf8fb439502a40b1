"""Decoded images: in memory, or in a file of the cache that is read as training goes."""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedWriter
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxdae.errors import InputError, explained, show

MEMORY = 1 << 29  # bytes of decoded images that are held in memory; more lie in a file


READERS = 8  # threads that read from it: a disk answers many as fast as one


Pixels = UInt8[np.ndarray, "h w c"]


class Stored:
    """Images of one shape in a row in a file, as an array uint8 [n h w c] that reads what is taken.

    Indexing by an array of numbers reads those images; by a slice, it leaves some out.

    Args:
      path: the file.
      begin: where in it the first image begins, in bytes.
      shape: (n, h, w, c).
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, path: Path, begin: int, shape: tuple[int, ...]) -> None:
        self.path, self.begin, self.shape = path, begin, shape

    @property
    def size(self) -> int:
        """Values in all of them."""
        return prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        each = prod(self.shape[1:])
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                raise IndexError(f"step {step} must be 1")
            shape = (max(0, stop - start), *self.shape[1:])
            return Stored(self.path, self.begin + start * each, shape)
        rows = np.arange(len(self))[np.asarray(rows)]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def read(i: int) -> None:
            read_parts(self.path, [(self.begin + int(rows[i]) * each, out[i])])

        list(readers().map(read, range(len(rows))))
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, np.uint8)
        read_parts(self.path, [(self.begin, out)])
        return out.astype(dtype or np.uint8, copy=False)


class StoredPicture(NamedTuple):
    """A picture in such a file: where it begins, and its shape (h, w, c)."""

    path: Path
    begin: int
    shape: tuple[int, ...]

    def patch(self, top: int, left: int, out: Pixels) -> None:
        """Reads a patch at a place into `out`."""
        _, width, channels = self.shape
        first = self.begin + (top * width + left) * channels
        read_parts(self.path, [(first + y * width * channels, row) for y, row in enumerate(out)])


def read_parts(path: Path, parts: Sequence[tuple[int, np.ndarray]]) -> None:
    """Reads parts of a file, each from a byte on, into arrays."""
    with open(path, "rb", buffering=0) as file:
        for begin, out in parts:
            file.seek(begin)
            rest = memoryview(out.reshape(-1))  # type: ignore[arg-type]
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise InputError(f"{show(path)} has become shorter: begin again")
                rest = rest[count:]


@functools.cache
def readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS)


class Pictures(NamedTuple):
    """Decoded image files.

    Fields:
      each: their pixels, or where in the file they are.
      sha256: of all; None if they are in memory and it was not asked for.
    """

    each: Sequence[Any]
    sha256: str | None

    def stacked(self, begin: int, end: int, held: bool) -> Any:
        """Some of them, which must be of one size, as one array; `held` in memory if they fit."""
        first, count = self.each[begin], end - begin
        if not isinstance(first, StoredPicture):
            return np.stack(self.each[begin:end])
        images = Stored(first.path, first.begin, (count, *first.shape))
        return np.asarray(images) if held and images.size <= MEMORY else images


def stored(place: Path) -> Pictures | None:
    """The pictures of a cache file, if there is a whole one."""
    try:
        known = json.loads((place / "shapes.json").read_text())
        shapes = [(int(h), int(w), int(c)) for h, w, c in known["shapes"]]
        ends = np.cumsum([prod(shape) for shape in shapes])
        path = place / "pixels"
        if os.stat(path).st_size != ends[-1]:
            return None
        each = [
            StoredPicture(path, int(end) - prod(shape), shape)
            for end, shape in zip(ends, shapes, strict=True)
        ]
        return Pictures(each, str(known["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def in_threads(read: Callable[[Path], Pixels], paths: Sequence[Path]) -> Iterator[Pixels]:
    """Reads files ahead, in their order; few enough to be held in memory."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Pixels]] = deque()
        try:
            for path in paths:
                ahead.append(pool.submit(read, path))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class Sink:
    """Where decoded pictures go: a list, and from `MEMORY` bytes on a file that is made whole."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.file: BufferedWriter | None = None
        self.held: list[Pixels] = []
        self.shapes: list[tuple[int, ...]] = []
        self.bytes = 0
        self.digest = hashlib.sha256()
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.folder is not None:
            self.folder.cleanup()

    def add(self, pixels: Pixels) -> None:
        pixels = np.ascontiguousarray(pixels)
        self.shapes.append(pixels.shape)
        self.bytes += pixels.size
        if self.file is None and self.bytes <= MEMORY:
            self.held.append(pixels)
            return
        with self._explained():
            if self.file is None:
                self.place.parent.mkdir(parents=True, exist_ok=True)
                self.folder = tempfile.TemporaryDirectory(dir=self.place.parent, prefix=".")
                self.file = open(Path(self.folder.name) / "pixels", "wb")  # noqa: SIM115
                for before in self.held:
                    self._write(before)
                self.held = []
            self._write(pixels)

    def _write(self, pixels: Pixels) -> None:
        assert self.file is not None
        self.file.write(pixels.data)
        self._digest(pixels)

    def _digest(self, pixels: Pixels) -> None:
        self.digest.update(f"{pixels.shape}".encode())
        self.digest.update(pixels.data)

    def _explained(self) -> Any:
        return explained(
            f"{show(self.place)} cannot be written, where {self.bytes >> 20} MiB of images go",
            "make room there, or choose another cache folder (XDG_CACHE_HOME)",
        )

    def close(self, fingerprint: bool) -> Pictures:
        """The pictures, and their SHA-256 if they are in a file or it is asked for."""
        if self.file is None or self.folder is None:
            if not fingerprint:
                return Pictures(self.held, None)
            for pixels in self.held:
                self._digest(pixels)
            return Pictures(self.held, self.digest.hexdigest())
        with self._explained():
            self.file.close()
            folder = Path(self.folder.name)
            known = {"sha256": self.digest.hexdigest(), "shapes": self.shapes}
            (folder / "shapes.json").write_text(json.dumps(known))
            shutil.rmtree(self.place, ignore_errors=True)  # a damaged one
            os.rename(folder, self.place)
            os.mkdir(folder)  # for the clean-up
            whole = stored(self.place)
        assert whole is not None
        return whole
