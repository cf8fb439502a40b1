"""The work of `denoise`: files are read, restored in batches and written, by threads."""

import csv
import functools
import itertools
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxdae.errors import InputError, show
from jaxdae.image_io.pillow import Picture, encode, read
from jaxdae.image_io.stacks import Array, Stack, Writer

from .adapt import CACHED_PIXELS, Images, Rules, Values, Work, add_noise, to_bytes
from .arguments import METRICS, Arguments, compares
from .sources import Source, reference_of

COLUMNS = (
    "image",
    *(f"{m}_{when}" for when in ("before", "after") for m in ("mse", "psnr", "ssim")),
)


SAID = 10  # files that could not be restored are named, so many


GROUP, GROUP_BYTES = 64, 1 << 24  # files that one thread reads or writes at a time, at the most


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
            return read(reference_of(place, source)).pixels[None]
        return picture.pixels[None] if self.mean is not None else None

    def _stack(self, source: Source) -> Iterator[Item]:
        stack, place = None, self.arguments.reference
        try:
            reference = None if place is None else reference_of(place, source)
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
