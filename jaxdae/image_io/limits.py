"""Which images are too large to be read.

A few bytes can promise any number of pixels (a decompression bomb), so a file's header is checked
before anything is decoded. Images of up to `SMALL_PIXELS` are always read. A larger one must fulfil
two rules:

- Uncompressed it has at most `RATIO` times the bytes of its file. A JPEG of one colour reaches 192
  times, with optimised tables 511; a PNG of a starry sky 454, of a printed page 563, of one colour
  1,030; a WebP of one colour 75,000.
- It takes at most a `MEMORY_SHARE`th of the memory: several copies must fit.
"""

import functools
import os
from pathlib import Path

from jaxdae.errors import InputError

SMALL_PIXELS = 1 << 25
RATIO = 600
MEMORY_SHARE = 8
UNKNOWN_MEMORY = 8 << 30  # bytes that are assumed where the system does not say


class TooLarge(InputError):
    """An image that is refused for its size.

    Attributes:
      pixels: the `max_pixels` with which it would be read.
    """

    def __init__(self, message: str, pixels: int) -> None:
        super().__init__(message)
        self.pixels = pixels


def check_size(
    what: str,
    width: int,
    height: int,
    bits: int,
    file_bytes: int | None,
    max_pixels: int = SMALL_PIXELS,
) -> None:
    """Checks an image before it is decoded.

    Args:
      what: the image, for messages.
      bits: of a pixel.
      file_bytes: of the compressed image; None if it is not compressed.
      max_pixels: images of at most so many pixels pass in any case.

    Raises:
      TooLarge: the image breaks a rule.
    """
    pixels = width * height
    if pixels <= max_pixels:
        return
    found, size = f"{what} is {width}x{height}", pixels * bits // 8
    above = f"images above {max_pixels:,} pixels may have at most"
    if file_bytes is not None and size > RATIO * file_bytes:
        raise TooLarge(
            f"{found}, {size:,} bytes from {file_bytes:,} in its file, but {above} {RATIO} times "
            "as many: cut or shrink it",
            pixels,
        )
    size, most = pixels * max(1, bits // 8), memory() // MEMORY_SHARE
    if size > most:
        raise TooLarge(
            f"{found}, {size:,} bytes, but {above} 1/{MEMORY_SHARE} of the memory, {most:,}: cut "
            "or shrink it",
            pixels,
        )


@functools.cache
def memory() -> int:
    """The bytes of memory that this machine, or its container, has."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        found = UNKNOWN_MEMORY
    try:
        return min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return found
