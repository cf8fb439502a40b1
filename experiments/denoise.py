"""Restores images of your own: files, folders of them, and stacks.

    python -m experiments.denoise noisy/ --model blind --out restored
    python -m experiments.denoise "photos/**/*.png" --model runs/mine --tile --out restored
    python -m experiments.denoise stack.npz --model unet --out restored

INPUTS are image files (png, jpg, bmp, gif, tif, webp, pgm, ppm), .npy and .npz stacks, folders
with all that is below them, and patterns in quotes. --out holds a file for each, of the same name,
below the folder or the fixed part of the pattern that it was found in. What lies in --out is no
input.

A file comes out in the format, size and depth (8 or 16 bits) that it had: upright, with its alpha,
colour profile, resolution and EXIF. JPEG is compressed as strongly as before, WebP without loss;
palettes and 1-bit images become gray or RGB. What its format could not hold (colours in a GIF), or
what would be lost (several frames, 16 bits in colour, CMYK), is refused.

A stack is [n h w] or [n h w c], uint8, uint16 or floating point in [0, 1]. All arrays of a .npz
that have three or four axes are restored; the others are copied.

A network takes images of one size. Others are refused, or taken with

  --tile  in overlapping tiles of that size, blended; shorter sides are continued by reflection;

  --fit   scaled to fit into that size, the ratio of the sides kept, in its middle, the rest in the
  colour of the border; what was restored is scaled back.

A network for gray restores each channel of an RGB image apart. One for RGB takes gray as three
equal channels, and the mean of what it makes of them is the result. One that makes RGB of gray
takes the gray values of RGB.

A file that cannot be restored is named, and the others are restored: the exit status is 2 then.
"""

import csv
import functools
import glob
import hashlib
import itertools
import math
import os
import re
import sys
import time
import unicodedata
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float, Shaped

from jaxdae.errors import InputError, show
from jaxdae.images import LUMA, SUFFIXES, Picture, encode, find, read
from jaxdae.stacks import SUFFIXES as STACKS
from jaxdae.stacks import Array, Stack, Writer

from . import cli, program
from .guard import Guard

