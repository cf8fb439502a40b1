"""Converts uploaded pictures and drawings to images of a network: uint8, of its size.

    digit(open_image(Path("photo.jpg")))     # uint8 (28, 28, 1), like MNIST's
    drawing([[(20, 10), (22, 90)]])          # uint8 (28, 28, 1), of a stroke
    scaled(open_image(path), (32, 32, 3))    # uint8 (32, 32, 3)

A digit is prepared as MNIST was: fitted into 20x20 pixels with its aspect ratio kept, and placed on
28x28 pixels so that its centre of mass is in the middle (LeCun, Bottou, Bengio and Haffner,
"Gradient-based learning applied to document recognition", 1998, section III.A).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from jaxdae.errors import InputError
from jaxdae.image_io.limits import TooLarge
from jaxdae.image_io.pillow import FORMATS, open_file

SIDE, BOX = 28, 20  # sides of an image, and of the box that its digit fills
PEN = 3.0  # width of a drawn stroke in pixels of 28x28: the median of MNIST's ones
THIN = 2.0  # thinner strokes of a picture are thickened to this width
LONGEST = 320  # larger pictures are shrunk to this side
CONTRAST = 0.1  # between digit and background; with less there is no digit
FINE = 8  # a stroke is drawn larger by this factor, then shrunk
SMALL = 25  # a drawing of a smaller extent, of 100, is not enlarged to fill the box
MAX_POINTS = 100_000  # of a drawing
Stroke = Sequence[tuple[float, float]]
Digit = UInt8[np.ndarray, "28 28 1"]
Ink = Float[np.ndarray, "height width"]


def open_image(path: Path) -> Image.Image:
    """Opens an image file as RGBA, upright by its EXIF data. Of several frames it takes the first.

    Raises:
      InputError: the format is unknown, the file is damaged, or the image is too large.
    """
    try:
        with warnings.catch_warnings(), open_file(path, what="this image") as file:
            warnings.simplefilter("ignore")
            file.draft("RGB", (2 * LONGEST, 2 * LONGEST))  # decodes a JPEG no larger than needed
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith(("I", "F")):  # 16 or 32 bits: stretch the range
                wide = np.nan_to_num(np.asarray(upright, np.float32), posinf=0, neginf=0)
                span = max(np.ptp(wide), 1e-30)
                upright = Image.fromarray(_to_uint8((wide - wide.min()) / span))
            return upright.convert("RGBA")
    except TooLarge:
        raise
    except Exception:  # damaged files raise many types
        raise not_readable() from None


def not_readable() -> InputError:
    """The error for a file that is no image."""
    formats = ", ".join(FORMATS[:-1])
    return InputError(f"this file is not a readable image: give a {formats} or {FORMATS[-1]} file")


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as uint8."""
    return np.rint(255 * values).astype(np.uint8)


def scaled(image: Image.Image, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    """The middle of an image, cropped to the aspect ratio of `shape` and scaled to it.

    Args:
      image: RGBA; transparent pixels become white.
      shape: (height, width, channels): 1 for gray, 3 for RGB.
    """
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    height, width, channels = shape
    fitted = ImageOps.fit(opaque.convert("L" if channels == 1 else "RGB"), (width, height))
    return np.asarray(fitted).reshape(shape)


def digit(image: Image.Image) -> Digit:
    """The digit in an image, light on dark, like MNIST's.

    The digit is what differs from the border, lighter or darker. An image of 28x28 with a darker
    border stays as it is.

    Args:
      image: RGBA; one digit on a plain background.

    Raises:
      InputError: nothing differs from the border.
    """
    exact = image.size == (SIDE, SIDE)
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    gray = _gray(image)
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    ground = np.median(border)
    low, high = np.percentile(gray, (0.1, 99.9))
    dark = ground - low > high - ground  # the digit is darker than the background
    if exact and not dark and high - ground >= CONTRAST:
        return _to_uint8(gray)[..., None]
    ink = ground - gray if dark else gray - ground
    # Paper is uneven: a difference as small as those along the border is no ink.
    floor = np.percentile(np.abs(border - ground), 90)
    peak = np.percentile(ink, 99.9)
    if peak - floor < CONTRAST:
        raise InputError(
            "this image shows no digit: give one with a clear contrast to a plain background"
        )
    ink = thickened(np.clip((ink - floor) / (peak - floor), 0, 1))
    rows, columns = _extent(ink)
    ink = ink[rows, columns].astype(np.float32)
    height, width = (max(1, round(BOX * side / max(ink.shape))) for side in ink.shape)
    small = np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR))
    return centred(small / small.max())


