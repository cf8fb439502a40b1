"""Pictures and drawings as what a network takes: bytes of its image size.

    digit(open_image(Path("photo.jpg")))     # uint8 (28, 28, 1), as MNIST's are
    drawing([[(20, 10), (22, 90)]])          # uint8 (28, 28, 1), of a stroke
    scaled(open_image(path), (32, 32, 3))    # uint8 (32, 32, 3)

A digit becomes one of MNIST's by the rule of its makers (LeCun, Bottou, Bengio and Haffner,
"Gradient-based learning applied to document recognition", 1998, section III.A): fitted into 20x20
pixels, its proportions kept, and put on 28x28 so that its centre of mass lies in the middle.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from jaxdae.errors import InputError
from jaxdae.image_io.pillow import FORMATS, MAX_PIXELS

SIDE, BOX = 28, 20  # of an image, and of the box that its digit just fills
PEN = 3.0  # width of a drawn stroke in pixels of 28x28: the median of MNIST's ones
THIN = 2.0  # width in such pixels that a thinner stroke of a picture is brought to
LONGEST = 320  # side of a picture that digits are looked for in; what is larger is shrunk
CONTRAST = 0.1  # between digit and background, of 1, below which there is no digit to be seen
FINE = 8  # a stroke is drawn so many times as large, and shrunk
SMALL = 25  # extent of a drawing, of 100, below which it is not enlarged to fill the box
MAX_POINTS = 100_000  # of a drawing
Stroke = Sequence[tuple[float, float]]
Digit = UInt8[np.ndarray, "28 28 1"]
Ink = Float[np.ndarray, "height width"]


def open_image(path: Path) -> Image.Image:
    """An image file, turned upright as its EXIF data say, as RGBA; the first frame of several.

    Raises:
      InputError: it is no image of a known form, is damaged, or has too many pixels.
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as file:
            warnings.simplefilter("ignore")
            file.draft("RGB", (2 * LONGEST, 2 * LONGEST))  # a JPEG is decoded no larger than needed
            if file.width * file.height <= MAX_PIXELS:
                upright = ImageOps.exif_transpose(file)
                if upright.mode.startswith(("I", "F")):  # 16 and 32 bits: from darkest to lightest
                    wide = np.nan_to_num(np.asarray(upright, np.float64), posinf=0, neginf=0)
                    span = max(np.ptp(wide), 1e-30)
                    upright = Image.fromarray(_bytes((wide - wide.min()) / span))
                return upright.convert("RGBA")
            width, height = file.size
    except Exception:  # damaged bytes raise all sorts
        forms = ", ".join(FORMATS[:-1])
        raise InputError(
            f"this file is no image that can be read, or is damaged: give {forms} or {FORMATS[-1]}"
        ) from None
    raise InputError(
        f"this image has {width}x{height} pixels, and {MAX_PIXELS:,} are the most that are read: "
        "cut or shrink it"
    )


def _bytes(values: np.ndarray) -> np.ndarray:
    """What lies in [0, 1], in [0, 255]."""
    return np.rint(255 * values).astype(np.uint8)


