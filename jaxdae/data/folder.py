"""Folders of image files, and pairs of such folders: `folder:DIR` and `pairs:NOISY_DIR,CLEAN_DIR`.

Files are decoded once, by several threads. What takes more than `MEMORY` bytes is written to a file
in the cache as it is decoded, and training reads the images it needs from there, by several threads
(a mapped file would be read a page at a time); the system keeps those in memory that fit. The next
run finds the file, unless an image file has come, gone or changed. In memory or not, the images are
the same.
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
    Pictures,
    Pixels,
    Sink,
    in_threads,
    stored,
)
from jaxdae.data.patches import Crops
from jaxdae.errors import InputError, show
from jaxdae.files import cache_folder
from jaxdae.image_io.pillow import SUFFIXES, find, read_uint8

MAX_TEST_PATCHES = 10_000


class Files:
    """The image files of a data set, with what follows from their names alone.

    Fields:
      names: each file's path below the folder, train first.
      tests: how many of the last are for the test.
      paths: the files.
      labels: of each, int32 [n], or None.

    Raises:
      InputError: there is no such folder, no image in it, or none for one of the splits.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        if not os.path.isdir(root):
            raise InputError(
                f"{name!r}: {show(root)} is no folder: name the one that holds the images"
            )
        if importlib.util.find_spec("PIL") is None:
            raise InputError(f"{name!r} needs Pillow to read images: pip install pillow")
        divided = os.path.isdir(root / "train") and os.path.isdir(root / "test")
        found: list[tuple[bool, str, str, Path]] = []  # for the test, its path, class, file
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
        kinds = [kind for _, _, kind, _ in found]
        classes = sorted(set(kinds))
        if len(classes) > 1 and "" in classes:
            loose = f"{show(found[kinds.index('')][3])} lies beside class folder {classes[1]!r}"
            raise InputError(
                f"{name!r}: {loose}, but all images or none must lie in one: move them"
            )
        self.tests = sum(test for test, *_ in found)
        if not 0 < self.tests < len(found):
            rule = f"{self.tests} of {len(found)} images fall to the test, but both splits need one"
            raise InputError(f"{name!r}: {rule}: make sub-folders train/ and test/, or add images")
        found.sort(key=lambda one: one[0])  # stable: in each split by path
        self.names = [relative for _, relative, _, _ in found]
        self.paths = [path for *_, path in found]
        self.labels = None
        if classes != [""]:
            self.labels = np.array([classes.index(kind) for _, _, kind, _ in found], np.int32)


def load_folder(
    name: str, root: Path, crop: int | None = None, cache_dir: Path | None = None
) -> Dataset:
    """`train/` and `test/` if both are there; else a file is for the test if the SHA-256 of its
    path below `root` says so, one in six, whatever other files there are.

    Sub-folders, of `root` or of the two, are classes, labelled 0, 1, ... in sorted order. Images
    are gray if every one is, else RGB; alpha is dropped.

    Args:
      crop: make patches of so many pixels' sides of images of any size; see `Crops`.
      cache_dir: as of `jaxdae.data.load`.
    """
    files = Files(name, root)
    return _dataset(files, files.paths, read_uint8, 1, crop, cache_dir)


def load_pairs(
    name: str, place: str, crop: int | None = None, cache_dir: Path | None = None
) -> Dataset:
    """Two folders of files of the same names: noisy images, and what they show without noise.

    Names are compared without their suffixes. Files are split and labelled as those of
    `load_folder`, by the clean ones. An image holds the clean channels, then the noisy ones.

    Args:
      place: NOISY_DIR,CLEAN_DIR.
      crop, cache_dir: as of `load_folder`; both of a pair are cut at one place.
    """
    cuts = [i for i, letter in enumerate(place) if letter == ","]
    ways = [(place[:i], place[i + 1 :]) for i in cuts]
    if not ways:
        raise InputError(f"{name!r} must name two folders: pairs:NOISY_DIR,CLEAN_DIR")
    noisy_root, clean_root = (
        Path(os.path.expanduser(part))
        for part in next((way for way in ways if all(map(os.path.isdir, way))), ways[0])
    )
    if not os.path.isdir(noisy_root):
        raise InputError(
            f"{name!r}: {show(noisy_root)} is no folder: name the one of the noisy images"
        )
    files = Files(name, clean_root)
    noisy = {_stem(relative): path for relative, path in find(noisy_root)}
    stems = [_stem(relative) for relative in files.names]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise InputError(
            f"{name!r}: {show(clean_root)} holds {twice!r} with two suffixes: remove one"
        )
    for missing, there, lacking in (
        (set(stems) - set(noisy), clean_root, noisy_root),
        (set(noisy) - set(stems), noisy_root, clean_root),
    ):
        if missing:
            raise InputError(
                f"{name!r}: {len(missing)} images of {show(there)} have no partner in "
                f"{show(lacking)}, {min(missing)!r} is the first: give each pair one name"
            )
    partner = {path: noisy[stem] for path, stem in zip(files.paths, stems, strict=True)}

    def read(path: Path) -> Pixels:
        both = [read_uint8(path), read_uint8(partner[path])]
        if both[0].shape[:2] != both[1].shape[:2]:
            raise InputError(
                f"{name!r}: {show(path)} is {_sides(both[0])}, its noisy partner "
                f"{show(partner[path])} {_sides(both[1])}, but both must have one size: resize one"
            )
        channels = max(pixels.shape[2] for pixels in both)
        return np.concatenate([_widened(pixels, channels) for pixels in both], 2)

    return _dataset(files, [*partner, *partner.values()], read, 2, crop, cache_dir)


