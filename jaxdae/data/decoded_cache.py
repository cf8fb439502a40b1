"""Decoded images: in memory, or in a file of the cache from which training reads what it needs.

A cache entry is a folder with two files: `pixels`, the images one after the other as bytes, and
`shapes.json`, their shapes and the SHA-256 of all of them.
"""

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

MEMORY = 1 << 29  # more bytes of decoded images than this are kept in a file
AHEAD = 1 << 28  # bytes of decoded images that wait for their turn, beside one larger image
LARGE_FILE = 1 << 16  # bytes; smaller files are not worth asking for their size
READERS = 8  # threads that read the file: a disk serves several reads at once

Pixels = UInt8[np.ndarray, "h w c"]


class StoredImages:
    """Images of one shape that lie one after the other in a file, used as an array uint8 [n h w c].

    Indexing with an array of indices reads those images. A slice gives `StoredImages`, unread.

    Args:
      path: the file.
      offset: of the first image, in bytes.
      shape: (n, h, w, c).
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]) -> None:
        self.path, self.offset, self.shape = path, offset, shape

    @property
    def size(self) -> int:
        """The number of values: n * h * w * c."""
        return prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        image_size = prod(self.shape[1:])
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                raise IndexError(f"step {step} must be 1")
            shape = (max(0, stop - start), *self.shape[1:])
            return StoredImages(self.path, self.offset + start * image_size, shape)
        rows = np.arange(len(self))[np.asarray(rows)]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def read(i: int) -> None:
            read_into(self.path, [(self.offset + int(rows[i]) * image_size, out[i])])

        list(readers().map(read, range(len(rows))))
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, np.uint8)
        read_into(self.path, [(self.offset, out)])
        return out.astype(dtype or np.uint8, copy=False)


class StoredImage(NamedTuple):
    """One image in such a file.

    Fields:
      path: the file.
      offset: of the image, in bytes.
      shape: (h, w, c).
    """

    path: Path
    offset: int
    shape: tuple[int, ...]

    def read_patch(self, top: int, left: int, out: Pixels) -> None:
        """Reads the patch whose upper left pixel is (top, left) into `out`."""
        _, width, channels = self.shape
        first = self.offset + (top * width + left) * channels
        read_into(self.path, [(first + y * width * channels, row) for y, row in enumerate(out)])


def read_into(path: Path, parts: Sequence[tuple[int, np.ndarray]]) -> None:
    """Reads parts of a file.

    Args:
      parts: pairs of an offset in bytes and the array to fill from there.

    Raises:
      InputError: the file ends too early.
    """
    with open(path, "rb", buffering=0) as file:
        for offset, out in parts:
            file.seek(offset)
            rest = memoryview(out.reshape(-1))  # type: ignore[arg-type]
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise InputError(f"{show(path)} ends too early: delete it and start again")
                rest = rest[count:]


@functools.cache
def readers() -> ThreadPoolExecutor:
    """The threads that read cache files."""
    return ThreadPoolExecutor(READERS)


class DecodedImages(NamedTuple):
    """The decoded images of a data set.

    Fields:
      images: arrays, or `StoredImage`s if they are in a file.
      sha256: of all images; None if they are in memory and no fingerprint was asked for.
    """

    images: Sequence[Any]
    sha256: str | None

    def stack(self, begin: int, end: int, in_memory: bool) -> Any:
        """Images `begin` to `end`, all of one shape, as uint8 [n h w c].

        Args:
          in_memory: read stored images into memory if they take at most `MEMORY` bytes.
        """
        first, count = self.images[begin], end - begin
        if not isinstance(first, StoredImage):
            return np.stack(self.images[begin:end])
        stored = StoredImages(first.path, first.offset, (count, *first.shape))
        return np.asarray(stored) if in_memory and stored.size <= MEMORY else stored


def read_cache(folder: Path) -> DecodedImages | None:
    """The images of a cache entry; None if it is missing or damaged."""
    try:
        known = json.loads((folder / "shapes.json").read_text())
        shapes = [(int(h), int(w), int(c)) for h, w, c in known["shapes"]]
        ends = np.cumsum([prod(shape) for shape in shapes])
        path = folder / "pixels"
        if os.stat(path).st_size != ends[-1]:
            return None
        images = [
            StoredImage(path, int(end) - prod(shape), shape)
            for end, shape in zip(ends, shapes, strict=True)
        ]
        return DecodedImages(images, str(known["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def decode_ahead(
    decode: Callable[[Path], Pixels],
    paths: Sequence[Path],
    size: Callable[[Path], int] = lambda path: 0,
) -> Iterator[Pixels]:
    """Decodes files in several threads, and yields their pixels in order.

    At most four files a thread are decoded in advance, and few large ones, so that memory stays
    small.

    Args:
      size: the bytes that a file has decoded; it is asked for files of at least `LARGE_FILE` bytes.
    """
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[Future[Pixels], int]] = deque()
        try:
            for path in paths:
                large = os.path.isfile(path) and os.path.getsize(path) >= LARGE_FILE
                count = size(path) if large else 0
                while ahead and sum(count for _, count in ahead) + count > AHEAD:
                    yield ahead.popleft()[0].result()
                ahead.append((pool.submit(decode, path), count))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft()[0].result()
            while ahead:
                yield ahead.popleft()[0].result()
        finally:
            for future, _ in ahead:
                future.cancel()


class ImageCollector:
    """Collects decoded images: in a list, and in a cache entry once they exceed `MEMORY` bytes.

    A context manager. The entry appears whole, when `finish` is called, or not at all.

    Args:
      folder: the cache entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BufferedWriter | None = None
        self._in_memory: list[Pixels] = []
        self._shapes: list[tuple[int, ...]] = []
        self._bytes = 0
        self._sha256 = hashlib.sha256()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "ImageCollector":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def add(self, pixels: Pixels) -> None:
        """Appends an image.

        Raises:
          InputError: the cache cannot be written.
        """
        pixels = np.ascontiguousarray(pixels)
        self._shapes.append(pixels.shape)
        self._bytes += pixels.size
        if self._file is None and self._bytes <= MEMORY:
            self._in_memory.append(pixels)
            return
        with self._explained():
            if self._file is None:
                parent = self.folder.parent
                parent.mkdir(parents=True, exist_ok=True)
                self._temporary = tempfile.TemporaryDirectory(dir=parent, prefix=".")
                self._file = open(Path(self._temporary.name) / "pixels", "wb")  # noqa: SIM115
                for before in self._in_memory:
                    self._write(before)
                self._in_memory = []
            self._write(pixels)

    def _write(self, pixels: Pixels) -> None:
        assert self._file is not None
        self._file.write(pixels.data)
        self._hash(pixels)

    def _hash(self, pixels: Pixels) -> None:
        self._sha256.update(f"{pixels.shape}".encode())
        self._sha256.update(pixels.data)

    def _explained(self) -> Any:
        return explained(
            f"{show(self.folder)} cannot be written ({self._bytes >> 20} MiB of images)",
            "free disk space, or choose another cache folder (XDG_CACHE_HOME)",
        )

    def finish(self, fingerprint: bool) -> DecodedImages:
        """Returns the images.

        Args:
          fingerprint: compute the SHA-256 of images in memory, too. Stored images always have one.

        Raises:
          InputError: the cache cannot be written.
        """
        if self._file is None or self._temporary is None:
            if not fingerprint:
                return DecodedImages(self._in_memory, None)
            for pixels in self._in_memory:
                self._hash(pixels)
            return DecodedImages(self._in_memory, self._sha256.hexdigest())
        with self._explained():
            self._file.close()
            temporary = Path(self._temporary.name)
            known = {"sha256": self._sha256.hexdigest(), "shapes": self._shapes}
            (temporary / "shapes.json").write_text(json.dumps(known))
            shutil.rmtree(self.folder, ignore_errors=True)  # a damaged entry
            os.rename(temporary, self.folder)
            os.mkdir(temporary)  # TemporaryDirectory removes it
            whole = read_cache(self.folder)
        assert whole is not None
        return whole