def scaled(image: Image.Image, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    """The middle of an image, cut to the proportions of `shape` and scaled to it.

    Args:
      image: RGBA; what is transparent becomes white.
      shape: (height, width, channels): 1 for gray, 3 for RGB.
    """
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    height, width, channels = shape
    fitted = ImageOps.fit(opaque.convert("L" if channels == 1 else "RGB"), (width, height))
    return np.asarray(fitted).reshape(shape)


def digit(image: Image.Image) -> Digit:
    """The digit in an image, light on dark, as MNIST's are.

    What differs from the border is the digit, be it lighter or darker. An image of 28x28 whose
    border is the darker stays as it is.

    Args:
      image: RGBA, with one digit on a plain background.

    Raises:
      InputError: nothing in it differs from its border.
    """
    exact = image.size == (SIDE, SIDE)
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    gray = _gray(image)
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    ground = np.median(border)
    low, high = np.percentile(gray, (0.1, 99.9))
    dark = ground - low > high - ground  # the digit, on a lighter background
    if exact and not dark and high - ground >= CONTRAST:
        return _bytes(gray)[..., None]
    ink = ground - gray if dark else gray - ground
    # Paper is not even, and what it varies by along the border is no ink inside.
    floor = np.percentile(np.abs(border - ground), 90)
    peak = np.percentile(ink, 99.9)
    if peak - floor < CONTRAST:
        raise InputError(
            "there is no digit to be seen in this image: give one that stands out against a plain "
            "background"
        )
    ink = thickened(np.clip((ink - floor) / (peak - floor), 0, 1))
    rows, columns = _extent(ink)
    ink = ink[rows, columns].astype(np.float32)
    height, width = (max(1, round(BOX * side / max(ink.shape))) for side in ink.shape)
    small = np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR))
    return centred(small / small.max())


def _gray(image: Image.Image) -> Ink:
    """Gray values in [0, 1]; what is transparent is as far from what is not as can be."""
    luma = np.asarray(image.convert("RGB").convert("L"), np.float32) / 255
    alpha = np.asarray(image.getchannel("A"), np.float32) / 255
    lightness = (luma * alpha).sum() / max(alpha.sum(), 1e-9)
    return luma * alpha + (1 - alpha) * (lightness < 0.5)


def thickened(ink: Ink) -> Ink:
    """Ink whose strokes will be no thinner than `THIN` when it fills the box.

    Args:
      ink: in [0, 1], some of it at least 0.5.
    """
    solid = Image.fromarray(_bytes(ink >= 0.5))
    area, inner = (
        np.count_nonzero(np.asarray(x)) for x in (solid, solid.filter(ImageFilter.MinFilter(3)))
    )
    width = 2 * area / (area - inner)  # a stroke has two sides
    wanted = THIN / BOX * max(part.stop - part.start for part in _extent(ink))
    grow = round((wanted - width) / 2)  # on either side
    if grow < 1:
        return ink
    wide = Image.fromarray(_bytes(ink)).filter(ImageFilter.MaxFilter(2 * grow + 1))
    return np.asarray(wide, np.float32) / 255


def centred(ink: Ink) -> Digit:
    """Ink in [0, 1], at most 28x28 of it, with its centre of mass in the middle of 28x28."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    parts = []
    for axis, size in enumerate(ink.shape):
        centre = ink.sum(1 - axis) @ np.arange(size) / ink.sum()
        first = min(max(round(SIDE / 2 - centre), 0), SIDE - size)  # all of it stays inside
        parts.append(slice(first, first + size))
    image[tuple(parts)] = _bytes(ink)
    return image[..., None]


def _extent(ink: Ink) -> tuple[slice, slice]:
    """The rows and the columns that the ink is in; some of it must be at least a quarter."""
    places = (np.flatnonzero((ink >= 0.25).any(axis)) for axis in (1, 0))
    rows, columns = (slice(place[0], place[-1] + 1) for place in places)
    return rows, columns


def drawing(strokes: Sequence[Stroke]) -> Digit:
    """Strokes of a pen as MNIST's digits are, as thick as they are however large they were drawn.

    Args:
      strokes: the points (x, y) that each goes through, y down, on a sheet of 100x100.

    Raises:
      InputError: they are not made of finite numbers, or there are none.
    """
    try:
        points = [np.asarray(stroke, np.float64).reshape(-1, 2) for stroke in strokes]
        every = np.concatenate(points)
    except (ValueError, TypeError):
        raise InputError("strokes must be lists of points, two numbers each") from None
    if not 0 < len(every) <= MAX_POINTS or not (np.abs(every) < 1e6).all():
        raise InputError(f"strokes must be of 1 to {MAX_POINTS:,} points on the sheet: draw fewer")
    low, extent = every.min(0), np.ptp(every, 0).max()
    # What is small, a dot or the beginning of a digit, stays so.
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