def _stem(relative: str) -> str:
    return relative.rpartition(".")[0]


def _sides(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _widened(pixels: Pixels, channels: int, parts: int = 1) -> Pixels:
    """Gray made into as many equal channels; `parts` images that lie behind each other, each."""
    height, width, _ = pixels.shape
    apart = pixels.reshape(height, width, parts, -1)
    return np.broadcast_to(apart, (height, width, parts, channels)).reshape(height, width, -1)


def _dataset(
    files: Files,
    sources: Sequence[Path],
    read: Callable[[Path], Pixels],
    parts: int,
    crop: int | None,
    cache_dir: Path | None,
) -> Dataset:
    """Decodes the files, or maps them from the cache, and divides them into the splits.

    Args:
      sources: all files that are read, for the cache to know when one has changed.
      read: a file of `files` to its pixels, of 1 or 3 channels in each of `parts` images.
    """
    if crop is not None and crop < 8:
        raise InputError(f"--crop {crop} must be at least 8 pixels")
    place = cache_folder(cache_dir) / "folders" / _state(files, sources, parts)
    found = stored(place)
    if found is None:
        found = _decode(files, read, parts, crop, place)
    else:  # decoded for another crop, maybe
        for path, pixels in zip(files.paths, found.each, strict=True):
            _check_size(files, path, pixels, found.each[0], crop)
    pictures = found.each
    border = len(pictures) - files.tests
    channels = pictures[0].shape[2]

    def split(begin: int, end: int, test: bool) -> Split:
        labels = None if files.labels is None else files.labels[begin:end]
        if crop is None:
            return Split(found.stacked(begin, end, held=test), labels)
        crops = Crops(pictures[begin:end], crop)
        if labels is not None:
            labels = np.repeat(labels, crops.counts)
        if not test:
            return Split(crops, labels)
        count = min(len(crops), MAX_TEST_PATCHES)
        rows = np.linspace(0, len(crops) - 1, count).astype(int)
        return Split(crops[rows], None if labels is None else labels[rows])

    return Dataset(
        files.name,
        split(0, border, False),
        split(border, len(pictures), True),
        noisy_channels=channels // 2 if parts == 2 else 0,
        sha256=found.sha256,
    )


def _check_size(files: Files, path: Path, pixels: Pixels, first: Pixels, crop: int | None) -> None:
    if crop is None and pixels.shape[:2] != first.shape[:2]:
        sizes = f"{show(files.paths[0])} is {_sides(first)}, {show(path)} {_sides(pixels)}"
        raise InputError(
            f"{files.name!r}: {sizes}, but all must have one size: resize them, or train on "
            "patches of them with --crop 32"
        )
    if crop is not None and min(pixels.shape[:2]) < crop:
        raise InputError(
            f"{files.name!r}: {show(path)} is {_sides(pixels)}, smaller than --crop {crop}: "
            f"choose at most {min(pixels.shape[:2])}, or remove it"
        )


def _state(files: Files, sources: Sequence[Path], parts: int) -> str:
    """A name for what the files hold, as far as their names, sizes and times tell."""
    digest = hashlib.sha256(f"1:{parts}:{files.tests}".encode())
    for path in sources:
        known = os.path.abspath(path)
        with contextlib.suppress(OSError):  # whoever reads it will complain
            status = os.stat(path)
            known = f"{known}\0{status.st_size}\0{status.st_mtime_ns}"
        digest.update(f"{known}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _decode(
    files: Files,
    read: Callable[[Path], Pixels],
    parts: int,
    crop: int | None,
    place: Path,
) -> Pictures:
    """Every picture, of one number of channels: in memory, or if they are too many in a file."""
    channels = 1
    while True:
        with Sink(place) as sink:
            first: Pixels | None = None
            for path, pixels in zip(files.paths, in_threads(read, files.paths), strict=False):
                has = pixels.shape[2] // parts
                if first is None:
                    first, channels = pixels, max(channels, has)
                if has > channels:  # all from the first, as wide as this one
                    channels = has
                    break
                _check_size(files, path, pixels, first, crop)
                sink.add(_widened(pixels, channels, parts))
            else:
                return sink.close(crop is not None)
