"""Every source of images behind one call, as two arrays of bytes.

    dataset = load("mnist")
    dataset.train.images        # uint8 [60000 28 28 1]
    dataset.test.labels         # int32 [10000], or None where a source has no labels

| name         | source                                                                        |
| ------------ | ----------------------------------------------------------------------------- |
| `mnist`      | the copy inside this package: no network, nothing to prepare                  |
| `idx:DIR`    | four files in MNIST's own format, plain or gzipped; the labels are optional   |
| `npz:FILE`   | NumPy arrays: `x_train` and `x_test` (as Keras's `mnist.npz`), or `images`    |
| `folder:DIR` | image files, in `train/` and `test/` or split here; sub-folders are classes   |
| `pairs:A,B`  | two such folders with files of the same names: noisy images, and clean ones   |
| `tfds:NAME`  | any TensorFlow Datasets data set of images of one size: `tfds:cifar10`        |

All images of a data set have one shape; of image files of any sizes, `crop` makes patches. An array
that is read whole into memory may not exceed `MAX_BYTES`, and no file is believed about its size
before its bytes are there; image files that would take more than half a gigabyte, decoded, lie in
a file in the cache, which is read as training goes. Whatever is wrong with a source is an
`InputError`.
"""

import difflib
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxdae.errors import InputError, explained, show
from jaxdae.stacks import DEFLATE_RATIO, MAX_BYTES, read_header

