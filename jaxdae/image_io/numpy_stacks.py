"""Stacks of images in .npy and .npz files, read and written a few images at a time.

    with Stack(Path("noisy.npz")) as stack, Writer(stack, Path("restored.npz")) as writer:
        for array in stack.images:
            for images in stack.read(array):                 # [k h w c], of the array's type
                writer.add(array, restore(images))

Images are [n h w] or [n h w c]: uint8, uint16, or floating point in [0, 1]. In a .npz, all arrays
of three or four axes are images, and everything else is copied unchanged. Only a few images are in
memory at a time, unless an array is in Fortran order. No memory is allocated for a size that a file
only promises. A file that cannot be used raises `InputError`.
"""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxdae.errors import InputError, explained, show
from jaxdae.image_io.limits import SMALL_PIXELS, check_size

MAX_BYTES = 1 << 32  # 4 GiB, of an array that is read whole: more may not fit in memory
CHUNK_BYTES, CHUNK_IMAGES = 1 << 23, 256  # at most this is read at a time
DEFLATE_RATIO = (
    1032  # at most so many bytes from a byte of deflate: https://zlib.net/zlib_tech.html
)
SUFFIXES = (".npy", ".npz")
UINT8, UINT16 = ("u", 1), ("u", 2)  # kind, bytes
Images = Shaped[np.ndarray, "n h w c"]


