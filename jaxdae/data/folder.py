"""Folders of image files as data sets: `folder:DIR`.

Files are decoded once, in several threads. If the images take more than `decoded_cache.MEMORY`
bytes, they go to a file in the cache. Training reads the images it needs from there, and the next
run finds them, unless an image file was added, removed or changed. Threads read the file, because a
memory map would read it a page at a time; the system keeps what fits in memory. The images are the
same either way.
"""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxdae.data.dataset import Dataset, Split
from jaxdae.data.decoded_cache import (
    DecodedImages,
    ImageCollector,
    Pixels,
    decode_ahead,
    read_cache,
)
from jaxdae.data.patches import Crops
from jaxdae.errors import InputError, show
from jaxdae.files import cache_folder
from jaxdae.image_io.pillow import SUFFIXES, find, read_uint8

MIN_CROP = 8  # pixels
MAX_TEST_PATCHES = 10_000


class ImageFiles:
    """The image files in a folder, split and labelled by their paths alone.

    If the folder holds `train/` and `test/`, those are the splits. Otherwise the SHA-256 of its
    path below the folder sends a file to the test split, one in six. So the split of a file does
    not depend on the other files. Sub-folders, of the folder or of the two, are classes, labelled
    0, 1, ... in sorted order.

    Args:
      name: the data set's, for messages.
      root: the folder.

    Fields:
      names: the path of each file below the folder; training files first, each split sorted.
      paths: the files.
      test_count: the number of test files, the last ones.
      labels: the class of each file, int32 [n], or None.

    Raises:
      InputError: the folder does not exist, a split would be empty, or files lie beside class
        folders.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        if not os.path.isdir(root):
            raise InputError(f"{name!r}: {show(root)} is no folder: name the folder of the images")
        if importlib.util.find_spec("PIL") is None:
            raise InputError(f"{name!r} needs Pillow to read images: pip install pillow")
        divided = os.path.isdir(root / "train") and os.path.isdir(root / "test")
        found: list[tuple[bool, str, str, Path]] = []  # is a test file, name, class, path
        for relative, path in find(root):
            top, *below = relative.split("/")
            if divided and top not in ("train", "test"):
                continue
            digest = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).digest()
            test = top == "test" if divided else int.from_bytes(digest[:8], "big") % 6 == 0
            folders = below[:-1] if divided else [top, *below][:-1]
            found.append((test, relative, folders[0] if folders else "", path))
        if not found:
            raise InputError(f"{name!r}: no image in {show(root)}: add {', '.join(SUFFIXES)} files")
        class_of = [kind for _, _, kind, _ in found]
        classes = sorted(set(class_of))
        if len(classes) > 1 and "" in classes:
            loose = show(found[class_of.index("")][3])
            raise InputError(
                f"{name!r}: {loose} lies beside class folder {classes[1]!r}, but all images or "
                "none must lie in class folders: move it"
            )
        self.test_count = sum(test for test, *_ in found)
        if not 0 < self.test_count < len(found):
            raise InputError(
                f"{name!r}: {self.test_count} of {len(found)} images fall to the test split, but "
                "both splits need one: make sub-folders train/ and test/, or add images"
            )
        found.sort(key=lambda one: one[0])  # a stable sort: each split stays sorted by path
        self.names = [relative for _, relative, _, _ in found]
        self.paths = [path for *_, path in found]
        self.labels = None
        if classes != [""]:
            self.labels = np.array([classes.index(kind) for _, _, kind, _ in found], np.int32)


def load_folder(
    name: str, root: Path, crop: int | None = None, cache_dir: Path | None = None
) -> Dataset:
    """The image files of a folder, split and labelled as `ImageFiles` says.

    Images are gray if all files are gray, otherwise RGB. Alpha is dropped, 16 bits become 8.

    Args:
      crop: cut the images, which may have any sizes then, into square patches, `crop` pixels a
        side: `Crops`. Test patches do not overlap, and are at most `MAX_TEST_PATCHES`.
      cache_dir: see `jaxdae.data.load`.

    Raises:
      InputError: the folder or a file cannot be used.
    """
    files = ImageFiles(name, root)
    return build_dataset(files, files.paths, read_uint8, 1, crop, cache_dir)


def build_dataset(
    files: ImageFiles,
    sources: Sequence[Path],
    decode: Callable[[Path], Pixels],
    parts: int,
    crop: int | None,
    cache_dir: Path | None,
) -> Dataset:
    """Decodes files, or finds them decoded in the cache, and splits them.

    Args:
      sources: all files that are read. If one of them changes, the cache entry is not used.
      decode: gives the pixels of one of `files`.
      parts: the number of images that lie behind each other in the channels of what `decode` gives,
        each with 1 or 3 channels.
    """
    if crop is not None and crop < MIN_CROP:
        raise InputError(f"--crop {crop} must be at least {MIN_CROP} pixels")
    entry = cache_folder(cache_dir) / "folders" / _cache_key(files, sources, parts)
    decoded = read_cache(entry)
    if decoded is None:
        decoded = _decode(files, decode, parts, crop, entry)
    else:  # perhaps decoded for another crop
        for path, pixels in zip(files.paths, decoded.images, strict=True):
            _check_size(files, path, pixels, decoded.images[0], crop)
    images = decoded.images
    train_count = len(images) - files.test_count
    channels = images[0].shape[2]

    def split(begin: int, end: int, test: bool) -> Split:
        labels = None if files.labels is None else files.labels[begin:end]
        if crop is None:
            return Split(decoded.stack(begin, end, in_memory=test), labels)
        crops = Crops(images[begin:end], crop)
        if labels is not None:
            labels = np.repeat(labels, crops.counts)
        if not test:
            return Split(crops, labels)
        count = min(len(crops), MAX_TEST_PATCHES)
        rows = np.linspace(0, len(crops) - 1, count).astype(int)
        return Split(crops[rows], None if labels is None else labels[rows])

    return Dataset(
        files.name,
        split(0, train_count, False),
        split(train_count, len(images), True),
        noisy_channels=channels // 2 if parts == 2 else 0,
        sha256=decoded.sha256,
    )


def size_of(pixels: Pixels) -> str:
    """WIDTHxHEIGHT, for messages."""
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def to_channels(pixels: Pixels, channels: int, parts: int = 1) -> Pixels:
    """Repeats gray images into `channels` equal channels; other images stay as they are.

    Args:
      pixels: uint8 [h w parts * c], c 1 or `channels`.

    Returns:
      uint8 [h w parts * channels].
    """
    height, width, _ = pixels.shape
    apart = pixels.reshape(height, width, parts, -1)
    return np.broadcast_to(apart, (height, width, parts, channels)).reshape(height, width, -1)


def _check_size(
    files: ImageFiles, path: Path, pixels: Pixels, first: Pixels, crop: int | None
) -> None:
    if crop is None and pixels.shape[:2] != first.shape[:2]:
        sizes = f"{show(files.paths[0])} is {size_of(first)}, {show(path)} {size_of(pixels)}"
        raise InputError(
            f"{files.name!r}: {sizes}, but all must have one size: resize them, or train on "
            "patches of them with --crop 32"
        )
    if crop is not None and min(pixels.shape[:2]) < crop:
        raise InputError(
            f"{files.name!r}: {show(path)} is {size_of(pixels)}, smaller than --crop {crop}: "
            f"choose at most {min(pixels.shape[:2])}, or remove it"
        )


def _cache_key(files: ImageFiles, sources: Sequence[Path], parts: int) -> str:
    """A hash of the files' paths, sizes and times of change, which stand for their contents."""
    digest = hashlib.sha256(f"1:{parts}:{files.test_count}".encode())
    for path in sources:
        known = os.path.abspath(path)
        with contextlib.suppress(OSError):  # decoding the file reports it
            status = os.stat(path)
            known = f"{known}\0{status.st_size}\0{status.st_mtime_ns}"
        digest.update(f"{known}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _decode(
    files: ImageFiles,
    decode: Callable[[Path], Pixels],
    parts: int,
    crop: int | None,
    entry: Path,
) -> DecodedImages:
    """All images, with one number of channels: in memory, or in a cache entry if they are many."""
    channels = 1
    while True:
        with ImageCollector(entry) as collector:
            first: Pixels | None = None
            for path, pixels in zip(files.paths, decode_ahead(decode, files.paths), strict=False):
                found = pixels.shape[2] // parts
                if first is None:
                    first, channels = pixels, max(channels, found)
                if found > channels:  # the first file in colour: begin again, all in colour
                    channels = found
                    break
                _check_size(files, path, pixels, first, crop)
                collector.add(to_channels(pixels, channels, parts))
            else:
                return collector.finish(fingerprint=crop is not None)
