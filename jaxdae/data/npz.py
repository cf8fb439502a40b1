"""NumPy archives, .npz files, as data sets."""

import os
import zipfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from jaxdae.data.dataset import Dataset, Split
from jaxdae.errors import InputError, explained, show
from jaxdae.image_io.numpy_stacks import DEFLATE_RATIO, MAX_BYTES, read_header

IMAGE_KEYS = (("x_train", "x_test"), ("train", "test"), ("train_images", "test_images"))
LABEL_KEYS = (("y_train", "train_labels"), ("y_test", "test_labels"))


def load_npz(name: str, path: Path) -> Dataset:
    """The data set in a file that `numpy.savez` wrote.

    The file holds one of the pairs in `IMAGE_KEYS`, with labels under one of `LABEL_KEYS`; or
    `images`, with `labels`, whose last seventh becomes the test split, as in MNIST. Labels are
    optional. Images are [n h w] or [n h w c], uint8 in [0, 255] or floating point in [0, 1].

    Raises:
      InputError: the file cannot be read, is too large, or holds other arrays.
    """
    what, again = show(path), "write it again with numpy.savez"
    if not os.path.isfile(path):
        raise InputError(f"{name!r}: {what} is no file: name one that numpy.savez wrote")
    with explained(f"{what} is no readable .npz", again), zipfile.ZipFile(path) as archive:
        keys = {key.removesuffix(".npy") for key in archive.namelist()}

        def split(images: str, labels: Sequence[str]) -> Split:
            label = next((key for key in labels if key in keys), None)
            x = _images(f"{what}: {images!r}", _read_array(archive, path, images))
            if label is None:
                return Split(x)
            return Split(x, _labels(f"{what}: {label!r}", _read_array(archive, path, label)))

        for pair in IMAGE_KEYS:
            if keys >= {*pair}:
                train, test = map(split, pair, LABEL_KEYS)
                return Dataset(name, train, test)
        if "images" not in keys:
            raise InputError(
                f"{what} holds {', '.join(sorted(keys))[:200]!r}, but must hold x_train and "
                f"x_test, or images: {again}"
            )
        whole = split("images", ["labels"])
        Dataset(name, whole, whole)  # checks the labels before they are split
        count = len(whole) - max(1, len(whole) // 7)
        return Dataset(name, whole.take(slice(count)), whole.take(slice(count, None)))


def _read_array(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    """One array of numbers. It is read only if its header agrees with the size of the file."""
    info, what = archive.getinfo(f"{key}.npy"), f"{show(path)}: {key!r}"
    limit = min(MAX_BYTES, DEFLATE_RATIO * min(info.compress_size, path.stat().st_size))
    if info.file_size > limit:
        raise InputError(
            f"{what} promises {info.file_size} bytes, but at most {limit} are possible: shrink it"
        )
    with archive.open(info) as stream:
        _, shape, dtype, _ = read_header(stream)
        if dtype.kind not in "uif":  # objects would be unpickled, which runs code
            raise InputError(
                f"{what} holds {dtype.name[:50]}, but must hold numbers: save it as uint8"
            )
        size = info.file_size - stream.tell()
        if prod(shape) * dtype.itemsize != size:
            raise InputError(
                f"{what} is {dtype} {list(shape)}, but holds {size} bytes: write it again"
            )
    with archive.open(info) as stream:
        return np.ascontiguousarray(np.lib.format.read_array(stream, allow_pickle=False))


def _images(what: str, x: np.ndarray) -> np.ndarray:
    """[n h w] or [n h w c], uint8 or floating point in [0, 1], to uint8 [n h w c]."""
    found = f"{what} is {x.dtype} {list(x.shape)}"
    if x.ndim not in (3, 4) or x.size == 0:
        raise InputError(
            f"{found}, but images must be [n h w] or [n h w c] with no side of 0: reshape it"
        )
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] > 4 < x.shape[3]:
        raise InputError(f"{found}, but channels come last: save numpy.moveaxis(x, 1, 3)")
    if x.dtype.kind == "f":
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):  # True for NaN, too
            rule = "floating point images must be finite and in [0, 1]"
            raise InputError(f"{found} in [{low:g}, {high:g}], but {rule}: rescale, or save uint8")
        x = np.rint(x * 255).astype(np.uint8)
    if x.dtype != np.uint8:
        raise InputError(f"{found}, but images must be uint8 or floating point: x.astype('uint8')")
    return x if x.ndim == 4 else x[..., None]


def _labels(what: str, y: np.ndarray) -> np.ndarray:
    """Integers [n] or [n 1] to int32 [n]."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind == "f" or not np.array_equal(y, y.astype(np.int32)):
        rule = "labels must be [n] integers of 32 bits"
        raise InputError(f"{what} is {y.dtype} {list(y.shape)}, but {rule}: convert or remove them")
    return y.astype(np.int32)
