"""Folders of image files: split, labelled, decoded and cut, or an InputError."""

import hashlib
import re
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments.run import main
from jaxdae import data
from jaxdae.errors import InputError
from jaxdae.image_io import pillow as images
from tests.data.sources import mutations, picture, pixels, refused, write_images


@pytest.fixture
def pictures(tmp_path):
    """Thirty gray images, without classes."""
    for i, x in enumerate(pixels(30)):
        picture(tmp_path / f"{i:02}.png", x)
    return tmp_path


def test_folder_split_is_a_hash_of_the_path(pictures):
    found = data.load(f"folder:{pictures}")
    tests = [
        i
        for i in range(30)
        if int.from_bytes(hashlib.sha256(f"{i:02}.png".encode()).digest()[:8], "big") % 6 == 0
    ]
    assert tests == [9, 14, 20, 21, 25, 29]  # for ever: results on this split stay comparable
    np.testing.assert_array_equal(found.test.images[..., 0], pixels(30)[tests])
    np.testing.assert_array_equal(found.train.images[..., 0], np.delete(pixels(30), tests, 0))
    assert found.train.labels is None and found.test.labels is None


def test_folder_split_ignores_other_files(pictures):
    before = data.load(f"folder:{pictures}")
    picture(pictures / "zz.png", pixels(1)[0])  # falls to training
    after = data.load(f"folder:{pictures}")
    np.testing.assert_array_equal(before.test.images, after.test.images)
    np.testing.assert_array_equal(before.train.images, after.train.images[:-1])


def test_folder_skips_what_is_hidden_or_no_image(pictures):
    before = data.load(f"folder:{pictures}")
    picture(pictures / ".hidden.png", pixels(1)[0])
    picture(pictures / ".thumbnails" / "a.png", pixels(1)[0])
    (pictures / "notes.txt").write_text("not an image")
    (pictures / "mypng").write_text("not an image")
    (pictures / "inner").symlink_to(pictures)  # not followed
    after = data.load(f"folder:{pictures}")
    np.testing.assert_array_equal(before.train.images, after.train.images)


def test_folder_classes(tmp_path):
    for kind in ("zebra", "ant"):
        for i, x in enumerate(pixels(20, seed=len(kind))):
            picture(tmp_path / kind / "deeper" / f"{i}.png", x)
    found = data.load(f"folder:{tmp_path}")
    labels = np.concatenate([found.train.labels, found.test.labels])
    assert list(np.bincount(labels)) == [20, 20] and labels.dtype == np.int32
    ants = {x.tobytes() for x in pixels(20, seed=3)}
    images = np.concatenate([found.train.images, found.test.images])
    assert [x.tobytes() in ants for x in images] == list(labels == 0)
    picture(tmp_path / "loose.png", pixels(1)[0])
    refused(f"folder:{tmp_path}", "loose.png", "'ant'", "move")


def test_folder_train_and_test(tmp_path):
    x = pixels(4)
    picture(tmp_path / "train" / "b" / "1.png", x[0])
    picture(tmp_path / "train" / "a" / "2.PNG", x[1])
    picture(tmp_path / "test" / "b" / "3.png", x[2])
    picture(tmp_path / "else" / "4.png", x[3])
    found = data.load(f"folder:{tmp_path}")
    np.testing.assert_array_equal(found.train.images[..., 0], x[[1, 0]])
    np.testing.assert_array_equal(found.test.images[..., 0], x[[2]])
    np.testing.assert_array_equal(found.train.labels, [0, 1])
    np.testing.assert_array_equal(found.test.labels, [1])
    (tmp_path / "test" / "b" / "3.png").unlink()
    refused(f"folder:{tmp_path}", "0 of 2", "add images")


@pytest.mark.parametrize("suffix", images.SUFFIXES)
def test_folder_formats(tmp_path, suffix):
    x = np.full((8, 8) if suffix == ".pgm" else (8, 8, 3), 200, np.uint8)
    for part in ("train", "test"):
        picture(tmp_path / part / f"a{suffix}", x)
    image = data.load(f"folder:{tmp_path}").train.images[0]
    assert image.shape == (8, 8, 1 if suffix == ".pgm" else 3)
    np.testing.assert_allclose(image, 200, atol=3)