PROGRAM = program("denoise")
METRICS = "metrics.csv"
COLUMNS = (
    "image",
    *(f"{m}_{when}" for when in ("before", "after") for m in ("mse", "psnr", "ssim")),
)
SAID = 10  # files that could not be restored are named, so many
GROUP, GROUP_BYTES = 64, 1 << 24  # files that one thread reads or writes at a time, at the most
BAND = 256  # rows of a large image at a time
CACHED_PIXELS = 64 * 28 * 28  # what a CPU's caches hold of a network's work
BYTES = np.dtype(np.uint8)
Images = Shaped[np.ndarray, "n height width channels"]
Values = Float[np.ndarray, "n height width channels"]


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Image files, stacks, folders, or patterns in quotes."""
    out: Path
    """Folder to write to."""
    model: str = "blind"
    """A network that comes with the package (blind, unet, sigma-0.5, sigma-1.0), the folder of a
    finished run, or a model's .npz file."""
    tile: bool = False
    """Restore images of other sizes in overlapping tiles."""
    fit: bool = False
    """Restore images of other sizes scaled to the network's."""
    noise_sigma: float | None = None
    """For a demonstration, first add noise of this standard deviation to images in [0, 1], with the
    mean that the model was trained for; which noise depends on the file's path and --seed alone."""
    seed: int = 0
    """Decides the noise."""
    reference: Path | None = None
    """Clean images to compare with: a file for one input, or a folder with files of the same names;
    with --noise-sigma, the inputs themselves if not given. Errors go to metrics.csv in --out."""
    side_by_side: Path | None = None
    """Folder for pictures of each input beside its result (and its reference)."""
    overwrite: bool = False
    """Replace files that exist in --out."""
    skip_existing: bool = False
    """Leave files that exist in --out, and go on with the others."""
    progress: bool = True
    """Show a progress bar, if the terminal can."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


class Source(NamedTuple):
    """A file to restore.

    Fields:
      path: where it is.
      name: its path below --out.
    """

    path: Path
    name: str

    @property
    def stack(self) -> bool:
        return self.name.lower().endswith(STACKS)


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed or done, in one line.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    _check(arguments)
    return arguments


def _check(arguments: Arguments) -> None:
    if not arguments.inputs:
        raise InputError("no inputs: name image files, folders of them, or patterns in quotes")
    for one, other in (("tile", "fit"), ("overwrite", "skip_existing")):
        if getattr(arguments, one) and getattr(arguments, other):
            words = f"--{one} and --{other.replace('_', '-')}"
            raise InputError(f"{words} exclude each other: give one of them")
    sigma = arguments.noise_sigma
    if sigma is not None and not 0 <= sigma < math.inf:
        raise InputError(f"--noise-sigma {sigma} must be a finite number, at least 0, such as 0.5")
    if arguments.seed < 0:
        raise InputError(f"--seed {arguments.seed} must be at least 0")
    for flag in ("out", "side_by_side"):
        path = getattr(arguments, flag)
        if path is not None and os.path.lexists(path) and not path.is_dir():
            what = f"--{flag.replace('_', '-')} {show(path)}"
            raise InputError(f"{what} is no folder: name a folder, new or not")
    side = arguments.side_by_side
    if side is not None and os.path.realpath(side) == os.path.realpath(arguments.out):
        raise InputError(f"--side-by-side {show(side)} is --out: choose another folder")
    if arguments.skip_existing and compares(arguments):
        raise InputError(
            f"--skip-existing would leave {METRICS} without the images that are skipped: take "
            "--overwrite, or neither --reference nor --noise-sigma"
        )


def compares(arguments: Arguments) -> bool:
    """Whether there are clean images to compare with."""
    return arguments.reference is not None or arguments.noise_sigma is not None


# What there is to do


def sources(arguments: Arguments) -> list[Source]:
    """The files to restore, in order, each once.

    Raises:
      InputError: a place that does not exist or holds nothing, or two files of one name.
    """
    found: dict[str, Path] = {}
    ours = [path for path in (arguments.out, arguments.side_by_side) if path is not None]
    roots = tuple(os.path.realpath(path) + os.sep for path in ours)
    folder = functools.cache(os.path.realpath)
    for place in arguments.inputs:
        count = seen = 0
        for name, path in _places(place):
            seen += 1
            if not (folder(path.parent) + os.sep).startswith(roots):
                count += 1
                other = found.setdefault(name, path)
                if other is not path and os.path.realpath(other) != os.path.realpath(path):
                    raise InputError(
                        f"{show(other)} and {show(path)} would both be {show(name)} in --out: "
                        "restore them into two folders"
                    )
        if seen and not count:
            raise InputError(
                f"{show(place)} lies in --out or --side-by-side, and what lies there is no input: "
                "choose another folder for the results"
            )
        if not count:
            raise InputError(
                f"nothing to restore in {show(place)}: it must hold files that end in "
                f"{', '.join((*SUFFIXES, *STACKS))}"
            )
    return [Source(path, name) for name, path in found.items()]


def _places(place: str) -> Iterator[tuple[str, Path]]:
    """What an argument names: paths below --out, and the files."""
    path, known = Path(os.path.expanduser(place)), (*SUFFIXES, *STACKS)
    if path.is_dir():
        for _, file in find(path, known):
            yield file.relative_to(path).as_posix(), file
    elif path.is_file():
        if not path.name.lower().endswith(known):
            raise InputError(f"{show(place)} is no image or stack: name one of {', '.join(known)}")
        yield path.name, path
    elif glob.has_magic(place) and not os.path.lexists(path):
        root = path
        while glob.has_magic(str(root)):
            root = root.parent
        for match in sorted(map(Path, glob.glob(str(path), recursive=True))):
            files = [file for _, file in find(match, known)] if match.is_dir() else [match]
            for file in files:
                if file.name.lower().endswith(known) and file.is_file():
                    yield file.relative_to(root).as_posix(), file
    else:
        rule = "is no regular file" if os.path.lexists(path) else "does not exist"
        raise InputError(
            f"{show(place)} {rule}: name image files, folders of them, or patterns in quotes"
        )


def left_to_do(arguments: Arguments, files: Sequence[Source]) -> list[Source]:
    """Those of the files that are to be written.

    Raises:
      InputError: a result would take the place of an input, or of another file that is to stay.
    """
    out = arguments.out
    there = [file for file in files if os.path.lexists(out / file.name)]
    if there:
        inputs = {os.path.realpath(file.path) for file in files}
        if arguments.reference is not None:
            references = (_reference(arguments.reference, file) for file in files)
            inputs |= {os.path.realpath(path) for path in references}
        for file in there:
            if os.path.realpath(out / file.name) in inputs:
                raise InputError(
                    f"--out {show(out)} would replace {show(out / file.name)}, which is an input: "
                    "choose another folder"
                )
    if arguments.skip_existing:
        skipped = set(there)
        return [file for file in files if file not in skipped]
    side = arguments.side_by_side
    if not arguments.overwrite:
        if there:
            raise InputError(
                f"{len(there):,} of {len(files):,} results exist, such as "
                f"{show(out / there[0].name)}: --overwrite replaces them, --skip-existing leaves "
                "them; or choose another --out"
            )
        if compares(arguments) and os.path.lexists(out / METRICS):
            raise InputError(f"{show(out / METRICS)} exists: --overwrite replaces it")
        if side is not None and side.is_dir() and any(side.iterdir()):
            raise InputError(
                f"--side-by-side {show(side)} is not empty: --overwrite writes into it"
            )
    return list(files)


def _reference(reference: Path, file: Source) -> Path:
    return reference / file.name if reference.is_dir() else reference


def check_references(arguments: Arguments, files: Sequence[Source]) -> None:
    """Raises an `InputError` if there is not a reference for each file."""
    place = arguments.reference
    if place is None:
        return
    if not place.exists():
        raise InputError(f"--reference {show(place)} does not exist: name a file or a folder")
    if not place.is_dir() and len(files) > 1:
        raise InputError(
            f"--reference {show(place)} is one file for {len(files):,} inputs: name the folder of "
            "all references"
        )
    missing = [file for file in files if not _reference(place, file).is_file()]
    if missing:
        raise InputError(
            f"--reference {show(place)} lacks {len(missing):,} of {len(files):,} files, such as "
            f"{show(missing[0].name)}: add them, with the names that the inputs have"
        )


# Images into what a network takes, and back


class Rules:
    """How images of any size and colour become what a network takes.

    Args:
      model: the network.
      name: what the user calls it.
      sizes: what is done with images of another size.
    """

    def __init__(self, model: Any, name: str, sizes: Literal["refuse", "fit", "tile"]) -> None:
        height, width, self.inputs = model.image_shape
        self.size = height, width
        self.outputs = model.out_channels or self.inputs
        self.name, self.sizes = name, sizes

    def channels(self, channels: int) -> int:
        """The channels of the result for an image of so many.

        Raises:
          InputError: the network makes nothing of it.
        """
        if channels == self.inputs:
            return self.outputs
        if {channels, self.inputs, self.outputs} <= {1, 3}:
            return max(channels, self.outputs) if self.inputs == 1 else channels
        rule = f"has {channels} channels, and {self.name} takes {self.inputs}"
        raise InputError(f"{rule}: give one with that many, or another --model")

    def check_size(self, height: int, width: int) -> None:
        """Raises an `InputError` if images of another size are to be refused."""
        if (height, width) != self.size and self.sizes == "refuse":
            raise InputError(
                f"is {width}x{height}, and {self.name} takes {self.size[1]}x{self.size[0]}: --tile "
                "restores it in overlapping tiles, --fit scales it to that size and back"
            )

    def colours_in(self, x: Values) -> Values:
        """Images as the network's inputs, the channels of an image one after the other if apart."""
        channels = x.shape[3]
        if channels == self.inputs:
            return x
        if self.inputs == 1 == self.outputs:
            return np.moveaxis(x, 3, 1).reshape(-1, *x.shape[1:3], 1)
        if self.inputs == 1:
            return x @ np.array(LUMA, np.float32)[:, None]
        return np.repeat(x, self.inputs, 3)

    def colours_out(self, x: Values, channels: int) -> Values:
        """The network's results for images of so many channels, as images."""
        if channels == self.inputs or self.inputs != self.outputs:
            return x
        if self.inputs == 1:
            return np.moveaxis(x.reshape(-1, channels, *x.shape[1:3]), 1, 3)
        return x.mean(3, keepdims=True)


