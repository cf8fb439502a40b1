"""Pictures of denoised photographs: crops side by side, a row for each image."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.photo_protocol import Bytes
from jaxdae import metrics
from jaxdae.files import write_whole

SIDE, SCALE = 88, 2  # of a crop, in pixels; and how many pixels of the picture make one of them
MOST = 300_000  # bytes of a file
GAP, LINE = 6, 20  # between crops; the height of a line of text
FONT = 14


def busiest(image: Bytes, side: int = SIDE) -> tuple[slice, slice]:
    """The square with the most texture: the largest sum of differences between neighbours.

    Args:
      image: at least `side` pixels high and wide, or the square is as large as fits.
      side: of the square, in pixels.

    Returns:
      Its rows and columns.
    """
    gray = image.astype(np.float64).mean(2)
    height, width = (min(side, length) for length in gray.shape)
    rows, columns = np.gradient(gray)
    total = np.zeros(np.add(gray.shape, 1))
    total[1:, 1:] = np.hypot(rows, columns).cumsum(0).cumsum(1)
    sums = total[height:] - total[:-height]
    sums = sums[:, width:] - sums[:, :-width]
    top, left = (int(place) for place in np.unravel_index(sums.argmax(), sums.shape))
    return slice(top, top + height), slice(left, left + width)


def draw(path: Path, rows: Sequence[Mapping[str, Bytes]], side: int = SIDE) -> None:
    """Draws the busiest crop of each image, with labels, and the PSNR of each crop.

    If the file would be larger than `MOST`, the last images are left out.

    Args:
      path: of the PNG file.
      rows: for each image, label to version: the same labels in all rows, and all versions of one
        size. The last one is the clean image.
    """
    from PIL import Image, ImageDraw, ImageFont

    labels, cell = list(rows[0]), side * SCALE
    size = len(labels) * (cell + GAP) - GAP, LINE + len(rows) * (cell + LINE)
    sheet = Image.new("RGB", size, "white")
    text, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)

    def write(column: int, top: int, words: str) -> None:
        place = column * (cell + GAP) + cell // 2, top + LINE // 2
        text.text(place, words, "black", font, anchor="mm")

    for column, name in enumerate(labels):
        write(column, 0, name)
    for i, row in enumerate(rows):
        top, (*_, clean) = LINE + i * (cell + LINE), row.values()
        crop = busiest(clean, side)
        for column, version in enumerate(row.values()):
            part = np.broadcast_to(version[crop], (*version[crop].shape[:2], 3))
            enlarged = part.repeat(SCALE, 0).repeat(SCALE, 1)
            sheet.paste(Image.fromarray(enlarged), (column * (cell + GAP), top))
            if version is not clean:
                psnr = metrics.of_image(version[crop], clean[crop])["psnr"]
                write(column, top + cell, f"{psnr:.2f} dB")
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    if len(file.getvalue()) > MOST and len(rows) > 1:
        draw(path, rows[:-1], side)
    else:
        write_whole(path, file.getvalue())