MNIST = Path(__file__).parent / "datasets" / "mnist"
MNIST_SHA256 = {  # of the unpacked files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
IDX_MAGIC = {"images": 0x0803, "labels": 0x0801}  # unsigned bytes (08) in three dimensions, or one
NPZ_IMAGES = (("x_train", "x_test"), ("train", "test"), ("train_images", "test_images"))
NPZ_LABELS = (("y_train", "train_labels"), ("y_test", "test_labels"))
FORMS = "mnist, idx:DIR, npz:FILE, folder:DIR, pairs:NOISY_DIR,CLEAN_DIR or tfds:NAME"


@dataclass(frozen=True, eq=False)
class Split:
    """Images, channels last and in [0, 255], with their labels if there are any.

    Training images may be other than an array: `jaxdae.datasets.folders.Crops`.
    """

    images: Any
    labels: Int32[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split whose images have one shape.

    Fields:
      name: where it comes from.
      train, test: the splits.
      noisy_channels: of pairs, the last so many of the images' channels are the noisy image.
      sha256: what tells it from others, if that is known without reading it.

    Raises `InputError` if a split is empty, if the splits' image shapes differ, if images are not
    uint8 [n h w c], or if a label is missing.
    """

    name: str
    train: Split
    test: Split
    noisy_channels: int = 0
    sha256: str | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the clean images."""
        _, h, w, c = self.train.images.shape
        return h, w, c - self.noisy_channels

    def __post_init__(self) -> None:
        for part, x, y in (
            ("training", self.train.images, self.train.labels),
            ("test", self.test.images, self.test.labels),
        ):
            what = f"{self.name!r}: {part} images are {x.dtype} {list(x.shape)}"
            if x.ndim != 4 or x.dtype != np.uint8 or x.size == 0:
                raise InputError(
                    f"{what}, but must be uint8 [n h w c], none 0: convert or add some"
                )
            if y is not None and y.shape != x.shape[:1]:
                raise InputError(f"{what}, but labels {list(y.shape)}: give one for each, or none")
            if x.shape[1:] != self.train.images.shape[1:]:
                was = list(self.train.images.shape[1:])
                raise InputError(f"{what}, but training images {was}: resize one of them")


def load(name: str, *, crop: int | None = None, cache_dir: Path | None = None) -> Dataset:
    """The data set called `name`: one of the forms in this module's table.

    The order of the images is the source's, and the same everywhere.

    Args:
      crop: of `folder:` and `pairs:`, make patches of so many pixels' sides of images of any size.
      cache_dir: where decoded images are kept, of `tfds:` and of large folders: by default
        `$XDG_CACHE_HOME/jaxdae`, or `~/.cache/jaxdae`.

    Raises `InputError`, in one line, for whatever keeps the data from being loaded.
    """
    kind, colon, place = name.partition(":")
    if crop is not None and kind not in ("folder", "pairs"):
        raise InputError(
            f"--crop {crop} makes patches of image files, and {name!r} has none: leave it out, or "
            "give folder:DIR"
        )
    if name == "mnist":
        return _load_mnist()
    if kind == "pairs" and place.strip():
        from jaxdae.datasets.folders import load_pairs

        return load_pairs(name, place, crop, cache_dir)
    readers: dict[str, Callable[[str, Path], Dataset]] = {
        "idx": _load_idx,
        "npz": _load_npz,
        "folder": partial(_load_folder, crop=crop, cache_dir=cache_dir),
        "tfds": partial(_load_tfds, cache_dir=cache_dir),
    }
    if kind in readers and place.strip():
        return readers[kind](name, Path(os.path.expanduser(place)))
    if os.path.isdir(name):
        meant = f"folder:{name}"
    elif os.path.isfile(name) and name.endswith(".npz"):
        meant = f"npz:{name}"
    else:
        kinds = (*readers, "pairs")
        known = {kind + ":": f"{kind}:{place.strip() or '...'}" for kind in kinds} | {
            "mnist": "mnist"
        }
        known |= {name: f"tfds:{name}" for name in ("fashion_mnist", "cifar10", "cifar100")}
        close = difflib.get_close_matches((kind + colon).lower(), known, n=1)
        meant = known[close[0]] if close else ""
    hint = f" (did you mean {meant!r}?)" if meant else ""
    raise InputError(f"{name!r} is no data set; give {FORMS}{hint}")


def _take(split: Split, rows: slice | np.ndarray) -> Split:
    return Split(split.images[rows], None if split.labels is None else split.labels[rows])


# IDX: http://yann.lecun.com/exdb/mnist. A big-endian magic number, the sizes, then the bytes.


def _load_mnist() -> Dataset:
    try:
        return _load_idx("mnist", MNIST, MNIST_SHA256)
    except InputError as error:
        raise InputError(f"the package's own copy is damaged, reinstall jaxdae: {error}") from None


def _load_idx(name: str, folder: Path, sha256: Mapping[str, str] | None = None) -> Dataset:
    """MNIST's four file names, each plain (which goes first) or with .gz; labels may be absent."""
    if not os.path.isdir(folder):
        raise InputError(f"{name!r}: {show(folder)} is no folder: name the one of the IDX files")

    def read(stem: str) -> np.ndarray | None:
        for path in (folder / stem, folder / f"{stem}.gz"):
            if os.path.lexists(path):
                return _read_idx(path, sha256[stem] if sha256 else None)
        if "labels" in stem and not sha256:
            return None
        raise InputError(f"{name!r}: {show(folder)} holds no {stem} or {stem}.gz: add one")

    def split(part: str) -> Split:
        images, labels = read(f"{part}-images-idx3-ubyte"), read(f"{part}-labels-idx1-ubyte")
        assert images is not None
        return Split(images[..., None], None if labels is None else labels.astype(np.int32))

    return Dataset(name, split("train"), split("t10k"))


def _read_idx(path: Path, sha256: str | None = None) -> np.ndarray:
    """One IDX file, plain or gzipped: images uint8 [n h w], or labels uint8 [n], by its name."""
    kind, rank = ("images", 3) if "images" in path.name else ("labels", 1)
    what, again = show(path), "fetch the file again"
    if not os.path.isfile(path):
        raise InputError(f"{what} is no regular file: put the IDX file itself there")
    with explained(f"{what} cannot be read", again), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        content, start = raw.read() if packed else b"", 4 + 4 * rank
        header = _inflated(content, start) if packed else raw.read(start)
        magic = int.from_bytes(header[:4], "big")
        if len(header) >= 4 and magic != IDX_MAGIC[kind]:
            other = "".join(f" ({k})" for k, m in IDX_MAGIC.items() if m == magic)
            right = f"{kind} in IDX form with {IDX_MAGIC[kind]}"
            raise InputError(f"{what} begins with {magic}{other}, but {right}: swap the file")
        if len(header) < start:
            raise InputError(f"{what} ends inside its IDX header: {again}")
        shape = struct.unpack(f">{rank}I", header[4:])
        promised, size = prod(shape), path.stat().st_size
        promise = f"{what} promises {promised} bytes ({'x'.join(map(str, shape))})"
        limit = min(MAX_BYTES, size * (DEFLATE_RATIO if packed else 1))
        if promised > limit:
            raise InputError(f"{promise}, but its {size} can hold {limit} at the most: {again}")
        most = promised + 1  # one byte past the promise
        body = _inflated(content, start + most) if packed else bytearray(raw.read(most))
        if packed:
            del body[:start]
    if len(body) != promised:
        found = "more" if len(body) > promised else f"only {len(body)}"
        raise InputError(f"{promise} but holds {found}: {again}")
    if sha256:
        (digest := hashlib.sha256(header)).update(body)
        if digest.hexdigest() != sha256:
            raise InputError(f"{what} has the SHA-256 {digest.hexdigest()}, not {sha256}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _inflated(content: bytes, most: int) -> bytearray:
    """The first `most` bytes of what was gzipped, or all of it, in one part or several.

    In a call of zlib's for each part, during which other threads run: `gzip` makes thousands.

    Raises:
      EOFError, zlib.error: it is damaged, as far as it was read.
    """
    made = bytearray()
    while content and len(made) < most:
        part = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # with the header and the sum
        made += part.decompress(content, most - len(made))
        if not part.eof and len(made) < most:
            raise EOFError("the file ends inside what was compressed")
        content = part.unused_data.lstrip(b"\0")
    return made


# NPZ


def _load_npz(name: str, path: Path) -> Dataset:
    """`x_train` and `x_test`, `train` and `test`, or `train_images` and `test_images`, with labels
    in `y_train` and `y_test` or `train_labels` and `test_labels`; or `images` (and `labels`), whose
    last seventh, as in MNIST, is the test split.

    Images are [n h w] or [n h w c], uint8 in [0, 255] or floating point in [0, 1].
    """
    what, again = show(path), "write it again with numpy.savez"
    if not os.path.isfile(path):
        raise InputError(f"{name!r}: {what} is no file: name one that numpy.savez wrote")
    with explained(f"{what} is no readable .npz", again), zipfile.ZipFile(path) as archive:
        keys = {key.removesuffix(".npy") for key in archive.namelist()}

        def split(images: str, labels: Sequence[str]) -> Split:
            label = next((key for key in labels if key in keys), None)
            x = _npz_images(f"{what}: {images!r}", _npz_array(archive, path, images))
            if label is None:
                return Split(x)
            return Split(x, _npz_labels(f"{what}: {label!r}", _npz_array(archive, path, label)))

        for pair in NPZ_IMAGES:
            if keys >= {*pair}:
                train, test = map(split, pair, NPZ_LABELS)
                return Dataset(name, train, test)
        if "images" not in keys:
            raise InputError(
                f"{what} holds {', '.join(sorted(keys))[:200]!r}, but must hold x_train and "
                f"x_test, or images: {again}"
            )
        whole = split("images", ["labels"])
        Dataset(name, whole, whole)  # checks the labels before they are cut
        cut = len(whole) - max(1, len(whole) // 7)
        return Dataset(name, _take(whole, slice(cut)), _take(whole, slice(cut, None)))


def _npz_array(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    """One array of numbers, read only once its header agrees with the sizes of the file."""
    info, what = archive.getinfo(f"{key}.npy"), f"{show(path)}: {key!r}"
    limit = min(MAX_BYTES, DEFLATE_RATIO * min(info.compress_size, path.stat().st_size))
    if info.file_size > limit:
        raise InputError(f"{what} promises {info.file_size} bytes, but may hold {limit}: shrink it")
    with archive.open(info) as stream:
        _, shape, dtype, _ = read_header(stream)
        if dtype.kind not in "uif":  # objects would be unpickled, which runs code
            raise InputError(
                f"{what} holds {dtype.name[:50]}, but must hold numbers: save it as uint8"
            )
        held = info.file_size - stream.tell()
        if prod(shape) * dtype.itemsize != held:
            raise InputError(
                f"{what} is {dtype} {list(shape)}, but holds {held} bytes: write it again"
            )
    with archive.open(info) as stream:
        return np.ascontiguousarray(np.lib.format.read_array(stream, allow_pickle=False))


def _npz_images(what: str, x: np.ndarray) -> np.ndarray:
    """[n h w] or [n h w c], uint8 or floating point in [0, 1], to uint8 [n h w c]."""
    found = f"{what} is {x.dtype} {list(x.shape)}"
    if x.ndim not in (3, 4) or x.size == 0:
        raise InputError(f"{found}, but images must be [n h w] or [n h w c], none 0: reshape it")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] > 4 < x.shape[3]:
        raise InputError(f"{found}, but channels come last: save numpy.moveaxis(x, 1, 3)")
    if x.dtype.kind == "f":
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):  # nan is not in range either
            rule = "floating point images must be finite and in [0, 1]"
            raise InputError(f"{found} in [{low:g}, {high:g}], but {rule}: rescale, or save uint8")
        x = np.rint(x * 255).astype(np.uint8)
    if x.dtype != np.uint8:
        raise InputError(f"{found}, but images must be uint8 or floating point: x.astype('uint8')")
    return x if x.ndim == 4 else x[..., None]


def _npz_labels(what: str, y: np.ndarray) -> np.ndarray:
    """[n] or [n 1] integers to int32 [n]."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind == "f" or not np.array_equal(y, y.astype(np.int32)):
        rule = "labels must be [n] integers of 32 bits"
        raise InputError(f"{what} is {y.dtype} {list(y.shape)}, but {rule}: convert or remove them")
    return y.astype(np.int32)


def _load_folder(name: str, root: Path, crop: int | None, cache_dir: Path | None) -> Dataset:
    from jaxdae.datasets.folders import load_folder  # which reads images by what is above

    return load_folder(name, root, crop, cache_dir)


def _load_tfds(name: str, place: Path, cache_dir: Path | None) -> Dataset:
    from jaxdae.datasets.tfds import load_arrays  # the only reader with a cache and a network

    arrays = load_arrays(name, cache_dir)
    train, test = (
        Split(arrays[f"{part}_images"], arrays.get(f"{part}_labels")) for part in ("train", "test")
    )
    return Dataset(name, train, test)
