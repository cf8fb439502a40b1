"""Image files, by Pillow.

    picture = read(path)
    picture.pixels                                      # uint8 or uint16 [h w c], upright
    data = encode(picture._replace(pixels=restored))    # the bytes of a file of the same format

`read` keeps everything that a file holds, or refuses the file: no depth, alpha or metadata is lost.
`read_uint8` reads any file as 8 bits, for training. A file that cannot be used raises `InputError`.
"""

import contextlib
import io
import os
import threading
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt, UInt8

from jaxdae.errors import InputError, explained, show
from jaxdae.image_io.limits import SMALL_PIXELS, check_size
from jaxdae.image_io.picture import Picture

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile as Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
GRAY = ("1", "L", "LA", "La")  # Pillow's gray modes
LUMA = (0.299, 0.587, 0.114)  # gray = LUMA . (red, green, blue): Y of Rec. 601, as in Pillow
FORMATS_16_BITS = ("PNG", "PPM")  # of which some versions of Pillow give 16 bits as mode I
WHITE_IS_ZERO, PHOTOMETRIC, BITS_PER_SAMPLE = 0, 262, 258  # TIFF: a value, and two tags
_NO_RANGE = "32-bit pixels, whose range is unknown"
BITS = {"1": 1, "I": 32, "F": 32}  # of a pixel, by Pillow's mode; else 8 for each band
BAND_PIXELS = 1 << 20  # that are copied at once
LOSSLESS = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "zstd", "lzma")  # in TIFF


def find(root: Path, suffixes: Sequence[str] = SUFFIXES) -> list[tuple[str, Path]]:
    """Finds all files below `root` with one of the suffixes.

    Hidden files and folders are skipped. Links to folders are not followed.

    Returns:
      (path below `root`, path) of each file, sorted. The path below `root` is in Unicode's NFC and
      has forward slashes, so that the order does not depend on the file system.

    Raises:
      InputError: a link leads out of `root`, or a folder cannot be read.
    """
    real_root, found = os.path.realpath(root), []

    def fail(error: OSError) -> None:
        raise InputError(f"{show(error.filename)} cannot be read: make it readable, or move it")

    for parent, folders, files in os.walk(root, onerror=fail):
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        files = [file for file in files if file.lower().endswith(tuple(suffixes))]
        files = [file for file in files if file[0] != "."]
        for path in (Path(parent, entry) for entry in folders + files):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(real_root):
                raise InputError(
                    f"{show(path)} is a link that leads out of {show(root)}, and such links are "
                    "not followed: put the files themselves there"
                )
        for path in (Path(parent, file) for file in files):
            found.append((unicodedata.normalize("NFC", path.relative_to(root).as_posix()), path))
    return sorted(found)


_opening = threading.Lock()


def open_file(path: Path, max_pixels: int = SMALL_PIXELS, what: str | None = None) -> "Image":
    """Opens an image file by Pillow. Pixels are not decoded yet.

    Args:
      max_pixels: images of at most so many pixels are read, whatever `jaxdae.image_io.limits` says.
      what: the image, for messages; None for its path.

    Raises:
      TooLarge: see `jaxdae.image_io.limits`.
      Exception: of many types, for a damaged file.
    """
    from PIL import Image

    with _opening:  # Pillow's own limit knows neither the file's size nor the memory's
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    try:
        bits = BITS.get(image.mode, 16 if ";16" in image.mode else 8 * len(image.getbands()))
        size = os.path.getsize(path)
        check_size(what or show(path), *image.size, bits, size, max_pixels)
    except BaseException:
        image.close()
        raise
    return image


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator["Image"]:
    """As `open_file`; a context manager. Any exception inside is an `InputError`."""
    what = show(path)
    if not os.path.isfile(path):
        raise InputError(f"{what} is no regular file: remove it")
    reading = explained(f"{what} is no readable image", "replace or remove it")
    with reading, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_file(path, max_pixels) as image:
            yield image