def in_mode(tmp_path, mode, **options):
    """The one training image, saved in a mode of Pillow's."""
    gray = pixels(1)[0]
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(gray).convert(mode)
    for part in ("train", "test"):
        (tmp_path / part).mkdir(exist_ok=True)
        image.save(tmp_path / part / options.get("file", "a.png"))
    return gray, data.load(f"folder:{tmp_path}").train.images[0]


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
@pytest.mark.parametrize("file", ["a.png", "a.tif"])
def test_folder_gray_modes(tmp_path, mode, file):
    gray, image = in_mode(tmp_path, mode, file=file)
    np.testing.assert_array_equal(image, gray[..., None])


def test_folder_other_modes(tmp_path):
    _, image = in_mode(tmp_path, "1")
    assert image.shape[-1] == 1 and set(image.ravel()) <= {0, 255}
    for mode in ("RGB", "RGBA", "P"):
        gray, image = in_mode(tmp_path, mode)
        np.testing.assert_array_equal(image, np.repeat(gray[..., None], 3, -1))
    _, image = in_mode(tmp_path, "CMYK", file="b.tif")
    assert image.shape[-1] == 3
    with pytest.raises(InputError, match="32-bit pixels"):
        in_mode(tmp_path, "F", file="c.tif")


def test_folder_16_bits_are_rounded(tmp_path):
    wide = np.array([[0, 128, 129, 257, 32767, 32768, 65406, 65407, 65535]], np.uint16)
    for part in ("train", "test"):
        picture(tmp_path / part / "a.png", wide)
    image = data.load(f"folder:{tmp_path}").train.images[0, ..., 0]
    np.testing.assert_array_equal(image, np.rint(wide / 257))
    for part in ("train", "test"):
        (tmp_path / part / "a.png").unlink()
        head = b"P5 9 1 65535\n"
        (tmp_path / part / "a.pgm").write_bytes(head + wide.astype(">u2").tobytes())
    image = data.load(f"folder:{tmp_path}").train.images[0, ..., 0]
    np.testing.assert_array_equal(image, np.rint(wide / 257))


def test_folder_one_colour_image_makes_all_rgb(pictures):
    picture(pictures / "00.png", pixels(1, 4, 5, 3)[0])
    found = data.load(f"folder:{pictures}")
    assert found.image_shape == (4, 5, 3)
    np.testing.assert_array_equal(found.train.images[1], np.repeat(pixels(30)[1, ..., None], 3, -1))