class Array(NamedTuple):
    """The header of an array in a file.

    Fields:
      key: its member in a .npz, such as x.npy; empty in a .npy.
      shape, dtype: the array's.
      fortran: True for Fortran order, in which the first axis varies fastest.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def size(self) -> str:
        """Its type and shape, for messages."""
        return f"{str(self.dtype)[:50]} {list(self.shape)}"


def read_header(stream: Any, key: str = "") -> Array:
    """Reads the header of a .npy file, up to the array's first byte.

    Raises:
      ValueError, or another exception of NumPy: the header is damaged.
    """
    first = np.lib.format.read_magic(stream) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return Array(key, shape, dtype, fortran)


class Stack:
    """A .npy or .npz file, open for reading. A context manager.

    Args:
      max_pixels: images of at most so many pixels are read, whatever `jaxdae.image_io.limits` says.

    Fields:
      images: its arrays of images, at least one.

    Raises:
      InputError: the file cannot be read, holds no images, or holds images of another type, with
        their channels first, or too large.
    """

    def __init__(self, path: Path, max_pixels: int = SMALL_PIXELS) -> None:
        self.path, self.max_pixels = path, max_pixels
        self.what, self.again = show(path), "write it again with numpy.save or numpy.savez"
        if not path.is_file():
            raise InputError(f"{self.what} is no regular file: remove it")
        self._open = ExitStack()
        self.archive: zipfile.ZipFile | None = None
        try:
            with explained(f"{self.what} is no readable stack", self.again):
                if path.suffix.lower() == ".npz":
                    self.archive = self._open.enter_context(zipfile.ZipFile(path))
                    keys = dict.fromkeys(self.archive.namelist())
                    arrays = [self._header(key) for key in keys if key.endswith(".npy")]
                else:
                    arrays = [self._header("")]
                stacked = [x for x in arrays if len(x.shape) in (3, 4)]
                self.images = [self._checked(array) for array in stacked]
                if not stacked:
                    found = ", ".join(f"{x.key[:50]!r} {x.size}".strip() for x in arrays[:5])
                    raise InputError(
                        f"{self.what} holds no images ({found[:200] or 'nothing'}), but must hold "
                        "[n h w] or [n h w c]: reshape the array"
                    )
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def name(self, array: Array) -> str:
        """The file and the key of an array, for messages."""
        key = array.key.removesuffix(".npy")
        return f"{self.what}: {key!r}" if key else self.what

    def member(self, key: str) -> IO[bytes]:
        """Opens an array, from the first byte of its header."""
        return self.path.open("rb") if self.archive is None else self.archive.open(key)

    def _header(self, key: str) -> Array:
        with self.member(key) as stream:
            array = read_header(stream, key)
            start = stream.tell()
        size = self.path.stat().st_size
        if self.archive is not None:
            info = self.archive.getinfo(key)
            limit = DEFLATE_RATIO * min(info.compress_size, size)
            size = info.file_size
            if size > limit:
                rule = f"{self.name(array)} promises {size} bytes, but at most {limit} are possible"
                raise InputError(f"{rule}: {self.again}")
        if array.dtype.kind in "biufc" and prod(array.shape) * array.dtype.itemsize != size - start:
            rule = f"{self.name(array)} is {array.size}, but holds {size - start} bytes"
            raise InputError(f"{rule}: {self.again}")
        return array

    def _checked(self, array: Array) -> Array:
        found, shape = f"{self.name(array)} is {array.size}", array.shape
        if not (
            array.dtype.kind == "f" or (array.dtype.kind, array.dtype.itemsize) in (UINT8, UINT16)
        ):
            raise InputError(
                f"{found}, but images are uint8, uint16 or floating point: x.astype('uint8')"
            )
        if min(shape) < 1:
            raise InputError(f"{found}, but must hold pixels: add some")
        if len(shape) == 4 and shape[1] in (1, 3) and shape[2] > 4 < shape[3]:
            raise InputError(f"{found}, but channels come last: save numpy.moveaxis(x, 1, 3)")
        # Of a compressed array, one image has its share.
        compressed = None
        if self.archive is not None:
            info = self.archive.getinfo(array.key)
            compressed = min(info.compress_size, self.path.stat().st_size) // shape[0]
        bits = 8 * array.dtype.itemsize * prod(shape[3:])
        name = f"an image of {self.name(array)}"
        check_size(name, shape[2], shape[1], bits, compressed, self.max_pixels)
        if array.fortran and prod(shape) * array.dtype.itemsize > MAX_BYTES:
            raise InputError(
                f"{found} in Fortran order, but only {MAX_BYTES} bytes of that are read: save "
                "numpy.ascontiguousarray(x)"
            )
        return array

    def read(self, array: Array, step: int | None = None) -> Iterator[Images]:
        """Yields the images of an array, [k h w c], k at most `step`.

        Args:
          step: None for `self.step(array)`.

        Raises:
          InputError: they cannot be read, or are floating point and not in [0, 1].
        """
        count, *rest = array.shape
        shape = (*rest, 1) if len(rest) == 2 else tuple(rest)
        image_size = prod(shape) * array.dtype.itemsize
        step = step or self.step(array)
        reading = explained(f"{self.name(array)} cannot be read", self.again)
        with reading, self.member(array.key) as stream:
            read_header(stream)
            if array.fortran:
                whole = np.frombuffer(_read(stream, count * image_size), array.dtype)
                whole = whole.reshape(array.shape, order="F")
            for first in range(0, count, step):
                some = min(step, count - first)
                if array.fortran:
                    images = np.ascontiguousarray(whole[first : first + some])
                else:
                    images = np.frombuffer(_read(stream, some * image_size), array.dtype)
                yield self._in_range(array, images.reshape(some, *shape))
            if stream.read(1):  # reading to the end checks the CRC of a .npz, too
                raise ValueError("bytes follow the array")

    def step(self, array: Array) -> int:
        """The number of images of an array that `read` gives at a time."""
        image_size = prod(array.shape[1:]) * array.dtype.itemsize
        return max(1, min(CHUNK_IMAGES, CHUNK_BYTES // image_size))

    def copy(self, key: str) -> Iterator[bytes]:
        """Yields all bytes of a member of a .npz, piece by piece.

        Raises:
          InputError: they cannot be read.
        """
        reading = explained(f"{self.what}: {key[:50]!r} cannot be read", self.again)
        with reading, self.member(key) as stream:
            while some := stream.read(1 << 20):
                yield some

    def _in_range(self, array: Array, images: Images) -> Images:
        if images.dtype.kind == "f":
            low, high = float(images.min()), float(images.max())
            if not (low >= 0 and high <= 1):  # True for NaN, too
                rule = "floating point images must be finite and in [0, 1]"
                raise InputError(
                    f"{self.name(array)} is {array.size} in [{low:g}, {high:g}], but {rule}: "
                    "rescale, or save uint8"
                )
        return images


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError(f"the file ends {size - len(data)} bytes too early")
    return data


class Writer:
    """Writes a copy of a stack with other images. A context manager.

    When it is left without an error, everything else of a .npz is copied, too.

    Args:
      stack: the stack, open.
      path: the new file, of the same suffix.
    """

    def __init__(self, stack: Stack, path: Path) -> None:
        self.stack = stack
        self._open = ExitStack()
        self._array: Array | None = None
        self._file: Any = self._open.enter_context(path.open("wb"))
        self._archive: zipfile.ZipFile | None = None
        self._member: Any = self._file
        if stack.archive is not None:
            self._archive = self._open.enter_context(zipfile.ZipFile(self._file, "w"))

    def add(self, array: Array, images: Images) -> None:
        """Appends images to an array. Arrays are written one after the other.

        Args:
          array: of `stack.images`; it decides the type, and with `images` the shape.
          images: [k h w c].
        """
        if array is not self._array:
            self._begin(array, images.shape[3])
        self._member.write(np.ascontiguousarray(images, array.dtype).data)

    def _begin(self, array: Array, channels: int) -> None:
        self._array = array
        self._end()
        if self._archive is not None:
            self._member = self._archive.open(self._info(array.key), "w", force_zip64=True)
        without_channels = len(array.shape) == 3 and channels == 1
        header = {
            "descr": np.lib.format.dtype_to_descr(array.dtype),
            "fortran_order": False,
            "shape": array.shape[:3] if without_channels else (*array.shape[:3], channels),
        }
        np.lib.format.write_array_header_1_0(self._member, header)

    def _info(self, key: str) -> zipfile.ZipInfo:
        """The name, date, compression and attributes of a member of the stack."""
        assert self.stack.archive is not None
        old = self.stack.archive.getinfo(key)
        info = zipfile.ZipInfo(old.filename, old.date_time)
        info.compress_type, info.external_attr = old.compress_type, old.external_attr
        return info

    def _end(self) -> None:
        if self._member is not self._file:
            self._member.close()
            self._member = self._file

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._open:
            self._end()
            stack, archive = self.stack, self._archive
            if kind is None and archive is not None and stack.archive is not None:
                restored = {array.key for array in stack.images}
                for key in dict.fromkeys(stack.archive.namelist()):
                    if key not in restored:
                        with archive.open(self._info(key), "w", force_zip64=True) as member:
                            for some in stack.copy(key):
                                member.write(some)