class Work:
    """Images of one size on their way through a network.

    Args:
      images: uint8, uint16, or floating point in [0, 1].
      dtype: the type of the result.

    Raises:
      InputError: the rules say no.
    """

    def __init__(self, rules: Rules, images: Images, dtype: np.dtype) -> None:
        from jaxdae import tiling

        self.rules, self.images, self.dtype = rules, images, dtype
        self.count, height, width, self.channels = images.shape
        rules.check_size(height, width)
        channels = rules.channels(self.channels)
        other = (height, width) != rules.size
        self.tiled, self.fitted = other and rules.sizes == "tile", other and rules.sizes == "fit"
        shape = (height, width)
        self.shape = (self.count, height, width, channels)  # of the result
        self.groups = 1
        if self.tiled:
            self._padded = tiling.pad(images, rules.size)
            self._grid = tiling.Grid(self._padded.shape[1:3], rules.size)
            self._blend = tiling.Blend(self._grid, self.count)
            self.groups, shape = len(self._grid.rows), self._grid.shape
            self._row = 0
        self.result = np.empty((self.count, *shape, channels), dtype)
        self.left = self.groups

    def inputs(self) -> Iterator[Values]:
        """What the network is to be given, group by group."""
        from jaxdae import tiling

        for row in range(self.groups):
            if self.tiled:
                images = to_float(tiling.cut(self._padded, self._grid, row))
            else:
                images = to_float(self.images)
                images = tiling.fit(images, self.rules.size) if self.fitted else images
            yield self.rules.colours_in(images)

    def take(self, outputs: Values) -> None:
        """Takes what the network made of the next group."""
        from jaxdae import tiling

        outputs = self.rules.colours_out(outputs, self.channels)
        size = self.images.shape[1:3]
        if self.tiled:
            complete = self._blend.add(outputs)
            rows = slice(self._row, self._row + complete.shape[1])
            self.result[:, rows] = from_float(complete, self.dtype)
            self._row = rows.stop
        else:
            for rows in bands(size[0]):
                part = tiling.unfit(outputs, size, rows) if self.fitted else outputs[:, rows]
                self.result[:, rows] = from_float(part, self.dtype)
        self.left -= 1
        if not self.left:
            self.result = tiling.crop(self.result, size)


