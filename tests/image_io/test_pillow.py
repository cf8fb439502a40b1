"""Image files: what they hold comes back, or they are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxdae.errors import InputError
from jaxdae.image_io import limits
from jaxdae.image_io import pillow as images
from jaxdae.image_io.pillow import encode, read, read_uint8, write

RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
GRAY = RGB[..., 0]
WIDE = np.random.default_rng(1).integers(0, 65536, (9, 7), np.uint16)
ALPHA = RGB[..., 2]


def saved(folder, name, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(folder / name, **options)
    return folder / name


def again(path):
    """The file that is written with the pixels that were read."""
    data = encode(read(path))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image, data


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_colours_come_back(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    path = saved(tmp_path, name, RGB, **options)
    picture = read(path)
    np.testing.assert_array_equal(picture.pixels, RGB)
    assert picture.alpha is None
    image, _ = again(path)
    assert image.format == picture.format and image.mode == "RGB"
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.pgm", "a.gif"])
def test_gray_comes_back(tmp_path, name):
    path = saved(tmp_path, name, GRAY)
    np.testing.assert_array_equal(read(path).pixels[..., 0], GRAY)
    image, _ = again(path)
    np.testing.assert_array_equal(image.convert("L"), GRAY)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_come_back(tmp_path, name):
    path = saved(tmp_path, name, WIDE)
    picture = read(path)
    assert picture.pixels.dtype == np.uint16
    np.testing.assert_array_equal(picture.pixels[..., 0], WIDE)
    (tmp_path / "again").write_bytes(encode(picture))
    np.testing.assert_array_equal(read(tmp_path / "again").pixels[..., 0], WIDE)
    bits = tifffile.imread(tmp_path / "again") if name == "a.tif" else WIDE
    np.testing.assert_array_equal(bits, WIDE)


@pytest.mark.parametrize(
    ("order", "photometric"), [("<", "minisblack"), (">", "minisblack"), ("<", "miniswhite")]
)
def test_sixteen_bits_of_other_tiffs_look_the_same(tmp_path, order, photometric):
    path = tmp_path / "a.tif"
    stored = 65535 - WIDE if photometric == "miniswhite" else WIDE
    tifffile.imwrite(path, stored, byteorder=order, photometric=photometric)
    np.testing.assert_array_equal(read(path).pixels[..., 0], WIDE)
    rounded = np.rint(WIDE / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_uint8(path)[..., 0], rounded)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("colour", [GRAY, RGB], ids=["gray", "rgb"])
def test_alpha_stays_as_it_is(tmp_path, name, colour):
    pixels = np.dstack([colour, ALPHA])
    path = saved(
        tmp_path, name, pixels, **({"lossless": True, "exact": True} if "w" in name else {})
    )
    picture = read(path)
    np.testing.assert_array_equal(picture.alpha, ALPHA)
    other = picture._replace(pixels=255 - picture.pixels)
    with Image.open(io.BytesIO(encode(other))) as image:
        np.testing.assert_array_equal(np.asarray(image)[..., -1], ALPHA)
        np.testing.assert_array_equal(np.asarray(image)[..., 0], 255 - RGB[..., 0])


def test_palettes_are_looked_up(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    path = saved(tmp_path, "a.png", palette)
    np.testing.assert_array_equal(read(path).pixels, palette.convert("RGB"))
    path = saved(tmp_path, "clear.png", palette, transparency=3)
    picture = read(path)
    np.testing.assert_array_equal(picture.alpha, np.where(np.asarray(palette) == 3, 0, 255))
    np.testing.assert_array_equal(picture.pixels, palette.convert("RGB"))
    gray = Image.fromarray(GRAY // 64).convert("P")
    gray.putpalette([v for level in (200, 10, 90, 30) for v in [level] * 3])
    levels = np.array([200, 10, 90, 30])[GRAY // 64]
    path = saved(tmp_path, "gray.png", gray)
    np.testing.assert_array_equal(read(path).pixels[..., 0], levels)
    picture = read(saved(tmp_path, "gray-clear.png", gray, transparency=0))
    np.testing.assert_array_equal(picture.pixels[..., 0], levels)
    np.testing.assert_array_equal(picture.alpha, np.where(levels == 200, 0, 255))


@pytest.mark.parametrize("colour", [GRAY, RGB], ids=["gray", "rgb"])
def test_a_colour_that_is_clear_becomes_alpha(tmp_path, colour):
    key = int(GRAY[2, 3]) if colour.ndim == 2 else tuple(map(int, RGB[2, 3]))
    picture = read(saved(tmp_path, "a.png", colour, transparency=key))
    assert picture.alpha[2, 3] == 0 and picture.alpha.mean() > 200
    np.testing.assert_array_equal(picture.pixels.squeeze(), colour)


def test_one_bit_becomes_eight(tmp_path):
    bits = Image.fromarray(GRAY > 99)
    for name, options in (("a.png", {}), ("a.tif", {"compression": "group4"})):
        path = saved(tmp_path, name, bits, **options)
        np.testing.assert_array_equal(read(path).pixels[..., 0], np.where(GRAY > 99, 255, 0))
        assert again(path)[0].mode == "L"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
@pytest.mark.parametrize("turned", [1, 3, 5, 6])
def test_upright_and_never_turned_twice(tmp_path, name, turned):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = turned, "a maker"
    smooth = np.add.outer(np.arange(32), 3 * np.arange(24)).astype(np.uint8)
    path = saved(tmp_path, name, np.dstack([smooth] * 3), exif=exif, lossless=True)
    turn = {1: lambda x: x, 3: lambda x: x[::-1, ::-1], 5: np.transpose, 6: lambda x: x.T[:, ::-1]}
    upright = turn[turned](smooth).astype(int)
    np.testing.assert_allclose(read(path).pixels[..., 0], upright, atol=3)
    image, _ = again(path)
    assert image.getexif().get(0x0112, 1) == 1
    np.testing.assert_allclose(np.asarray(image, int)[..., 0], upright, atol=6)
    if name != "a.tif":
        assert image.getexif()[0x010F] == "a maker"


def test_what_else_a_file_holds(tmp_path):
    for name in ("a.png", "a.jpg", "a.tif", "a.webp"):
        path = saved(tmp_path, name, RGB, icc_profile=b"a profile", dpi=(200, 100))
        image, _ = again(path)
        assert image.info["icc_profile"] == b"a profile"
        if name != "a.webp":
            assert image.info["dpi"] == pytest.approx((200, 100), abs=0.1)
    path = saved(tmp_path, "b.tif", WIDE, compression="tiff_adobe_deflate")
    assert again(path)[0].info["compression"] == "tiff_adobe_deflate"
    path = saved(tmp_path, "c.tif", RGB, compression="jpeg")
    assert again(path)[0].info["compression"] == "tiff_lzw"


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("colour", [GRAY, RGB], ids=["gray", "rgb"])
def test_a_jpeg_is_compressed_as_it_was(tmp_path, quality, colour):
    path = saved(tmp_path, "a.jpg", colour, quality=quality, subsampling="4:2:0", progressive=True)
    with Image.open(path) as before:
        after, data = again(path)
        assert after.quantization == before.quantization and after.info["progressive"]
        assert len(data) == pytest.approx(path.stat().st_size, rel=0.1)
    # Coloured, a gray one is compressed with a table for colours.
    picture = read(path)
    coloured = encode(picture._replace(pixels=RGB))
    with Image.open(io.BytesIO(coloured)) as image:
        assert image.mode == "RGB" and len(image.quantization) == 2


def chunk(kind, body):
    size, check = struct.pack(">I", len(body)), struct.pack(">I", zlib.crc32(kind + body))
    return size + kind + body + check


def deep_png(channels):
    kind = {2: 4, 3: 2, 4: 6}[channels]
    rows = np.random.default_rng(0).integers(0, 65536, (4, 5 * channels)).astype(">u2")
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">2I5B", 5, 4, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_what_would_lose_depth_is_refused(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7, 3), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", np.dstack([deep, WIDE]), photometric="rgb")
    planes = np.moveaxis(deep, 2, 0)
    tifffile.imwrite(tmp_path / "c.tif", planes, photometric="rgb", planarconfig="separate")
    (tmp_path / "a.ppm").write_bytes(b"P6 7 9 65535\n" + deep.astype(">u2").tobytes())
    (tmp_path / "b.ppm").write_bytes(b"P6 7 9 1023\n" + (deep // 64).astype(">u2").tobytes())
    words = " ".join(map(str, deep.ravel()))
    (tmp_path / "c.ppm").write_text(f"P3 7 9 65535\n{words}\n")
    for channels in (2, 3, 4):
        (tmp_path / f"{channels}.png").write_bytes(deep_png(channels))
    saved(tmp_path, "clear.png", WIDE, transparency=7)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    for file in files:
        with pytest.raises(InputError, match="16 bits in colour or with alpha") as raised:
            read(file)
        assert file.name in str(raised.value) and "\n" not in str(raised.value)


def test_other_kinds_are_refused_by_name(tmp_path):
    frames = [Image.fromarray(GRAY), Image.fromarray(255 - GRAY)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        saved(tmp_path, name, frames[0], save_all=True, append_images=frames[1:])
    saved(tmp_path, "cmyk.jpg", Image.fromarray(RGB).convert("CMYK"))
    saved(tmp_path, "float.tif", GRAY / np.float32(255))
    tifffile.imwrite(tmp_path / "signed.tif", WIDE.astype(np.int16))
    said = {"a": "several frames", "cmyk": "CMYK colours", "float": "32-bit", "signed": "32-bit"}
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=said[file.stem]):
            read(file)
    assert len(list(tmp_path.iterdir())) == 7


def test_what_a_format_cannot_hold_is_not_written(tmp_path):
    gif = read(saved(tmp_path, "a.gif", GRAY))
    pgm = read(saved(tmp_path, "a.pgm", WIDE))
    bmp = read(saved(tmp_path, "a.bmp", RGB))
    for picture, said in (
        (gif._replace(pixels=RGB), "256 colours"),
        (gif._replace(alpha=ALPHA), "no alpha"),
        (pgm._replace(alpha=ALPHA), "no alpha"),
        (bmp._replace(alpha=ALPHA), "no alpha"),
        (pgm._replace(pixels=np.dstack([WIDE] * 3)), "16 bits in colour"),
    ):
        with pytest.raises(InputError, match=said):
            encode(picture)


def test_a_phones_jpeg_with_more_behind_it(tmp_path):
    """Two pictures in one file (MPO): the first is what is seen."""
    first, second = (Image.new("RGB", (9, 7), colour) for colour in ((200, 90, 30), (0, 0, 0)))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    picture = read(tmp_path / "a.jpg")
    assert picture.format == "JPEG"
    np.testing.assert_allclose(picture.pixels.mean((0, 1)), (200, 90, 30), atol=3)
    assert again(tmp_path / "a.jpg")[0].format == "JPEG"


NAMES = ("a.png", "a.tif", "a.webp", "a.gif", "a.bmp", "a.jpg", "a.pgm")


@pytest.mark.parametrize("name", NAMES)
def test_bombs_are_refused_by_what_their_files_hold(tmp_path, monkeypatch, name):
    black = np.zeros((3000, 3000), np.uint8)
    options = {"a.tif": {"compression": "zstd"}, "a.webp": {"lossless": True}}.get(name, {})
    path = saved(tmp_path, name, black, **options)
    bands = 3 if name == "a.webp" else 1
    ratio = bands * black.size // path.stat().st_size
    read(path)  # so few pixels are read in any case
    monkeypatch.setattr(limits, "SMALL_PIXELS", black.size - 1)
    least = {"max_pixels": black.size - 1}
    for reader in (read, read_uint8):
        if name in ("a.bmp", "a.pgm", "a.jpg"):  # no bombs: at most as much as their format gives
            assert ratio < limits.RATIO
            reader(path, **least)
            continue
        assert ratio > limits.RATIO
        with pytest.raises(limits.TooLarge, match=r"3000x3000, \d+,000,000 bytes from") as raised:
            reader(path, **least)
        assert "at most 600 times as many: cut or shrink it" in str(raised.value)
        assert str(raised.value).count("\n") == 0
        reader(path, max_pixels=raised.value.pixels)


def test_a_header_alone_is_refused(tmp_path):
    header = chunk(b"IHDR", struct.pack(">2I5B", 1 << 20, 1 << 20, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    for reader in (read, read_uint8):
        with pytest.raises(InputError, match="1048576x1048576, 1,099,511,627,776 bytes from"):
            reader(tmp_path / "a.png")


def test_what_does_not_fit_the_memory_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.bmp", RGB)
    monkeypatch.setattr(limits, "memory", lambda: 8 * RGB.size)
    read(path, max_pixels=62)
    monkeypatch.setattr(limits, "memory", lambda: 8 * RGB.size - 1)
    with pytest.raises(InputError, match="7x9, 189 bytes, but images above 62 pixels may have at "):
        read(path, max_pixels=62)
    read(path, max_pixels=63)
    monkeypatch.undo()
    assert 1 << 28 < limits.memory() < 1 << 50


def test_images_above_pillows_own_limits_are_read(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (301, 203, 3), np.uint8)
    path = saved(tmp_path, "a.png", noise)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    monkeypatch.setattr(images, "BAND_PIXELS", 9000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    np.testing.assert_array_equal(read(path).pixels, noise)
    np.testing.assert_array_equal(read_uint8(path), noise)
    assert Image.MAX_IMAGE_PIXELS == 20_000


def test_what_the_file_system_refuses_is_its_own_error(tmp_path):
    picture = read(saved(tmp_path, "a.png", RGB))
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as file:
        write(picture, file)