def test_folder_orientation_is_honoured(tmp_path):
    x = pixels(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    picture(tmp_path / "train" / "a.png", x, exif=exif)
    picture(tmp_path / "test" / "a.png", np.rot90(x, -1).copy())
    found = data.load(f"folder:{tmp_path}")
    np.testing.assert_array_equal(found.train.images, found.test.images)


def test_folder_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        frames[0].save(tmp_path / part / "a.gif", save_all=True, append_images=frames[1:])
    assert (data.load(f"folder:{tmp_path}").train.images == 10).all()


def test_folder_refused(pictures):
    name = f"folder:{pictures}"
    refused(name + "/absent", "absent", "no folder")
    refused(name + "/00.png", "00.png", "no folder")
    (pictures / "empty").mkdir()
    refused(name + "/empty", "no image", ".png")
    odd = picture(pictures / "99.png", pixels(1, 6, 7)[0])
    refused(name, "00.png' is 5x4", "99.png' 7x6", "resize")
    whole = (pictures / "00.png").read_bytes()
    for broken in (b"", b"no image", whole[:60]):
        odd.write_bytes(broken)
        refused(name, "99.png", "no readable image", "replace or remove")
    odd.unlink()
    odd.symlink_to(pictures / "gone.png")
    refused(name, "99.png", "no regular file")


def test_folder_links_must_stay_inside(pictures, tmp_path_factory):
    outside = picture(tmp_path_factory.mktemp("outside") / "a.png", pixels(1)[0])
    for target in (outside, outside.parent):
        link = pictures / "link.png"
        link.symlink_to(target)
        refused(f"folder:{pictures}", "link.png", "leads out")
        link.unlink()
    alias = outside.parent / "alias"
    alias.symlink_to(pictures)
    assert len(data.load(f"folder:{alias}").train) == 24  # the folder itself may be a link


def test_folder_names_sort_alike_in_either_spelling(tmp_path):
    """An accented letter may be one code point or two, as the file system likes."""
    found = []
    for form in ("NFC", "NFD"):
        for i, name in enumerate(("f", "\u00e9", "e", "z", "a", "b", "c", "d")):
            picture(tmp_path / form / f"{unicodedata.normalize(form, name)}.png", pixels(8)[i])
        found.append(data.load(f"folder:{tmp_path / form}"))
    np.testing.assert_array_equal(found[0].train.images, found[1].train.images)
    np.testing.assert_array_equal(found[0].test.images, found[1].test.images)


def test_folder_opens_only_the_formats_it_names(pictures):
    picture(pictures / "00.png", pixels(1)[0], format="PCX")
    refused(f"folder:{pictures}", "00.png", "no readable image")


def test_folder_too_small_to_split(tmp_path):
    picture(tmp_path / "a.png", pixels(1)[0])
    refused(f"folder:{tmp_path}", "of 1 images", "train/ and test/")


@pytest.mark.parametrize("side", [1 << 13, 1 << 20])
def test_folder_png_that_promises_too_much(pictures, side):

    def chunk(kind, body):
        size, check = struct.pack(">I", len(body)), struct.pack(">I", zlib.crc32(kind + body))
        return size + kind + body + check

    header = chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (pictures / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    refused(f"folder:{pictures}", "00.png", f"is {side}x{side}", "at most 600 times as many")


def test_mutated_images(pictures):
    for suffix in (".png", ".jpg", ".gif", ".tif", ".webp"):
        path = picture(pictures / f"00{suffix}", pixels(1)[0])
        for mutation in mutations(path.read_bytes(), 2, 30):
            path.write_bytes(mutation)
            try:
                images.read_uint8(path)
            except InputError as error:
                assert "\n" not in str(error)
        path.unlink()


def test_pictures_of_any_size_are_cut(tmp_path):
    for i, shape in enumerate([(20, 30, 3), (40, 17, 3), (16, 16), (33, 33, 3)] * 4):
        pixels = np.full(shape, i, np.uint8)
        name = f"{'test' if i % 4 == 3 else 'train'}/{'ab'[i % 2]}"
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name / f"{i:02}.png")
    dataset = data.load(f"folder:{tmp_path}", crop=16)
    assert dataset.image_shape == (16, 16, 3)
    assert len(dataset.train) == 4 * (1 + 2 + 1) and len(dataset.test) == 4 * 4
    kinds = dataset.train.images[np.arange(len(dataset.train))][:, 0, 0, 0] % 4
    np.testing.assert_array_equal(dataset.train.labels, kinds % 2)
    assert isinstance(dataset.test.images, np.ndarray)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--dataset", "pairs:only-one"], "must name two folders"),
        (["--crop", "32"], "--crop 32 makes patches of image files, and 'mnist' has none"),
        (["--objective", "paired"], "needs pairs of noisy and clean images"),
        (["--dataset", "folder:PHOTOS"], "all must have one size: .* --crop"),
        (["--dataset", "folder:PHOTOS", "--crop", "4"], "--crop 4 must be at least 8"),
        (["--dataset", "folder:PHOTOS", "--crop", "30"], "smaller than --crop 30: choose at most"),
        (
            ["--dataset", "pairs:PHOTOS,PHOTOS", "--crop", "9", "--sigma", "1"],
            "--sigma has no effect with --objective paired",
        ),
        (
            ["--dataset", "pairs:PHOTOS,PHOTOS", "--crop", "9", "--corruption", "masking"],
            "--corruption has no effect with --objective paired",
        ),
        (
            ["--dataset", "pairs:PHOTOS,PHOTOS", "--crop", "9", "--objective", "supervised"],
            "which holds noisy images already: give --objective paired",
        ),
    ],
)
def test_mistakes_are_answered_in_a_line(tmp_path, capsys, words, complaint):
    write_images(tmp_path, 12, (20, 20))
    write_images(tmp_path, 3, (28, 26))
    words = [word.replace("PHOTOS", str(tmp_path)) for word in words]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(complaint, error), error
    assert not (tmp_path / "run").exists()