def to_float(images: Images) -> Values:
    """Images in [0, 1], float32."""
    if images.dtype.kind == "f":
        return images.astype(np.float32, copy=False)
    return images.astype(np.float32) / np.float32(np.iinfo(images.dtype).max)


def from_float(images: Values, dtype: np.dtype) -> Images:
    """Images in [0, 1] as another type, rounded if it is one of whole numbers."""
    images = np.clip(images, 0, 1)
    if dtype.kind == "f":
        return images.astype(dtype)
    return np.rint(images * np.float32(np.iinfo(dtype).max)).astype(dtype)


def to_bytes(image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
    """An image as uint8, rounded if it is of more than 8 bits."""
    if image.dtype == BYTES:
        return image
    rounded = np.empty(image.shape, BYTES)
    for rows in bands(len(image)):
        rounded[rows] = from_float(to_float(image[rows]), BYTES)
    return rounded


def bands(height: int) -> Iterator[slice]:
    """The rows of an image, some at a time: what is float32 then takes little memory."""
    return (slice(first, first + BAND) for first in range(0, height, BAND))


def add_noise(
    images: Images, name: str, first: int, sigma: float, mean: float, seed: int
) -> Values:
    """Images in [0, 1] with noise N(mean, sigma^2), clipped.

    The noise of an image depends on its path below --out, its place in its stack and the seed, and
    on no other image.
    """
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(text).digest()
    noisy = np.array(to_float(images), order="C", copy=images.dtype.kind == "f" or None)
    for i, image in enumerate(noisy, first):
        rng = np.random.default_rng([seed, i, *digest])
        for rows in bands(len(image)):
            part = image[rows]
            noise = rng.standard_normal(part.shape, np.float32)
            part += noise * np.float32(sigma) + np.float32(mean)
            np.clip(part, 0, 1, out=part)
    return noisy


# The work


class Item(NamedTuple):
    """Images that are restored together: of one file, or some of a stack.

    Fields:
      source: the file.
      name: for messages and metrics.
      images: as they were read.
      reference: the clean images, or None.
      picture: what the file was read as; None for a stack's.
      stack, array, first: where in a stack they are from.
    """

    source: Source
    name: str
    images: Images
    reference: Images | None
    picture: Picture | None = None
    stack: "StackWork | None" = None
    array: Array | None = None
    first: int = 0


class StackWork:
    """A stack that is being read and written."""

    def __init__(self, source: Source, target: Path, reference: Path | None) -> None:
        self._open = ExitStack()
        self.stack = self._open.enter_context(Stack(source.path))
        self.failed = self.whole = False
        try:
            self.other = self._open.enter_context(Stack(reference)) if reference else None
        except BaseException:
            self._open.close()
            raise
        self.source, self.target = source, target
        self.left = sum(array.shape[0] for array in self.stack.images)
        self.writer: Writer | None = None

    def items(self) -> Iterator[Item]:
        """All images, some at a time.

        Raises:
          InputError: they cannot be read, or the reference has others.
        """
        for array in self.stack.images:
            others = self._others(array)
            key, first = array.key.removesuffix(".npy"), 0
            name = f"{self.source.name}:{key}" if key else self.source.name
            for images in self.stack.read(array):
                clean = next(others) if others is not None else None
                yield Item(self.source, name, images, clean, None, self, array, first)
                first += len(images)

    def _others(self, array: Array) -> Iterator[Images] | None:
        if self.other is None:
            return None
        for other in self.other.images:
            if other.key == array.key and other.shape[:3] == array.shape[:3]:
                return self.other.read(other, self.stack.step(array))
        rule = f"the reference {self.other.what} has no array like"
        raise InputError(f"{rule} {self.stack.name(array)}: give one of its shape, {array.size}")

    def take(self, array: Array, images: Images) -> None:
        """Writes restored images; at the last, the file is whole."""
        if self.writer is None:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.part = part_of(self.target)
            self.writer = self._open.enter_context(Writer(self.stack, self.part))
        self.writer.add(array, images)
        self.left -= len(images)
        if not self.left:
            self._open.close()
            os.replace(self.part, self.target)
            self.whole = True

    def abandon(self) -> None:
        """Closes the files, and leaves nothing that is not whole."""
        self.failed = True
        with suppress(OSError):
            self._open.__exit__(InputError, None, None)  # the writer is not to add what is left
        if self.writer is not None and not self.whole:
            with suppress(OSError):
                self.part.unlink()


class Job:
    """Reads, restores and writes: threads decode and encode beside the network.

    Args:
      files: what is left to do.
      loaded: the network, of `load_model`.
      mean: of the noise that is added first; None for none.
    """

    def __init__(
        self, arguments: Arguments, files: Sequence[Source], loaded: Any, mean: float | None
    ) -> None:
        self.arguments, self.files, self.loaded, self.mean = arguments, files, loaded, mean
        sizes: Any = "tile" if arguments.tile else "fit" if arguments.fit else "refuse"
        self.rules = Rules(loaded.model, arguments.model, sizes)
        self.images = self.failed = 0
        self.sums: Counter[str] = Counter()
        self.rows: Any = None  # writes metrics.csv
        self._stacks: list[StackWork] = []
        self._finished: list[Callable[[], list[dict[str, Any]]]] = []
        self._finished_bytes = 0
        self._writing: deque[Future] = deque()

    def run(self) -> None:
        """Does all of it; `images` and `failed` say how much that was.

        Raises:
          OSError: a result cannot be written.
        """
        arguments, metrics = self.arguments, self.arguments.out / METRICS
        self._pool = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)))
        part = part_of(metrics)
        try:
            with ExitStack() as closing:
                if compares(arguments):
                    file = closing.enter_context(
                        part.open("w", newline="", encoding="utf-8", errors="surrogateescape")
                    )
                    self.rows = csv.DictWriter(file, COLUMNS)
                    self.rows.writeheader()
                self._show = closing.enter_context(self._bar())
                self._restore()
                self._write()
                while self._writing:
                    self._collect()
            if self.rows and self.images:
                os.replace(part, metrics)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            for stack in self._stacks:
                stack.abandon()
            if self.rows:
                part.unlink(missing_ok=True)

    def _restore(self) -> None:
        import jax

        from jaxdae.inference import denoise, stream

        model, (height, width) = self.loaded.model, self.rules.size
        piece = max(1, CACHED_PIXELS // (height * width))
        several = self.arguments.tile or len(self.files) > piece or any(f.stack for f in self.files)
        network = jax.jit(lambda params, images: denoise(model, params, images, piece=piece))
        apply = functools.partial(network, jax.device_put(self.loaded.params))
        for (item, work), outputs in stream(apply, self._groups(), piece * (8 if several else 1)):
            if item.stack is not None and item.stack.failed:
                continue
            work.take(outputs)
            self._show(work.count / work.groups)
            if not work.left:
                self._finish(item, work)

    def _groups(self) -> Iterator[tuple[tuple[Item, Work], Values]]:
        """What the network is to be given, with what it is of."""
        sigma, seed = self.arguments.noise_sigma, self.arguments.seed
        for item in self._items():
            images = item.images
            try:
                if sigma is not None and self.mean is not None:
                    images = add_noise(images, item.name, item.first, sigma, self.mean, seed)
                work = Work(self.rules, images, item.images.dtype)
                if item.reference is not None and item.reference.shape != work.shape:
                    raise InputError(
                        f"would be {_size(work.shape)}, and its reference is "
                        f"{_size(item.reference.shape)}: give one of that size"
                    )
            except InputError as error:
                self._fail(item.source, f"{show(item.source.path)} {error}", item.stack)
                continue
            for inputs in work.inputs():
                yield (item, work), inputs

    def _items(self) -> Iterator[Item]:
        """All images, in the order of the files, one group of files being decoded ahead."""
        groups = deque(_grouped(self.files))
        ahead: deque[Any] = deque()
        while groups or ahead:
            while groups and len(ahead) < 2:
                group = groups.popleft()
                stack = group[0].stack
                ahead.append(group[0] if stack else self._pool.submit(self._read, group))
            first = ahead.popleft()
            if isinstance(first, Source):
                yield from self._stack(first)
                continue
            found, rest = first.result()
            if rest:
                ahead.appendleft(self._pool.submit(self._read, rest))
            while found:  # each let go of as it is used
                source, item = found.popleft()
                if isinstance(item, Item):
                    yield item
                else:
                    self._fail(source, str(item))

    def _read(
        self, group: Sequence[Source]
    ) -> tuple[deque[tuple[Source, Item | InputError]], Sequence[Source]]:
        """The first of a group of image files, up to a number of bytes, and the files left."""
        found: deque[tuple[Source, Item | InputError]] = deque()
        size = 0
        for i, source in enumerate(group):
            if size > GROUP_BYTES:
                return found, group[i:]
            try:
                picture = read(source.path)
                # A size that will be refused is not worth its place in memory, nor a reference.
                self.rules.check_size(*picture.pixels.shape[:2])
                reference = self._clean(source, picture)
                pixels = picture.pixels[None]
                item = Item(source, source.name, pixels, reference, picture)
                size += pixels.nbytes
                found.append((source, item))
            except InputError as error:
                what = (
                    str(error)
                    if show(source.path) in str(error)
                    else f"{show(source.path)} {error}"
                )
                found.append((source, InputError(what)))
        return found, ()

    def _clean(self, source: Source, picture: Picture) -> Images | None:
        place = self.arguments.reference
        if place is not None:
            return read(_reference(place, source)).pixels[None]
        return picture.pixels[None] if self.mean is not None else None

    def _stack(self, source: Source) -> Iterator[Item]:
        stack, place = None, self.arguments.reference
        try:
            reference = None if place is None else _reference(place, source)
            stack = StackWork(source, self.arguments.out / source.name, reference)
            self._stacks.append(stack)
            self._show(0, stack.left - 1)  # it was taken for one
            for item in stack.items():
                if stack.failed:
                    return
                clean = item.images if self.mean is not None and place is None else item.reference
                yield item._replace(reference=clean)
        except InputError as error:
            self._fail(source, str(error), stack)

    def _fail(self, source: Source, error: str, stack: StackWork | None = None) -> None:
        """Names a file that cannot be restored, and goes on."""
        if stack is not None:
            if stack.failed:
                return
            stack.abandon()
        else:
            self._show(1)
        self.failed += 1
        if self.failed <= SAID:
            print(f"error: {error}", file=sys.stderr)

    def _finish(self, item: Item, work: Work) -> None:
        """Has restored images written."""
        if item.stack is not None and item.array is not None:
            try:
                item.stack.take(item.array, work.result)
            except InputError as error:
                self._fail(item.source, str(error), item.stack)
                return
        self._finished.append(functools.partial(conclude, self.arguments, item, work))
        self._finished_bytes += work.result.nbytes + work.images.nbytes
        if len(self._finished) >= GROUP or self._finished_bytes > GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        """Gives what is finished to a thread, once an earlier one has ended."""
        while len(self._writing) > 1:
            self._collect()
        self._writing.append(self._pool.submit(_all, self._finished))
        self._finished, self._finished_bytes = [], 0

    def _collect(self) -> None:
        for result in self._writing.popleft().result():
            if isinstance(result, Failure):
                self._fail(result.source, str(result))
                continue
            self.images += len(result)
            for row in result:
                if self.rows and row:
                    self.rows.writerow(
                        {k: v if k == "image" else f"{v:.6g}" for k, v in row.items()}
                    )
                    self.sums.update({k: v for k, v in row.items() if k != "image"})

    @contextmanager
    def _bar(self) -> Iterator[Callable[..., None]]:
        """A progress bar, and the function that moves it: by images, and of more of them."""
        if not (self.arguments.progress and sys.stderr.isatty()):
            yield lambda images, more=0: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  {task.fields[status]}"),
            TimeRemainingColumn(),
        )
        # Where the errors go: lines and bar must not mix.
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=len(self.files), status="")
            begun, total = time.perf_counter(), len(self.files)
            done = 0.0

            def show_images(images: float, more: int = 0) -> None:
                nonlocal done, total
                done, total = done + images, total + more
                speed = done / (time.perf_counter() - begun)
                status = f"{done:,.0f} of {total:,} images  {speed:,.0f} images/s"
                bar.update(task, completed=done, total=total, status=status)

            yield show_images