def _gray(image: Image.Image) -> Ink:
    """Gray values in [0, 1]. Transparent pixels become black or white, whichever differs more."""
    luma = np.asarray(image.convert("RGB").convert("L"), np.float32) / 255
    alpha = np.asarray(image.getchannel("A"), np.float32) / 255
    lightness = (luma * alpha).sum() / max(alpha.sum(), 1e-9)
    return luma * alpha + (1 - alpha) * (lightness < 0.5)


def thickened(ink: Ink) -> Ink:
    """Thickens strokes that would be thinner than `THIN` when the digit fills the box.

    Args:
      ink: in [0, 1]; at least one pixel of 0.5 or more.
    """
    solid = Image.fromarray(_to_uint8(ink >= 0.5))
    area, inner = (
        np.count_nonzero(np.asarray(x)) for x in (solid, solid.filter(ImageFilter.MinFilter(3)))
    )
    width = 2 * area / (area - inner)  # a stroke has two sides
    wanted = THIN / BOX * max(part.stop - part.start for part in _extent(ink))
    grow = round((wanted - width) / 2)  # on each side
    if grow < 1:
        return ink
    wide = Image.fromarray(_to_uint8(ink)).filter(ImageFilter.MaxFilter(2 * grow + 1))
    return np.asarray(wide, np.float32) / 255


def centred(ink: Ink) -> Digit:
    """Places ink of at most 28x28 so that its centre of mass is in the middle of 28x28."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    parts = []
    for axis, size in enumerate(ink.shape):
        centre = ink.sum(1 - axis) @ np.arange(size) / ink.sum()
        first = min(max(round(SIDE / 2 - centre), 0), SIDE - size)  # inside the image
        parts.append(slice(first, first + size))
    image[tuple(parts)] = _to_uint8(ink)
    return image[..., None]


def _extent(ink: Ink) -> tuple[slice, slice]:
    """The rows and columns with ink of at least a quarter."""
    places = (np.flatnonzero((ink >= 0.25).any(axis)) for axis in (1, 0))
    rows, columns = (slice(place[0], place[-1] + 1) for place in places)
    return rows, columns


def drawing(strokes: Sequence[Stroke]) -> Digit:
    """Draws the strokes of a pen like MNIST's digits. The width does not depend on their size.

    Args:
      strokes: the points (x, y) of each stroke, y downwards, on a sheet of 100x100.

    Raises:
      InputError: a coordinate is not finite, or there are no points or too many.
    """
    try:
        points = [np.asarray(stroke, np.float64).reshape(-1, 2) for stroke in strokes]
        every = np.concatenate(points)
    except (ValueError, TypeError):
        raise InputError("strokes must be lists of points: give two numbers for each") from None
    if not 0 < len(every) <= MAX_POINTS or not (np.abs(every) < 1e6).all():
        raise InputError(f"strokes must have 1 to {MAX_POINTS:,} points on the sheet: draw fewer")
    low, extent = every.min(0), np.ptp(every, 0).max()
    # A dot, or the beginning of a digit, stays small.
    scale = FINE * (BOX - PEN) / max(extent, SMALL)
    pen, margin = FINE * PEN, FINE * (SIDE - BOX) / 2 + FINE * PEN / 2
    sheet = Image.new("L", (FINE * SIDE, FINE * SIDE))
    draw = ImageDraw.Draw(sheet)
    for stroke in points:
        path = [(float(x), float(y)) for x, y in (stroke - low) * scale + margin]
        draw.line(path, fill=255, width=round(pen))
        for x, y in path:  # round ends and corners
            draw.ellipse([x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2], fill=255)
    ink = np.asarray(sheet.reduce(FINE), np.float32) / 255
    return centred(ink[_extent(ink)])