def decoded_bytes(path: Path) -> int:
    """The bytes of an image in 8 bits, from its header; 0 if the file cannot be read."""
    try:
        with open_file(path) as image:
            return image.width * image.height * (1 if image.mode in GRAY else 3)
    except Exception:  # reading the file reports it
        return 0


def _to_array(image: Any) -> UInt8[np.ndarray, "h w ..."]:
    """The pixels of a decoded image. Copied at once, Pillow would hold them twice more."""
    band = max(1, BAND_PIXELS // image.width)
    if image.height <= band:
        return np.asarray(image)
    first = np.asarray(image.crop((0, 0, image.width, band)))
    pixels = np.empty((image.height, *first.shape[1:]), first.dtype)
    for top in range(0, image.height, band):
        bottom = min(top + band, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _sixteen_bits(image: "Image") -> UInt[np.ndarray, "h w"] | None:
    """The pixels of a decoded gray image of 16 bits; None for another image."""
    if not (
        image.mode.startswith("I;16") or (image.mode == "I" and image.format in FORMATS_16_BITS)
    ):
        return None
    wide = np.asarray(image).astype(np.uint16)
    # Pillow inverts white-is-zero images, but not those of 16 bits.
    return 65535 - wide if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO else wide


def _tag(image: "Image", number: int) -> Any:
    """The value of a TIFF tag; None if there is none."""
    return getattr(image, "tag_v2", {}).get(number)


def read_uint8(
    path: Path, gray: bool = False, max_pixels: int = SMALL_PIXELS
) -> UInt8[np.ndarray, "h w c"]:
    """Reads an image file in 8 bits, gray or RGB, upright.

    16 bits are rounded to 8. Alpha is dropped. Of several frames, the first is read.

    Args:
      gray: make colours gray, by Rec. 601 luma.
      max_pixels: images of at most so many pixels are read, whatever `jaxdae.image_io.limits` says.

    Raises:
      InputError: the file cannot be read, has 32-bit pixels, or is too large.
    """
    from PIL import ImageOps

    with _opened(path, max_pixels) as image:
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
        wide = _sixteen_bits(image)
        if wide is not None:
            return ((wide.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)[..., None]
        if image.mode in ("I", "F"):
            raise InputError(f"{show(path)} has {_NO_RANGE}: save it with 8 or 16 bits")
        mode = "L" if gray or image.mode in GRAY else "RGB"
        pixels = _to_array(image if image.mode == mode else image.convert(mode))
        return pixels[..., None] if mode == "L" else pixels


def read(path: Path, max_pixels: int = SMALL_PIXELS) -> Picture:
    """Reads an image file at its full depth, upright.

    A palette becomes gray or RGB, 1 bit becomes 8.

    Args:
      max_pixels: images of at most so many pixels are read, whatever `jaxdae.image_io.limits` says.

    Raises:
      InputError: the file cannot be read, is too large (`TooLarge`), or holds what could not be
        written again: several frames, 16 bits in colour or with alpha, 32 bits, or colours
        other than gray and RGB, such as CMYK.
    """
    from PIL import ImageOps

    with _opened(path, max_pixels) as image:
        what, form = show(path), image.format or ""
        deep = _bits(image) > 8 and image.mode not in ("I", "F")
        options = _options(image)
        if form == "MPO":  # a JPEG followed by further images, such as a gain map
            form = "JPEG"
        elif getattr(image, "n_frames", 1) > 1:
            raise InputError(f"{what} holds several frames: save each as a file of its own")
        ImageOps.exif_transpose(image, in_place=True)
        if (
            "exif" in image.info and form != "TIFF"
        ):  # in TIFF, EXIF tags also hold the file's layout
            options["exif"] = image.getexif().tobytes()
        clear = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        wide = _sixteen_bits(image)
        if wide is not None and not clear:
            if form == "TIFF" and _bits(image) != 16:
                raise InputError(f"{what} has {_bits(image)} bits: save it with 8 or 16")
            return Picture(wide[..., None], None, form, options)
        if deep or wide is not None:
            raise InputError(
                f"{what} has 16 bits in colour or with alpha, which Pillow reads as 8: save it "
                "with 8 bits, each channel as a gray image, or as a .npy stack of uint16"
            )
        mode = image.mode
        if mode in ("P", "PA"):
            colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
            gray = bool((colours == colours[:, :1]).all())
        elif mode in (*GRAY, "RGB", "RGBA", "RGBa"):
            gray = mode in GRAY
        else:
            kind = _NO_RANGE if mode in ("I", "F") else f"{mode} colours"
            raise InputError(f"{what} has {kind}: save it in gray or RGB, with 8 or 16 bits")
        mode = ("L" if gray else "RGB") + "A" * clear
        # Pillow loses a palette's alpha if it converts to LA directly.
        plain = image.convert("RGBA") if mode == "LA" and image.mode in ("P", "PA") else image
        pixels = _to_array(plain if plain.mode == mode else plain.convert(mode))
        if clear:
            return Picture(pixels[..., :-1], pixels[..., -1], form, options)
        return Picture(pixels.reshape(*pixels.shape[:2], -1), None, form, options)


def _bits(image: "Image") -> int:
    """The bits of one channel of an image whose pixels are not decoded yet."""
    bits = _tag(image, BITS_PER_SAMPLE)
    if bits:
        return max(bits)
    if any(";16" in str(tile) for tile in image.tile):
        return 16
    # Netpbm files name their largest value; Pillow passes it to the decoder unless it is 255.
    arguments: Any = [tile[3] for tile in image.tile if tile[0] in ("ppm", "ppm_plain")]
    return 16 if any(top > 255 for _, top in arguments) else 8


def _options(image: "Image") -> dict[str, Any]:
    """`Picture.options`, without EXIF, which changes when the image is turned upright."""
    options: dict[str, Any] = {
        key: image.info[key] for key in ("icc_profile", "dpi") if image.info.get(key)
    }
    if image.format in ("JPEG", "MPO"):
        from PIL import JpegImagePlugin

        options["qtables"] = dict(image.quantization)  # type: ignore[attr-defined]
        sampling = JpegImagePlugin.get_sampling(image)
        options |= {"subsampling": sampling} if sampling >= 0 else {}
        options["progressive"] = bool(image.info.get("progressive"))
    elif image.format == "TIFF":
        compression = image.info.get("compression", "raw")
        options["compression"] = compression if compression in LOSSLESS else "tiff_lzw"
    elif image.format == "WEBP":
        options |= {"lossless": True, "exact": True}
    return options


def encode(picture: Picture) -> bytes:
    """Encodes a picture as the bytes of a file of its format: see `write`."""
    file = io.BytesIO()
    write(picture, file)
    return file.getvalue()


def write(picture: Picture, file: IO[bytes]) -> None:
    """Writes a picture as a file of its format.

    JPEG uses the quantisation tables of the file that was read. All other formats are written
    without loss, WebP too.

    Raises:
      InputError: the format cannot hold the picture: colours or alpha in a GIF, alpha in a BMP,
        .pgm or .ppm file, 16 bits in colour.
      OSError: the file system refuses.
    """
    from PIL import Image

    pixels, alpha, form, options = picture
    channels = pixels.shape[-1]
    if form == "GIF" and (channels > 1 or alpha is not None):
        raise InputError(
            "a GIF holds only 256 colours, and no alpha channel: save it as .png first"
        )
    if form in ("PPM", "BMP") and alpha is not None:
        raise InputError(f"a {form} holds no alpha channel: save it as .png first")
    if pixels.dtype == np.uint16 and channels > 1:
        raise InputError("16 bits in colour cannot be written: save it with 8 bits first")
    if alpha is not None:
        pixels = np.concatenate([pixels, alpha[..., None]], -1)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if form == "JPEG" and len(options.get("qtables", ())) < 2 and channels > 1:
        # The picture was gray: its file has no table for colours.
        options = {**options, "qtables": None, "subsampling": -1, "quality": 95}
    with explained(f"a {form} cannot be written", "save it as .png first"):
        try:
            image.save(file, form, **options)
            return
        except OSError as error:
            if error.errno is None:  # it is Pillow's own, and not the file system's
                raise
            refusal = error
    raise refusal