class Failure(InputError):
    """Why a file could not be written."""

    def __init__(self, source: Source, why: str) -> None:
        super().__init__(why)
        self.source = source


def _all(calls: Sequence[Callable[[], list[dict[str, Any]]]]) -> list[Any]:
    """What each call returns, or the failure that it raises."""
    results: list[Any] = []
    for call in calls:
        try:
            results.append(call())
        except Failure as failure:
            results.append(failure)
    return results


def _grouped(files: Sequence[Source]) -> Iterator[list[Source]]:
    """The files in their order: image files by some, stacks one by one."""
    group: list[Source] = []
    for file in files:
        if group and (file.stack or group[0].stack or len(group) == GROUP):
            yield group
            group = []
        group.append(file)
    yield group


def _size(shape: Sequence[int]) -> str:
    """How the size of images is spoken of."""
    return f"{shape[2]}x{shape[1]} in {'RGB' if shape[3] == 3 else 'gray'}"


def conclude(arguments: Arguments, item: Item, work: Work) -> list[dict[str, Any]]:
    """Writes restored images, if they are a file of their own, and compares them.

    Returns:
      For each image its row of metrics.csv; an empty one without a reference.

    Raises:
      Failure: the file's format cannot hold them.
    """
    from jaxdae import metrics

    if item.picture is not None:
        try:
            data = encode(item.picture._replace(pixels=work.result[0]))
        except InputError as error:
            raise Failure(item.source, f"{show(item.source.path)}: {error}") from None
        write_whole(arguments.out / item.source.name, data)
    rows = []
    for i, (before, after) in enumerate(zip(work.images, work.result, strict=True)):
        clean = None if item.reference is None else item.reference[i]
        number = item.first + i
        row: dict[str, Any] = {}
        if clean is not None:
            row["image"] = item.name if item.picture is not None else f"{item.name}[{number}]"
            given = np.broadcast_to(before, clean.shape)  # gray to RGB
            for when, image in (("before", given), ("after", after)):
                values = metrics.of_image(image, clean)
                row |= {f"{name}_{when}": value for name, value in values.items()}
        rows.append(row)
        if arguments.side_by_side is not None:
            shown = [before, after] if clean is None else [before, after, clean]
            name = f"{item.source.name}.png"
            if item.array is not None:  # whose name may be any, even a path
                key = re.sub(r"\W", "-", item.array.key.removesuffix(".npy"))
                name = f"{item.source.name}/{key}{'-' if key else ''}{number:05}.png"
            picture = Picture(beside([to_bytes(image) for image in shown]))
            write_whole(arguments.side_by_side / name, encode(picture))
    return rows


