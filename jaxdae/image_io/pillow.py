"""Image files: read at their full depth, and written as they were.

    picture = read(path)
    picture.pixels                       # uint8 or uint16 [h w c], upright, gray or RGB
    data = encode(picture._replace(pixels=restored))      # the bytes of a file of its format

What a file holds is kept or the file is refused: nothing is read at less than its depth, nor
written so. Everything that can be wrong with a file is an `InputError`.
"""

import contextlib
import io
import os
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt, UInt8

from jaxdae.errors import InputError, explained, show

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile as Image

MAX_PIXELS = 1 << 25  # of an image file, whatever its size on disk promises
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
GRAY = ("1", "L", "LA", "La")
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in a gray value: Y of Rec. 601
WIDE = ("PNG", "PPM")  # whose 16 bits are 32 in Pillow, or were
WHITE_IS_ZERO, PHOTOMETRIC, BITS = 0, 262, 258  # of TIFF: a value, and two tags
LOSSLESS = (
    "raw",
    "packbits",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "zstd",
    "lzma",
)  # in TIFF


class Picture(NamedTuple):
    """An image file.

    Fields:
      pixels: uint8 or uint16 [h w c], c 1 for gray and 3 for RGB.
      alpha: what covers what lies behind, 255 wholly; None if everything does.
      format: of the file, as Pillow calls it.
      options: what its file is written with beside that: colour profile, EXIF, resolution, and how
        it is compressed.
    """

    pixels: UInt[np.ndarray, "h w c"]
    alpha: UInt8[np.ndarray, "h w"] | None = None
    format: str = "PNG"
    options: Mapping[str, Any] = {}


def find(root: Path, suffixes: Sequence[str] = SUFFIXES) -> list[tuple[str, Path]]:
    """Every file below `root` with one of the suffixes, with its path from there, sorted by it.

    Hidden files and folders are skipped; links to folders inside `root` are not followed.

    Raises:
      InputError: a link leads out of `root`, or a folder cannot be read.
    """
    home, found = os.path.realpath(root), []

    def fail(error: OSError) -> None:
        raise InputError(f"{show(error.filename)} cannot be read: make it readable, or move it")

    for parent, folders, files in os.walk(root, onerror=fail):
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        files = [file for file in files if file.lower().endswith(tuple(suffixes))]
        files = [file for file in files if file[0] != "."]
        for path in (Path(parent, entry) for entry in folders + files):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
                rule = f"{show(path)} is a link that leads out of {show(root)}"
                raise InputError(
                    f"{rule}, and such are not followed: put the files themselves there"
                )
        for path in (Path(parent, file) for file in files):
            found.append((unicodedata.normalize("NFC", path.relative_to(root).as_posix()), path))
    return sorted(found)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator["Image"]:
    """An image file, its pixels not yet decoded; what fails inside is an `InputError`."""
    from PIL import Image

    what = show(path)
    if not os.path.isfile(path):
        raise InputError(f"{what} is no regular file: remove it")
    reading = explained(f"{what} is no readable image", "replace or remove it")
    with reading, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                limit = f"{width}x{height}, and {MAX_PIXELS} pixels are the most that are read"
                raise InputError(f"{what} is {limit}: cut or shrink it")
            yield image


