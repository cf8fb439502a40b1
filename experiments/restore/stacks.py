"""A stack of images that is read and written a few images at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, Union

from jaxdae.errors import InputError
from jaxdae.files import replacing
from jaxdae.image_io.numpy_stacks import Array, Stack, Writer
from jaxdae.image_io.pillow import Picture

from .adapt import Images
from .sources import Source


class Item(NamedTuple):
    """Images that are denoised together: the image of a file, or some images of a stack.

    Fields:
      source: the file.
      name: for messages and metrics.csv.
      images: as they were read.
      reference: the clean images, or None.
      picture: the file as it was read; None for a stack. If its three channels are equal, `images`
        may hold only one of them.
      stack, array, first: the stack, the array in it, and the index of the first image.
    """

    source: Source
    name: str
    images: Images
    reference: Images | None
    picture: Picture | None = None
    stack: Union["StackWork", None] = None
    array: Array | None = None
    first: int = 0


class StackWork:
    """A stack that is being read, and its result that is being written.

    Attributes:
      left: the number of images that are not written yet.
      failed: True after `abandon`.

    Raises:
      InputError: the stack or its reference cannot be read.
    """

    def __init__(
        self, source: Source, target: Path, reference: Path | None, max_pixels: int
    ) -> None:
        self._open = ExitStack()
        self.stack = self._open.enter_context(Stack(source.path, max_pixels))
        self.failed = False
        try:
            self.clean = None
            if reference is not None:
                self.clean = self._open.enter_context(Stack(reference, max_pixels))
        except BaseException:
            self._open.close()
            raise
        self.source, self.target = source, target
        self.left = sum(array.shape[0] for array in self.stack.images)
        self.writer: Writer | None = None

    def items(self) -> Iterator[Item]:
        """All images, a few at a time.

        Raises:
          InputError: they cannot be read, or the reference has no such images.
        """
        for array in self.stack.images:
            references = self._references(array)
            key, first = array.key.removesuffix(".npy"), 0
            name = f"{self.source.name}:{key}" if key else self.source.name
            for images in self.stack.read(array):
                reference = next(references) if references is not None else None
                yield Item(self.source, name, images, reference, None, self, array, first)
                first += len(images)

    def _references(self, array: Array) -> Iterator[Images] | None:
        if self.clean is None:
            return None
        for other in self.clean.images:
            if other.key == array.key and other.shape[:3] == array.shape[:3]:
                return self.clean.read(other, self.stack.step(array))
        rule = f"the reference {self.clean.what} has no array like"
        raise InputError(f"{rule} {self.stack.name(array)}: give one of its shape, {array.size}")

    def write(self, array: Array, images: Images) -> None:
        """Writes denoised images. After the last ones the file is moved to its place."""
        if self.writer is None:
            temporary = self._open.enter_context(replacing(self.target))
            self.writer = self._open.enter_context(Writer(self.stack, temporary))
        self.writer.add(array, images)
        self.left -= len(images)
        if not self.left:
            self._open.close()

    def abandon(self) -> None:
        """Closes the files. A result that is not complete is removed."""
        self.failed = True
        error = InputError("abandoned")  # the writer does not copy the rest, and nothing is moved
        with suppress(OSError):
            self._open.__exit__(type(error), error, None)
