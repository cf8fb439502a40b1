"""Folders of image files, and pairs of such folders: `folder:DIR` and `pairs:NOISY_DIR,CLEAN_DIR`.

Files are decoded once, by several threads. What takes more than `MEMORY` bytes is written to a file
in the cache as it is decoded, and training reads the images it needs from there, by several threads
(a mapped file would be read a page at a time); the system keeps those in memory that fit. The next
run finds the file, unless an image file has come, gone or changed. In memory or not, the images are
the same.
"""

import contextlib
import functools
import hashlib
import importlib.util
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

import jax
import numpy as np
from jaxtyping import UInt8

from jaxdae.cache import cache_folder
from jaxdae.data import Dataset, Split
from jaxdae.errors import InputError, explained, show
from jaxdae.images import SUFFIXES, find, read_uint8
from jaxdae.training import stream

MEMORY = 1 << 29  # bytes of decoded images that are held in memory; more lie in a file
READERS = 8  # threads that read from it: a disk answers many as fast as one
MAX_TEST_PATCHES = 10_000
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
            _read(self.path, [(self.begin + int(rows[i]) * each, out[i])])

        list(_readers().map(read, range(len(rows))))
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, np.uint8)
        _read(self.path, [(self.begin, out)])
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
        _read(self.path, [(first + y * width * channels, row) for y, row in enumerate(out)])


def _read(path: Path, parts: Sequence[tuple[int, np.ndarray]]) -> None:
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
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS)


class Crops:
    """Square patches of pictures of any size, as an array uint8 [n side side c].

    In each epoch a picture gives as many patches as fit into it without overlap, from random places
    that are a pure function of (seed, epoch, patch): `patches`. Indexing, by an array of numbers,
    takes them from those that do not overlap instead; by a slice, it leaves some patches out.

    Args:
      pictures: each at least `side` in height and width, of as many channels.
      side: of a patch, in pixels.
      numbers: which patches of all; every one if not given.
    """

    def __init__(
        self,
        pictures: Sequence[Pixels | StoredPicture],
        side: int,
        numbers: np.ndarray | None = None,
    ) -> None:
        self.pictures, self.side = pictures, side
        self._sides = np.array([picture.shape[:2] for picture in pictures], np.int64)
        fit = self._sides // side
        self.counts = fit.prod(1)
        self._picture = np.repeat(np.arange(len(pictures)), self.counts)
        place = np.arange(len(self._picture)) - np.repeat(
            np.cumsum(self.counts) - self.counts, self.counts
        )
        columns = fit[self._picture, 1]
        self._grid = np.stack([place // columns, place % columns], 1) * side
        self._numbers = np.arange(len(self._picture)) if numbers is None else numbers
        self._drawn: tuple[Any, np.ndarray] | None = None

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def size(self) -> int:
        """Values in the patches of an epoch."""
        return prod(self.shape)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(patches of an epoch, side, side, channels)."""
        return len(self._numbers), self.side, self.side, self.pictures[0].shape[2]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return Crops(self.pictures, self.side, self._numbers[rows])
        return self._cut(self._grid, np.asarray(rows))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(len(self))].astype(dtype or np.uint8, copy=False)

    def patches(self, seed: int, epoch: int, rows: np.ndarray) -> UInt8[np.ndarray, "k s s c"]:
        """Patches of an epoch, by number: the same for the same arguments, whatever came before."""
        drawn = self._drawn
        if drawn is None or drawn[0] != (seed, epoch):
            key = jax.random.fold_in(stream(seed, "crop"), epoch)
            bits = np.asarray(jax.random.bits(key, (len(self._picture), 2), np.uint32), np.uint64)
            room = (self._sides[self._picture] - self.side + 1).astype(np.uint64)
            self._drawn = drawn = (seed, epoch), ((bits * room) >> np.uint64(32)).astype(np.int64)
        return self._cut(drawn[1], rows)

    def _cut(self, places: np.ndarray, rows: np.ndarray) -> UInt8[np.ndarray, "k s s c"]:
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        numbers = self._numbers[rows]

        def cut(i: int) -> None:
            top, left = places[numbers[i]]
            picture = self.pictures[self._picture[numbers[i]]]
            if isinstance(picture, StoredPicture):
                picture.patch(int(top), int(left), out[i])
            else:
                out[i] = picture[top : top + self.side, left : left + self.side]

        stored = isinstance(self.pictures[0], StoredPicture)
        list((_readers().map if stored else map)(cut, range(len(numbers))))
        return out


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
    found = _stored(place)
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


def _stored(place: Path) -> Pictures | None:
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
        with _Sink(place) as sink:
            first: Pixels | None = None
            for path, pixels in zip(files.paths, _in_threads(read, files.paths), strict=False):
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


def _in_threads(read: Callable[[Path], Pixels], paths: Sequence[Path]) -> Iterator[Pixels]:
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


class _Sink:
    """Where decoded pictures go: a list, and from `MEMORY` bytes on a file that is made whole."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.file: BufferedWriter | None = None
        self.held: list[Pixels] = []
        self.shapes: list[tuple[int, ...]] = []
        self.bytes = 0
        self.digest = hashlib.sha256()
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "_Sink":
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
            whole = _stored(self.place)
        assert whole is not None
        return whole