def _sixteen_bits(image: "Image") -> UInt[np.ndarray, "h w"] | None:
    """A decoded gray image of 16 bits as uint16; None if it is none."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in WIDE)):
        return None
    wide = np.asarray(image).astype(np.uint16)
    # Pillow turns white-is-zero around, but not at this depth.
    return 65535 - wide if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO else wide


def _tag(image: "Image", number: int) -> Any:
    """A tag of a TIFF file; None of another."""
    return getattr(image, "tag_v2", {}).get(number)


def read_uint8(path: Path) -> UInt8[np.ndarray, "h w c"]:
    """An image file, upright, in 8 bits, gray or RGB; the first frame if there are several.

    Deeper ones are rounded, and alpha is dropped.

    Raises:
      InputError: it cannot be read.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
        wide = _sixteen_bits(image)
        if wide is not None:
            return ((wide.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)[..., None]
        if image.mode in ("I", "F"):
            rule = "32-bit pixels, of no known range"
            raise InputError(f"{show(path)} has {rule}: save it with 8 or 16 bits")
        mode = "L" if image.mode in GRAY else "RGB"
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        return pixels[..., None] if mode == "L" else pixels


def read(path: Path) -> Picture:
    """An image file at its full depth, upright. A palette is looked up, 1 bit becomes 8.

    Raises:
      InputError: it cannot be read, or not so that it can be written again as it is: several
        frames, 16 bits in colour or beside alpha, 32 bits, CMYK and other colours.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        what, form = show(path), image.format or ""
        deep = _bits(image) > 8 and image.mode not in ("I", "F")
        options = _options(image)
        if form == "MPO":  # a JPEG with more behind it, such as a gain map
            form = "JPEG"
        elif getattr(image, "n_frames", 1) > 1:
            raise InputError(f"{what} holds several frames: save each as a file of its own")
        ImageOps.exif_transpose(image, in_place=True)
        if "exif" in image.info and form != "TIFF":  # TIFF's is the layout of the file as well
            options["exif"] = image.getexif().tobytes()
        clear = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        wide = _sixteen_bits(image)
        if wide is not None and not clear:
            if form == "TIFF" and _bits(image) != 16:
                raise InputError(f"{what} has {_bits(image)} bits: save it with 8 or 16")
            return Picture(wide[..., None], None, form, options)
        if deep or wide is not None:
            raise InputError(
                f"{what} has 16 bits in colour or beside alpha, which would be lost: save it with "
                "8 bits, its channels apart as gray images, or as a .npy stack of uint16"
            )
        mode = image.mode
        if mode in ("P", "PA"):
            colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
            gray = bool((colours == colours[:, :1]).all())
        elif mode in (*GRAY, "RGB", "RGBA", "RGBa"):
            gray = mode in GRAY
        else:
            kind = "32-bit pixels, of no known range" if mode in ("I", "F") else f"{mode} colours"
            raise InputError(f"{what} has {kind}: save it in gray or RGB, with 8 or 16 bits")
        mode = ("L" if gray else "RGB") + "A" * clear
        # A palette's alpha is lost on the straight way to LA.
        plain = image.convert("RGBA") if mode == "LA" and image.mode in ("P", "PA") else image
        pixels = np.asarray(plain if plain.mode == mode else plain.convert(mode))
        if clear:
            return Picture(pixels[..., :-1], pixels[..., -1], form, options)
        return Picture(pixels.reshape(*pixels.shape[:2], -1), None, form, options)


def _bits(image: "Image") -> int:
    """How many bits each value of an image has whose pixels are not yet decoded."""
    bits = _tag(image, BITS)
    if bits:
        return max(bits)
    if any(";16" in str(tile) for tile in image.tile):
        return 16
    # Netpbm's largest value; its decoder is told of it unless it is 255.
    told: Any = [tile[3] for tile in image.tile if tile[0] in ("ppm", "ppm_plain")]
    return 16 if any(top > 255 for _, top in told) else 8


def _options(image: "Image") -> dict[str, Any]:
    """What an image is written with again; EXIF apart, which is known once it is upright."""
    options = {key: image.info[key] for key in ("icc_profile", "dpi") if image.info.get(key)}
    if image.format in ("JPEG", "MPO"):
        from PIL import JpegImagePlugin

        options["qtables"] = dict(image.quantization)  # type: ignore[attr-defined]
        sampling = JpegImagePlugin.get_sampling(image)
        options |= {"subsampling": sampling} if sampling >= 0 else {}
        options["progressive"] = bool(image.info.get("progressive"))
    elif image.format == "TIFF":
        packed = image.info.get("compression", "raw")
        options["compression"] = packed if packed in LOSSLESS else "tiff_lzw"
    elif image.format == "WEBP":
        options |= {"lossless": True, "exact": True}
    return options


def encode(picture: Picture) -> bytes:
    """The bytes of a picture's file.

    A JPEG is compressed as strongly as it was; everything else is without loss (WebP, too).

    Raises:
      InputError: the format cannot hold it: colours, or alpha, in a GIF; colours in a .pgm.
    """
    from PIL import Image

    pixels, alpha, form, options = picture
    channels = pixels.shape[-1]
    if form == "GIF" and (channels > 1 or alpha is not None):
        raise InputError("a GIF holds 256 colours, and no alpha beside gray: save it as .png first")
    if form in ("PPM", "BMP") and alpha is not None:
        raise InputError(f"a {form} holds no alpha: save it as .png first")
    if pixels.dtype == np.uint16 and channels > 1:
        raise InputError("16 bits in colour cannot be written: save it with 8 bits first")
    if alpha is not None:
        pixels = np.concatenate([pixels, alpha[..., None]], -1)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if form == "JPEG" and len(options.get("qtables", ())) < 2 and channels > 1:
        # Made from gray, whose tables are not colour's.
        options = {**options, "qtables": None, "subsampling": -1, "quality": 95}
    file = io.BytesIO()
    with explained(f"a {form} cannot be written", "save it as .png first"):
        image.save(file, form, **options)
    return file.getvalue()
