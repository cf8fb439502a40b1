"""The work of `denoise`: threads read and write files while the network denoises batches."""

import csv
import functools
import io
import itertools
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rich.console import Console

from jaxdae.errors import InputError, show
from jaxdae.files import write_whole
from jaxdae.image_io.limits import TooLarge
from jaxdae.image_io.pillow import Picture, read

from ..common.progress import progress_bar
from .adapt import Images, Values, Work, add_noise, is_gray
from .arguments import METRICS, Arguments
from .networks import Network, Networks
from .sources import Source, reference_of
from .stacks import Item, StackWork
from .write import COLUMNS, WriteError, write_item

BATCH_PIXELS = 1 << 21  # of a stack that the network gets at once, at most
SMALL = 16  # so many images fit the caches: what fills up an incomplete batch takes little time
MAX_ERRORS = 10  # errors that are printed
GROUP, GROUP_BYTES = 64, 1 << 24  # files that a thread reads or writes at once, at most
LARGE = 1 << 26  # bytes; larger images are read when it is their turn, and written one by one

Rows = list[dict[str, Any]]
Given = tuple[Item, Network, Work]


class Job:
    """Reads, denoises and writes files.

    Args:
      files: the files to denoise.
      networks: what denoises them.

    Attributes:
      images: the number of images that are denoised.
      failed: the number of files that could not be denoised.
      sums: over all images, the sum of each column of metrics.csv.
    """

    def __init__(self, arguments: Arguments, files: Sequence[Source], networks: Networks) -> None:
        self.arguments, self.files, self.networks = arguments, files, networks
        self.images = self.failed = 0
        self.sums: Counter[str] = Counter()
        self._stacks: list[StackWork] = []
        self._finished: list[tuple[Network, Callable[[], Rows]]] = []  # calls that write
        self._finished_bytes = 0
        self._writing: deque[Future] = deque()
        self._table = io.StringIO(newline="")
        self._rows = csv.DictWriter(self._table, COLUMNS)

    def run(self) -> None:
        """Denoises all files.

        Raises:
          OSError: a result cannot be written.
        """
        self._pool = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)))
        self._begun, self._done, self._total = time.perf_counter(), 0.0, len(self.files)
        self._rows.writeheader()
        console = Console(stderr=True)  # where the errors go
        try:
            with progress_bar(self._total, self.arguments.progress, console) as self._change_bar:
                self._denoise()
                self._write()
                while self._writing:
                    self._collect()
            if self.arguments.compares and self.images:
                table = self._table.getvalue().encode(errors="surrogateescape")
                write_whole(self.arguments.out / METRICS, table)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            for stack in self._stacks:
                stack.abandon()

    def _denoise(self) -> None:
        """Passes batches of all files through their networks."""
        from jaxdae.inference import stream

        def alike(pair: tuple[Given, Values]) -> tuple[Network, bool, int, tuple[int, ...]]:
            (item, network, work), inputs = pair
            narrow = network.narrows(work.dtype)
            return network, narrow, self._batch(item, network, inputs), inputs.shape[1:3]

        # Each size of a batch is compiled.
        for (network, narrow, batch, _), inputs in itertools.groupby(self._inputs(), alike):
            apply = functools.partial(network.apply, narrow=narrow)
            for (item, _, work), outputs in stream(apply, inputs, batch):
                if item.stack is not None and item.stack.failed:
                    continue
                work.take(outputs)
                self._advance(work.count / work.groups)
                if not work.left:
                    self._finish(item, network, work)

    def _batch(self, item: Item, network: Network, inputs: Values) -> int:
        """The number of inputs to denoise at a time."""
        piece = network.piece(inputs)
        if network.rules.size:  # all inputs have one shape
            many = self.arguments.tile or len(self.files) > piece
            return piece * (8 if many or any(file.is_stack for file in self.files) else 1)
        if item.array is None:  # files of one size in a row may be few
            return piece if piece >= SMALL else 1
        height, width = inputs.shape[1:3]
        pieces = max(1, min(8, BATCH_PIXELS // (piece * height * width)))
        return min(item.array.shape[0], piece * pieces)

    # Reading

    def _inputs(self) -> Iterator[tuple[Given, Values]]:
        """The inputs of the networks, with the images that they belong to."""
        sigma, seed = self.arguments.noise_sigma, self.arguments.seed
        for item in self._items():
            images = item.images
            try:
                network = self.networks.for_images(images)
                if sigma is not None and network.mean is not None:
                    images = add_noise(images, item.name, item.first, sigma, network.mean, seed)
                work = Work(network.rules, images, item.images.dtype, self.arguments.blend)
                if item.reference is not None and item.reference.shape != work.shape:
                    raise InputError(
                        f"would be {_size(work.shape)}, but its reference is "
                        f"{_size(item.reference.shape)}: give a reference of that size"
                    )
            except InputError as error:
                self._fail(item.source, f"{show(item.source.path)} {error}", item.stack)
                continue
            for inputs in work.inputs():
                yield (item, network, work), inputs

    def _items(self) -> Iterator[Item]:
        """The images of all files, in order. One group of files is read ahead, if it is small."""
        groups = deque(_grouped(self.files))
        ahead: deque[Any] = deque()  # a stack, or the future of a group of image files
        large = False
        while groups or ahead:
            while groups and len(ahead) < (1 if large else 2):
                group = groups.popleft()
                is_stack = group[0].is_stack
                ahead.append(group[0] if is_stack else self._pool.submit(self._read, group))
            first = ahead.popleft()
            if isinstance(first, Source):
                yield from self._stack_items(first)
                continue
            found, rest = first.result()
            large = sum(item.images.nbytes for _, item in found if isinstance(item, Item)) > LARGE
            if rest and not large:
                ahead.appendleft(self._pool.submit(self._read, rest))
            while found:  # popleft frees the memory of each image after its use
                source, item = found.popleft()
                if isinstance(item, Item):
                    yield item
                else:
                    self._fail(source, str(item))
            if rest and large:
                ahead.appendleft(self._pool.submit(self._read, rest))

    def _read(
        self, group: Sequence[Source]
    ) -> tuple[deque[tuple[Source, Item | InputError]], Sequence[Source]]:
        """Reads the first image files of a group, up to `GROUP_BYTES`; returns the files left."""
        found: deque[tuple[Source, Item | InputError]] = deque()
        size = 0
        for i, source in enumerate(group):
            if size > GROUP_BYTES:
                return found, group[i:]
            try:
                picture = read(source.path, self.arguments.max_pixels)
                # Before the reference is read: an image that is refused needs none.
                self.networks.check_size(*picture.pixels.shape[:2])
                pixels = self._gray_alone(picture)
                reference = self._reference(source, pixels)
                found.append((source, Item(source, source.name, pixels, reference, picture)))
                size += pixels.nbytes
            except InputError as error:
                path, message = show(source.path), _with_flag(error)
                message = message if path in message else f"{path} {message}"
                found.append((source, InputError(message)))
        return found, ()

    def _gray_alone(self, picture: Picture) -> Images:
        """The pixels of a picture: one channel if they are gray in an RGB file."""
        pixels = picture.pixels[None]
        return pixels[..., :1] if self.networks.gray_alone and is_gray(pixels) else pixels

    def _reference(self, source: Source, pixels: Images) -> Images | None:
        folder = self.arguments.reference
        if folder is None:
            return pixels if self.arguments.noise_sigma is not None else None
        picture = read(reference_of(folder, source), self.arguments.max_pixels)
        return self._gray_alone(picture) if pixels.shape[3] == 1 else picture.pixels[None]

    def _stack_items(self, source: Source) -> Iterator[Item]:
        stack, folder = None, self.arguments.reference
        try:
            reference = None if folder is None else reference_of(folder, source)
            target = self.arguments.out / source.name
            stack = StackWork(source, target, reference, self.arguments.max_pixels)
            self._stacks.append(stack)
            self._advance(0, stack.left - 1)  # it was counted as one image
            for item in stack.items():
                if stack.failed:
                    return
                itself = self.arguments.noise_sigma is not None and folder is None
                yield item._replace(reference=item.images) if itself else item
        except InputError as error:
            self._fail(source, _with_flag(error), stack)

    # Writing

    def _finish(self, item: Item, network: Network, work: Work) -> None:
        """Takes denoised images, to be written by a thread."""
        if item.stack is not None and item.array is not None:
            try:
                item.stack.write(item.array, work.result)
            except InputError as error:
                self._fail(item.source, str(error), item.stack)
                return
        write = functools.partial(write_item, self.arguments, item, work)
        self._finished.append((network, write))
        self._finished_bytes += work.result.nbytes + work.images.nbytes
        if len(self._finished) >= GROUP or self._finished_bytes > GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        """Gives the finished images to a thread. At most two threads write at once."""
        while len(self._writing) > (0 if self._finished_bytes > LARGE else 1):
            self._collect()
        self._writing.append(self._pool.submit(_call_all, self._finished))
        self._finished, self._finished_bytes = [], 0

    def _collect(self) -> None:
        """Waits for the thread that writes longest, and takes the rows of metrics.csv."""
        for network, rows in self._writing.popleft().result():
            if isinstance(rows, WriteError):
                self._fail(rows.source, str(rows))
                continue
            self.images += len(rows)
            network.images += len(rows)
            for row in filter(None, rows):
                self._rows.writerow({k: v if k == "image" else f"{v:.6g}" for k, v in row.items()})
                self.sums.update({k: v for k, v in row.items() if k != "image"})

    def _fail(self, source: Source, error: str, stack: StackWork | None = None) -> None:
        """Prints why a file cannot be denoised."""
        if stack is not None:
            if stack.failed:
                return
            stack.abandon()
        else:
            self._advance(1)
        self.failed += 1
        if self.failed <= MAX_ERRORS:
            print(f"error: {error}", file=sys.stderr)

    def _advance(self, images: float, more: int = 0) -> None:
        """Moves the progress bar.

        Args:
          images: how many more are done.
          more: how many more there are in total.
        """
        self._done, self._total = self._done + images, self._total + more
        speed = self._done / (time.perf_counter() - self._begun)
        status = f"{self._done:,.0f} of {self._total:,} images  {speed:,.0f} images/s"
        self._change_bar(completed=self._done, total=self._total, status=status)


def _call_all(
    calls: Sequence[tuple[Network, Callable[[], Rows]]],
) -> list[tuple[Network, Rows | WriteError]]:
    """The results of the calls; a `WriteError` is returned, not raised."""
    results: list[tuple[Network, Rows | WriteError]] = []
    for network, call in calls:
        try:
            results.append((network, call()))
        except WriteError as error:
            results.append((network, error))
    return results


def _grouped(files: Sequence[Source]) -> Iterator[list[Source]]:
    """The files in order: groups of image files, and single stacks."""
    group: list[Source] = []
    for file in files:
        if group and (file.is_stack or group[0].is_stack or len(group) == GROUP):
            yield group
            group = []
        group.append(file)
    yield group


def _with_flag(error: InputError) -> str:
    """The message of an error; with the flag that allows an image that is too large."""
    if not isinstance(error, TooLarge):
        return str(error)
    return f"{error}, or give --max-pixels {error.pixels} if you trust it"


def _size(shape: Sequence[int]) -> str:
    """The size of images in messages."""
    return f"{shape[2]}x{shape[1]} in {'RGB' if shape[3] == 3 else 'gray'}"
