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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdae.data.dataset import Dataset, Split
from jaxdae.data.decoded_cache import (
    DecodedImages,
    ImageCollector,
    decode_ahead,
    read_cache,
)
from jaxdae.data.patches import Crops
from jaxdae.errors import InputError, show
from jaxdae.files import cache_folder
from jaxdae.image_io.pillow import SUFFIXES, decoded_bytes, find, read_uint8

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
    name: str,
    root: Path,
    crop: int | None = None,
    cache_dir: Path | None = None,
    gray: bool = False,
) -> Dataset:
    """The image files of a folder, split and labelled as `ImageFiles` says.

    Images are gray if all files are gray, otherwise RGB. Alpha is dropped, 16 bits become 8.

    Args:
      gray: make images in colour gray, by Rec. 601 luma.
      crop: cut the images, which may have any sizes then, into square patches, `crop` pixels a
        side: `Crops`. Test patches do not overlap, and are at most `MAX_TEST_PATCHES`.
      cache_dir: see `jaxdae.data.load`.

    Raises:
      InputError: the folder or a file cannot be used.
    """
    files = ImageFiles(name, root)
    return build_dataset(files, None, crop, cache_dir, gray)


def build_dataset(
    files: ImageFiles,
    noisy: Sequence[Path] | None,
    crop: int | None,
    cache_dir: Path | None,
    gray: bool = False,
) -> Dataset:
    """Decodes files, or finds them decoded in the cache, and splits them.

    Args:
      noisy: the noisy partner of each of `files`, if there are partners.
    """
    if crop is not None and crop < MIN_CROP:
        raise InputError(f"--crop {crop} must be at least {MIN_CROP} pixels")
    paths = [*files.paths, *(noisy or [])]
    entry = cache_folder(cache_dir) / "folders" / _cache_key(files, paths, gray)
    decoded = read_cache(entry)
    if decoded is None:
        decoded = _decode(files, paths, crop, entry, gray)
    else:  # perhaps decoded for another crop
        for i, pixels in enumerate(decoded.images):
            _check_size(files, paths, i, pixels.shape, decoded.images[0].shape, crop)
    count = len(files.paths)

    def split(begin: int, end: int, test: bool) -> Split:
        labels = None if files.labels is None else files.labels[begin:end]

        def part(first: int) -> Any:  # of the clean images, or of the noisy ones behind them
            if crop is None:
                return decoded.stack(first + begin, first + end, in_memory=test)
            return Crops(decoded.images[first + begin : first + end], crop)

        images, partners = part(0), None if noisy is None else part(count)
        if crop is None:
            return Split(images, labels, partners)
        if labels is not None:
            labels = np.repeat(labels, images.counts)
        patches = Split(images, labels, partners)
        if not test:
            return patches
        rows = np.linspace(0, len(images) - 1, min(len(images), MAX_TEST_PATCHES))
        return patches.take(rows.astype(int))

    border = count - files.test_count
    train, test = split(0, border, False), split(border, count, True)
    return Dataset(files.name, train, test, decoded.sha256)


def _check_size(
    files: ImageFiles,
    paths: Sequence[Path],
    i: int,
    shape: tuple[int, ...],
    first: tuple[int, ...],
    crop: int | None,
) -> None:
    """Checks the size of image i against the first one's, or against the crop."""

    def size_of(shape: tuple[int, ...]) -> str:
        return f"{shape[1]}x{shape[0]}"

    if crop is None and shape[:2] != first[:2]:
        sizes = f"{show(paths[0])} is {size_of(first)}, {show(paths[i])} {size_of(shape)}"
        raise InputError(
            f"{files.name!r}: {sizes}, but all must have one size: resize them, or train on "
            "patches of them with --crop 32"
        )
    if crop is not None and min(shape[:2]) < crop:
        raise InputError(
            f"{files.name!r}: {show(paths[i])} is {size_of(shape)}, smaller than --crop {crop}: "
            f"choose at most {min(shape[:2])}, or remove it"
        )


def _check_partner(
    files: ImageFiles, paths: Sequence[Path], i: int, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Checks that image i, if it is a noisy one, has the size of its clean partner."""
    clean = i - len(files.paths)
    if clean >= 0 and shapes[i][:2] != shapes[clean][:2]:
        (height, width), (other_height, other_width) = shapes[clean][:2], shapes[i][:2]
        raise InputError(
            f"{files.name!r}: {show(paths[clean])} is {width}x{height}, its noisy partner "
            f"{show(paths[i])} {other_width}x{other_height}, but both must have one size: resize "
            "one"
        )


def _cache_key(files: ImageFiles, paths: Sequence[Path], gray: bool) -> str:
    """A hash of the files' paths, sizes and times of change, which stand for their contents."""
    kind = ":gray" * gray
    digest = hashlib.sha256(f"2:{len(files.paths)}:{files.test_count}{kind}".encode())
    for path in paths:
        known = os.path.abspath(path)
        with contextlib.suppress(OSError):  # decoding the file reports it
            status = os.stat(path)
            known = f"{known}\0{status.st_size}\0{status.st_mtime_ns}"
        digest.update(f"{known}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _decode(
    files: ImageFiles, paths: Sequence[Path], crop: int | None, entry: Path, gray: bool
) -> DecodedImages:
    """All images, with one number of channels: in memory, or in a cache entry if they are many."""
    read = partial(read_uint8, gray=gray)
    channels = 1
    while True:
        with ImageCollector(entry) as collector:
            shapes: list[tuple[int, ...]] = []
            for i, pixels in enumerate(decode_ahead(read, paths, decoded_bytes)):
                height, width, found = pixels.shape
                shapes.append(pixels.shape)
                if found > channels:  # the first file in colour
                    channels = found
                    if i > 0:
                        break  # begin again, all in colour
                _check_partner(files, paths, i, shapes)
                _check_size(files, paths, i, pixels.shape, shapes[0], crop)
                collector.add(np.broadcast_to(pixels, (height, width, channels)))
            else:
                return collector.finish(fingerprint=crop is not None)