def beside(images: Sequence[Shaped[np.ndarray, "h w c"]]) -> Shaped[np.ndarray, "h2 w2 c"]:
    """Bytes of images in a row, white between them, small ones enlarged by a whole number."""
    height, width, _ = images[0].shape
    channels = max(image.shape[2] for image in images)
    gap = np.full((height, max(1, width // 14), channels), 255, np.uint8)
    parts = [gap]
    for image in images:
        parts += [gap, np.broadcast_to(image, (height, width, channels))]
    scale = max(1, 110 // max(height, width))
    row = np.concatenate(parts[2:], 1)
    return row if scale == 1 else row.repeat(scale, 0).repeat(scale, 1)


def part_of(path: Path) -> Path:
    """A name beside a file, for what is not whole yet."""
    return path.with_name(f".{os.getpid()}-{next(_parts)}.part")


_parts = itertools.count()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, and the folders above it, whole or not at all."""
    part = part_of(path)
    try:
        try:
            file = part.open("wb")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = part.open("wb")
        with file:
            file.write(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def noise_mean(card: Mapping[str, Any], name: str) -> float:
    """The mean of the noise that a model was trained to remove.

    Raises:
      InputError: it removes something else.
    """
    recipe = card.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    mean, corruption = recipe.get("mean"), recipe.get("corruption", "gaussian")
    if corruption != "gaussian" or not isinstance(mean, int | float):
        undone = corruption if corruption != "gaussian" else "other things"
        raise InputError(
            f"--noise-sigma adds gaussian noise, and --model {name} was trained to undo {undone}: "
            "leave it out, or choose another --model"
        )
    return float(mean)


def run(arguments: Arguments) -> int:
    """Restores, and prints what came of it: 0 all is done, 2 some files could not be restored.

    Raises:
      InputError: what keeps all from being restored.
    """
    begun = time.perf_counter()
    files = sources(arguments)
    check_references(arguments, files)
    todo = left_to_do(arguments, files)
    out = arguments.out
    if not todo:
        print(f"all {len(files):,} results exist in {out}/: nothing to do")
        return 0
    warnings.simplefilter("ignore")  # of image files, which are read or refused
    cli.prepare_jax(1, arguments.cache)
    from .models import load_model

    loaded = load_model(arguments.model)
    mean = None
    if arguments.noise_sigma is not None:
        mean = noise_mean(loaded.card, arguments.model)
    try:
        write_whole(probe := out / ".writable", b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--out {show(out)} cannot be written to ({error}): choose another"
        ) from None
    # What it was trained for, and beyond that, what is known to go wrong.
    told = ["about"] + ["limits"] * (arguments.tile or arguments.fit)
    about = " ".join(" ".join(str(loaded.card.get(key, "")).split()) for key in told).strip()
    if about:
        print(f"{arguments.model}: {about}", flush=True)
    with Guard(lambda: f": every file in {out} is whole; --skip-existing goes on with the others"):
        job = Job(arguments, todo, loaded, mean)
        job.run()
    report(job, len(todo), time.perf_counter() - begun)
    if job.failed:
        more = f", the first {SAID} named above" if job.failed > SAID else ""
        print(
            f"error: {job.failed:,} of {len(todo):,} files could not be restored{more}: mend or "
            "remove them, and run this again",
            file=sys.stderr,
        )
    return 2 if job.failed else 0


def report(job: Job, files: int, seconds: float) -> None:
    """Prints what was done, if anything was."""
    if not job.images:
        return
    if job.rows:
        means = {name: total / job.images for name, total in job.sums.items()}
        changes = [
            f"{name} {style.format(means[f'{name}_before'])} -> "
            f"{style.format(means[f'{name}_after'])}"
            for name, style in (("mse", "{:.5f}"), ("psnr", "{:.2f}"), ("ssim", "{:.4f}"))
        ]
        print(f"{', '.join(changes)}: means; each image's in {job.arguments.out / METRICS}")
    done = counted(files - job.failed, "file")
    images = "" if done == counted(job.images, "file") else f"{counted(job.images, 'image')} of "
    print(f"{images}{done} restored in {seconds:.1f} s; all in {job.arguments.out}/")


def counted(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input or files that could not be restored, 130 or 143 stopped."""

    def work() -> int:
        return run(parse(sys.argv[1:] if argv is None else argv))

    return cli.status(work, "mend that, and go on with --skip-existing")


if __name__ == "__main__":
    sys.exit(main())
