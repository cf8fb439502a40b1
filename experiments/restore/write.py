"""Writes denoised images, compares them with their references, and shows them side by side."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxdae.errors import InputError, show
from jaxdae.files import replacing
from jaxdae.image_io.pillow import Picture, write

from .adapt import Work, to_uint8
from .arguments import Arguments
from .sources import Source
from .stacks import Item

COLUMNS = (
    "image",
    *(f"{m}_{when}" for when in ("before", "after") for m in ("mse", "psnr", "ssim")),
)


class WriteError(InputError):
    """A file could not be written in its format."""

    def __init__(self, source: Source, message: str) -> None:
        super().__init__(message)
        self.source = source


def write_item(arguments: Arguments, item: Item, work: Work) -> list[dict[str, Any]]:
    """Writes the denoised image of a file, and compares images with their references.

    The images of a stack are written by `StackWork.write`.

    Returns:
      For each image its row of metrics.csv; an empty row without a reference.

    Raises:
      WriteError: the file's format cannot hold the image.
    """
    if item.picture is not None:
        # A gray image in an RGB file stays in RGB.
        channels = max(work.result.shape[3], item.picture.pixels.shape[2])
        pixels = np.broadcast_to(work.result[0], (*work.result.shape[1:3], channels))
        try:
            with replacing(arguments.out / item.source.name) as path, path.open("wb") as file:
                write(item.picture._replace(pixels=pixels), file)
        except InputError as error:
            raise WriteError(item.source, f"{show(item.source.path)}: {error}") from None
    rows = []
    for i, (before, after) in enumerate(zip(work.images, work.result, strict=True)):
        clean = None if item.reference is None else item.reference[i]
        number = item.first + i
        row: dict[str, Any] = {}
        if clean is not None:
            from jaxdae import metrics  # it takes long to import

            row["image"] = item.name if item.picture is not None else f"{item.name}[{number}]"
            before_like_clean = np.broadcast_to(before, clean.shape)  # gray to RGB
            for when, image in (("before", before_like_clean), ("after", after)):
                values = metrics.of_image(image, clean)
                row |= {f"{name}_{when}": value for name, value in values.items()}
        rows.append(row)
        if arguments.side_by_side is not None:
            shown = [before, after] if clean is None else [before, after, clean]
            picture = Picture(beside([to_uint8(image) for image in shown]))
            target = arguments.side_by_side / picture_name(item, number)
            with replacing(target) as path, path.open("wb") as file:
                write(picture, file)
    return rows


def picture_name(item: Item, number: int) -> str:
    """The path of a picture of an image, relative to --side-by-side."""
    if item.array is None:
        return f"{item.source.name}.png"
    # The key of an array may be any text, even a path.
    key = re.sub(r"\W", "-", item.array.key.removesuffix(".npy"))
    return f"{item.source.name}/{key}{'-' if key else ''}{number:05}.png"


def beside(images: Sequence[Shaped[np.ndarray, "h w c"]]) -> Shaped[np.ndarray, "h2 w2 c"]:
    """Images (uint8) in a row with white gaps; small ones are enlarged by a whole number."""
    height, width, _ = images[0].shape
    channels = max(image.shape[2] for image in images)
    gap = np.full((height, max(1, width // 14), channels), 255, np.uint8)
    parts = [gap]
    for image in images:
        parts += [gap, np.broadcast_to(image, (height, width, channels))]
    scale = max(1, 110 // max(height, width))
    row = np.concatenate(parts[2:], 1)
    return row if scale == 1 else row.repeat(scale, 0).repeat(scale, 1)
