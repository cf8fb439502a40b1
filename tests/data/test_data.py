"""Every source gives the images it holds, or an InputError of one line that says what to do."""

import gzip
import hashlib
import importlib.util
import io
import os
import struct
import subprocess
import sys
import time
import unicodedata
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdae import data
from jaxdae.data import idx as idx_files
from jaxdae.data import tfds as reader
from jaxdae.errors import InputError
from jaxdae.image_io import pillow as images

FILES = tuple(idx_files.MNIST_SHA256)  # train images, train labels, test images, test labels


def refused(name, *parts, **options):
    """load() refuses in one line that holds every one of `parts`."""
    with pytest.raises(InputError) as caught:
        data.load(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    return message


def pixels(n, h=4, w=5, *channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, *channels), np.uint8)


# IDX


def idx(x):
    return struct.pack(f">I{x.ndim}I", 0x0800 + x.ndim, *x.shape) + x.tobytes()


def write_idx(folder, train=None, test=None, labels=True, pack=False):
    """Four IDX files, or two; gives the arrays back."""
    train, test = pixels(7) if train is None else train, pixels(3, seed=1) if test is None else test
    arrays = [train, np.arange(len(train)), test, np.arange(len(test))]
    for name, x in zip(FILES, arrays, strict=True):
        if labels or "images" in name:
            content = idx(x.astype(np.uint8))
            path = folder / (f"{name}.gz" if pack else name)
            path.write_bytes(gzip.compress(content) if pack else content)
    return arrays


def test_mnist_is_whole():
    mnist = data.load("mnist")
    assert (mnist.name, mnist.image_shape) == ("mnist", (28, 28, 1))
    assert (len(mnist.train), len(mnist.test)) == (60_000, 10_000)
    for split, names in ((mnist.train, FILES[:2]), (mnist.test, FILES[2:])):
        assert split.labels is not None
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert np.bincount(split.labels).shape == (10,)
        for name, x in zip(
            names, (split.images[..., 0], split.labels.astype(np.uint8)), strict=True
        ):
            assert hashlib.sha256(idx(x)).hexdigest() == idx_files.MNIST_SHA256[name]
        assert list(split.labels[:3]) == ([5, 0, 4] if names[0] == FILES[0] else [7, 2, 1])


def test_damaged_mnist_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(idx_files, "MNIST", tmp_path)
    refused("mnist", "reinstall jaxdae", FILES[0])
    write_idx(tmp_path)  # sound files, but others
    refused("mnist", "reinstall jaxdae", "SHA-256")


@given(
    images=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)),
    pack=st.booleans(),
    labels=st.booleans(),
)
def test_idx_round_trip(tmp_path_factory, images, pack, labels):
    folder = tmp_path_factory.mktemp("idx")
    arrays = write_idx(folder, images, images[::-1], labels, pack)
    found = data.load(f"idx:{folder}")
    np.testing.assert_array_equal(found.train.images, arrays[0][..., None])
    np.testing.assert_array_equal(found.test.images, arrays[2][..., None])
    if labels:
        np.testing.assert_array_equal(found.train.labels, arrays[1])
        np.testing.assert_array_equal(found.test.labels, arrays[3])
    else:
        assert found.train.labels is None and found.test.labels is None


def damage(content, how):
    return {
        "truncated": content[:-1],
        "trailing": content + b"\0",
        "no header": content[:9],
        "empty": b"",
        "magic": b"\0\0\x0d\3" + content[4:],
        "labels": idx(np.arange(7, dtype=np.uint8)),
        "huge": content[:4] + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + content[16:],
        "none": idx(pixels(0)),
        "no width": idx(pixels(7, 4, 0)),
    }[how]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    ("how", "parts"),
    [
        ("truncated", ["promises 140 bytes (7x4x5)", "fetch"]),
        ("trailing", ["promises 140 bytes", "more", "fetch"]),
        ("no header", ["header", "fetch"]),
        ("empty", ["header", "fetch"]),
        ("magic", ["begins with 3331", "2051"]),
        ("labels", ["begins with 2049 (labels)", "images", "2051"]),
        ("huge", ["promises", "4294967295x4294967295", "at the most"]),
        ("none", ["[0, 4, 5, 1]", "none 0"]),
        ("no width", ["[7, 4, 0, 1]", "none 0"]),
    ],
)
def test_damaged_idx(tmp_path, how, parts, pack):
    write_idx(tmp_path, pack=pack)
    path = tmp_path / (FILES[0] + ".gz" * pack)
    content = gzip.decompress(path.read_bytes()) if pack else path.read_bytes()
    content = damage(content, how)
    path.write_bytes(gzip.compress(content) if pack else content)
    refused(f"idx:{tmp_path}", *parts)


def test_idx_gzipped_in_several_parts(tmp_path):
    """One after the other, and with zeros behind them, as `gzip` reads them too."""
    images, *_ = write_idx(tmp_path, pack=True)
    content = idx(images)
    parts = content[:9], content[9:50], content[50:]
    packed = b"".join(map(gzip.compress, parts)) + bytes(100)
    assert gzip.decompress(packed) == content
    (tmp_path / f"{FILES[0]}.gz").write_bytes(packed)
    np.testing.assert_array_equal(data.load(f"idx:{tmp_path}").train.images[..., 0], images)


def test_damaged_idx_gzip(tmp_path):
    write_idx(tmp_path, pack=True)
    path = tmp_path / f"{FILES[0]}.gz"
    content = path.read_bytes()
    for broken in (
        content[:-4],
        content[:40],
        content[:-8] + bytes(8),
        content[:12] + b"\xff" * 50,
    ):
        path.write_bytes(broken)
        refused(f"idx:{tmp_path}", FILES[0], "cannot be read", "fetch")


def test_idx_promise_is_not_allocated(tmp_path):
    """A gzip bomb is read to one byte past what it promises; a great promise is not believed."""
    import tracemalloc

    write_idx(tmp_path)
    path = tmp_path / FILES[0]
    bomb = struct.pack(">4I", 0x803, 7, 4, 5) + bytes(1 << 26)
    path.write_bytes(gzip.compress(bomb, 9))
    tracemalloc.start()
    refused(f"idx:{tmp_path}", "more")
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 1 << 12, 1 << 9, 1 << 9)))
    refused(f"idx:{tmp_path}", "promises 1073741824", "at the most")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_idx_folder(tmp_path):
    refused(f"idx:{tmp_path / 'absent'}", "absent", "no folder")
    refused(f"idx:{tmp_path}", FILES[0], "add one")
    write_idx(tmp_path)
    (tmp_path / FILES[3]).unlink()
    dataset = data.load(f"idx:{tmp_path}")
    assert dataset.train.labels is not None and dataset.test.labels is None
    (tmp_path / FILES[3]).write_bytes(idx(np.zeros(4, np.uint8)))
    refused(f"idx:{tmp_path}", "test images", "[3, 4, 5, 1]", "labels [4]")
    (tmp_path / FILES[3]).write_bytes(idx(pixels(3)))
    refused(f"idx:{tmp_path}", "begins with 2051 (images)", "labels")
    write_idx(tmp_path, test=pixels(3, 5, 5))
    refused(f"idx:{tmp_path}", "[3, 5, 5, 1]", "[4, 5, 1]", "resize")
    (tmp_path / FILES[0]).unlink()
    (tmp_path / FILES[0]).mkdir()
    refused(f"idx:{tmp_path}", FILES[0], "no regular file")
    (tmp_path / FILES[0]).rmdir()
    os.mkfifo(tmp_path / FILES[0])
    refused(f"idx:{tmp_path}", FILES[0], "no regular file")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx(tmp_path)
    assert len(data.load("idx:~").train) == 7


# NPZ


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "x_test", "y_train", "y_test"),
        ("train", "test", "train_labels", "test_labels"),
        ("train_images", "test_images", "train_labels", "test_labels"),
    ],
)
def test_npz_keys(tmp_path, save, keys):
    arrays = pixels(7), pixels(3, seed=1), np.arange(7, dtype=np.uint8), np.arange(3)[:, None]
    save(tmp_path / "a.npz", **dict(zip(keys, arrays, strict=True)))
    found = data.load(f"npz:{tmp_path / 'a.npz'}")
    np.testing.assert_array_equal(found.train.images, arrays[0][..., None])
    np.testing.assert_array_equal(found.test.images, arrays[1][..., None])
    np.testing.assert_array_equal(found.train.labels, arrays[2])
    np.testing.assert_array_equal(found.test.labels, arrays[3][:, 0])
    for split in (found.train, found.test):
        assert split.labels is not None and split.labels.dtype == np.int32


def npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize(("n", "tests"), [(2, 1), (7, 1), (13, 1), (14, 2), (70, 10)])
def test_npz_last_seventh_is_the_test(tmp_path, n, tests):
    x = pixels(n, 4, 5, 2)
    found = data.load(npz(tmp_path / "a.npz", images=x, labels=np.arange(n)))
    assert found.image_shape == (4, 5, 2)
    np.testing.assert_array_equal(found.train.images, x[:-tests])
    np.testing.assert_array_equal(found.test.images, x[-tests:])
    np.testing.assert_array_equal(found.test.labels, np.arange(n)[-tests:])
    assert data.load(npz(tmp_path / "b.npz", images=x)).train.labels is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_floats_are_rounded(tmp_path, dtype):
    x = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    scaled = np.asfortranarray((x / 255).astype(dtype))
    found = data.load(npz(tmp_path / "a.npz", x_train=scaled, x_test=x))
    np.testing.assert_array_equal(found.train.images[..., 0], x)
    assert found.train.images.flags.c_contiguous


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (pixels(7) * 1.0, ["float64", "[0, 1]", "rescale"]),
        (pixels(7) / 255 - 1e-3, ["[0, 1]", "rescale"]),
        (np.where(pixels(7) > 128, np.nan, 0.5), ["nan", "finite"]),
        (np.where(pixels(7) > 128, np.inf, 0.5), ["inf", "finite"]),
        (pixels(7).astype(np.int64), ["int64", "uint8"]),
        (pixels(7) > 9, ["bool", "uint8"]),
        (pixels(7) * 1j, ["complex", "numbers"]),
        (pixels(7).astype(object), ["object", "numbers"]),
        (pixels(7).astype("U3"), ["str", "numbers"]),
        (np.zeros(7, [("a", "u1")]), ["numbers"]),
        (pixels(7)[0], ["[4, 5]", "[n h w]"]),
        (pixels(7, 4, 5, 1, 1), ["[7, 4, 5, 1, 1]", "[n h w]"]),
        (pixels(0), ["[0, 4, 5]", "none 0"]),
        (pixels(7, 0), ["[7, 0, 5]", "none 0"]),
        (pixels(7, 4, 5, 0), ["[7, 4, 5, 0]", "none 0"]),
        (pixels(7, 3, 32, 32), ["channels come last", "moveaxis"]),
        (pixels(1), ["[0, 4, 5, 1]", "none 0"]),
    ],
)
def test_npz_images_refused(tmp_path, images, parts):
    refused(npz(tmp_path / "a.npz", images=images), *parts)


@pytest.mark.parametrize(
    "labels",
    [np.arange(6), np.arange(7) / 2, np.full(7, 1 << 40), np.zeros((7, 2), int), np.arange(8)],
)
def test_npz_labels_refused(tmp_path, labels):
    refused(npz(tmp_path / "a.npz", images=pixels(7), labels=labels), "labels")


def test_npz_file(tmp_path):
    path = tmp_path / "a.npz"
    refused(f"npz:{path}", "a.npz", "no file")
    refused(f"npz:{tmp_path}", "no file")
    refused(npz(path), "x_train", "images")
    refused(npz(path, x_train=pixels(7), other=pixels(2)), "'other, x_train'", "x_test")
    refused(npz(path, train=pixels(7), test=pixels(7, 5)), "[4, 5, 1]", "resize")
    np.save(tmp_path / "b.npy", pixels(7))
    (tmp_path / "b.npy").rename(path)
    refused(f"npz:{path}", "no readable .npz", "numpy.savez")
    npz(path, images=pixels(7))
    path.write_bytes(path.read_bytes()[:-30])
    refused(f"npz:{path}", "no readable .npz")
    x = pixels(7)
    npz(path, images=x)
    content = bytearray(path.read_bytes())
    content[content.index(x.tobytes())] ^= 1
    path.write_bytes(content)
    refused(f"npz:{path}", "CRC")


def test_npz_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    traps = np.empty(7, object)
    traps[:] = [Trap()] * 7
    refused(npz(tmp_path / "a.npz", images=traps), "object")
    assert not (tmp_path / "sprung").exists()


def test_npz_promise_is_not_allocated(tmp_path):
    path, header = tmp_path / "a.npz", io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20, 1 << 20)}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(50))
    refused(f"npz:{path}", "uint8 [1048576, 1048576, 1048576]", "holds 50 bytes")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", bytes(1 << 24))
    refused(f"npz:{path}", "promises 16777216 bytes")


# Mutated files


def mutations(content, seed, n):
    """Copies with bytes flipped, cut, doubled or overwritten by large numbers."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        x = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at, how = int(rng.integers(len(x) + 1)), rng.integers(5)
            if how == 0:
                x[at : at + 1] = bytes([rng.integers(256)])
            elif how == 1:
                x[at : at + 4] = b"\xff\xff\xff\xff"
            elif how == 2:
                del x[at : at + int(rng.integers(1, 30))]
            elif how == 3:
                x[at:at] = x[at : at + 20]
            else:
                at = min(at, 40)
                x[at : at + 1] = bytes([rng.integers(256)])
        yield bytes(x)


def survives(name):
    """Loads, or is refused in one line."""
    try:
        data.load(name)
        return 1
    except InputError as error:
        assert "\n" not in str(error)
        return 0


@pytest.mark.parametrize("pack", [False, True])
def test_mutated_idx(tmp_path, pack):
    write_idx(tmp_path, pack=pack)
    for name in FILES[:2]:
        path = tmp_path / (name + ".gz" * pack)
        content = path.read_bytes()
        loaded = 0
        for mutation in mutations(content, 0, 200):
            path.write_bytes(mutation)
            loaded += survives(f"idx:{tmp_path}")
        assert loaded < 150
        path.write_bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mutated_npz(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, x_train=pixels(7), x_test=pixels(3), y_train=np.arange(7))
    for mutation in mutations(path.read_bytes(), 1, 400):
        path.write_bytes(mutation)
        survives(f"npz:{path}")


# Folders


def picture(path, x, **options):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path, **options)
    return path


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
    from PIL import Image

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
    from PIL import Image

    x = pixels(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    picture(tmp_path / "train" / "a.png", x, exif=exif)
    picture(tmp_path / "test" / "a.png", np.rot90(x, -1).copy())
    found = data.load(f"folder:{tmp_path}")
    np.testing.assert_array_equal(found.train.images, found.test.images)


def test_folder_first_frame(tmp_path):
    from PIL import Image

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


@pytest.mark.parametrize(
    ("side", "said"), [(1 << 13, "8192x8192, and"), (1 << 20, "DecompressionBombError")]
)
def test_folder_png_that_promises_too_much(pictures, side, said):
    """Too large for this reader, and for Pillow, which does not even look further."""

    def chunk(kind, body):
        size, check = struct.pack(">I", len(body)), struct.pack(">I", zlib.crc32(kind + body))
        return size + kind + body + check

    header = chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (pictures / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    refused(f"folder:{pictures}", "00.png", said)


def test_folder_of_as_many_pixels_as_may_be(pictures, monkeypatch):
    width, height = data.load(f"folder:{pictures}").train.images.shape[2:0:-1]
    monkeypatch.setattr(images, "MAX_PIXELS", width * height)
    data.load(f"folder:{pictures}")
    monkeypatch.setattr(images, "MAX_PIXELS", width * height - 1)
    refused(f"folder:{pictures}", "00.png", f"{width}x{height}", "cut or shrink")


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


# TensorFlow Datasets


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    """An empty tfds folder and an empty cache."""
    pytest.importorskip("tensorflow_datasets")
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def prepare(folder, name="mnist", splits=("train", "test"), seed=0):
    """A small data set on disk, as tfds would have prepared it; gives images by split."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    builder = tfds.builder(name, file_format="array_record", data_dir=folder)
    Path(builder.data_path).mkdir(parents=True)
    infos, arrays = [], {}
    for n, split in enumerate(splits, 3):
        arrays[split] = pixels(n, *builder.info.features["image"].shape, seed=seed + n)
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=name,
            split=split,
            filetype_suffix="array_record",
        )
        writer = ArrayRecordWriter(
            str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1"
        )
        for i, x in enumerate(arrays[split]):
            png, example = io.BytesIO(), tf_example_pb2.Example()
            Image.fromarray(x.squeeze()).save(png, "PNG")
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.append(i)
            writer.write(example.SerializeToString())
        writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[n], num_bytes=1, filename_template=template
            )
        )
    builder.info.set_splits(tfds.core.SplitDict(infos))
    builder.info.write_to_directory(builder.data_path)
    return arrays


def same(dataset, arrays, test="test"):
    for split, name in ((dataset.train, "train"), (dataset.test, test)):
        np.testing.assert_array_equal(split.images, arrays[name])
        np.testing.assert_array_equal(split.labels, np.arange(len(arrays[name])))
    return True


def test_tfds_is_decoded_once_and_kept(catalogue, monkeypatch, capfd):
    arrays = prepare(catalogue / "tfds")
    assert same(data.load("tfds:mnist"), arrays)
    cache = catalogue / "cache" / "jaxdae" / "tfds" / "mnist" / "3.0.1"
    kept = ["SHA256SUMS"] + [
        f"{part}_{x}.npy" for part in ("test", "train") for x in ("images", "labels")
    ]
    assert sorted(path.name for path in cache.iterdir()) == kept
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=cache, check=True)
    monkeypatch.setattr(reader, "_decode_tfds", lambda *_: pytest.fail("decoded again"))
    assert same(data.load("tfds:mnist"), arrays)
    assert same(data.load("tfds:mnist:3.0.1"), arrays)
    assert capfd.readouterr() == ("", "")


def test_tfds_cache_dir(catalogue):
    arrays = prepare(catalogue / "tfds")
    assert same(data.load("tfds:mnist", cache_dir=catalogue / "other"), arrays)
    assert (catalogue / "other" / "tfds" / "mnist" / "3.0.1" / "SHA256SUMS").exists()
    assert not (catalogue / "cache").exists()
    (catalogue / "file").write_text("")
    refused("tfds:mnist", "cannot be written", "cache folder", cache_dir=catalogue / "file")


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_tfds_damaged_cache_is_rebuilt(catalogue, file, how):
    arrays = prepare(catalogue / "tfds")
    data.load("tfds:mnist")
    path = next(catalogue.rglob(file))
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(
            content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
            if how == "flipped"
            else content[:-9]
        )
    assert same(data.load("tfds:mnist"), arrays)
    assert path.read_bytes() == content


def test_tfds_validation_stands_in_for_test(catalogue):
    arrays = prepare(catalogue / "tfds", "cifar10", ("train", "validation"))
    found = data.load("tfds:cifar10")
    assert found.image_shape == (32, 32, 3) and same(found, arrays, "validation")


def test_tfds_splits_and_damage(catalogue):
    prepare(catalogue / "tfds", splits=("train", "extra"))
    refused("tfds:mnist", "train, extra", "validation")
    prepare(catalogue / "tfds", "cifar10")
    records = next(catalogue.rglob("*train.array_record*"), None)
    for records in (catalogue / "tfds" / "cifar10").rglob("*.array_record*"):
        records.write_bytes(records.read_bytes()[:100])
    refused("tfds:cifar10", "cannot be read", "delete it")


def find_spec(*present, absent=()):
    real = importlib.util.find_spec

    def fake(name, *args):
        return object() if name in present else None if name in absent else real(name, *args)

    return fake


def test_tfds_unprepared(catalogue, monkeypatch, caplog, capfd):
    needs = ("tensorflow", "importlib_resources")
    monkeypatch.setattr(importlib.util, "find_spec", find_spec(absent=needs))
    monkeypatch.setattr(reader, "_reachable", lambda hosts: pytest.fail("probed"))
    refused("tfds:mnist", "not prepared", "pip install tensorflow importlib_resources")

    import tensorflow_datasets as tfds

    calls = []

    def download(builder, download_dir):
        print("Downloading")
        calls.append(Path(download_dir))
        prepare(catalogue / "elsewhere")
        os.renames(catalogue / "elsewhere", catalogue / "tfds")
        builder.info.read_from_directory(builder.data_path)

    builder_class = tfds.core.DatasetBuilder
    hosts = [("a.test", 443)]
    monkeypatch.setattr(reader, "_download_hosts", lambda builder: hosts)
    monkeypatch.setattr(builder_class, "download_and_prepare", download)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec(*needs))
    seen = []
    monkeypatch.setattr(reader, "_reachable", lambda hosts: seen.append(hosts))
    refused("tfds:mnist", "not prepared", "does not answer", "network")
    assert seen == [hosts] and not calls

    monkeypatch.setattr(reader, "_reachable", lambda hosts: True)
    assert data.load("tfds:mnist").image_shape == (28, 28, 1)
    assert calls == [catalogue / "tfds" / "downloads" / "mnist" / "3.0.1"]
    assert not caplog.records and capfd.readouterr().out == ""

    def fail(builder, download_dir):
        raise AssertionError("Manual download\n  required")

    monkeypatch.setattr(builder_class, "download_and_prepare", fail)
    refused("tfds:cifar10", "preparing it failed", "Manual download required")


def test_download_hosts(monkeypatch):
    hosts = reader._download_hosts
    monkeypatch.setattr(reader.urllib.request, "getproxies", dict)
    assert hosts(SimpleNamespace(url_infos=None)) == [("storage.googleapis.com", 443)]
    proxies = {"https": "http://proxy.test:3128", "http": "http://proxy.test"}
    monkeypatch.setattr(reader.urllib.request, "getproxies", lambda: proxies)
    monkeypatch.setattr(reader.urllib.request, "proxy_bypass", lambda host: host == "b.test")
    builder = SimpleNamespace(url_infos={"https://a.test/": 0, "http://b.test:81/": 0})
    assert hosts(builder) == [("b.test", 81), ("proxy.test", 3128)]


def test_no_network_is_noticed_in_time(monkeypatch):
    assert reader.PROBE_SECONDS < 9
    monkeypatch.setattr(reader, "PROBE_SECONDS", 0.3)
    start = time.monotonic()
    with monkeypatch.context() as patched:  # a name server that says nothing
        patched.setattr(reader.socket, "create_connection", lambda *_, **__: time.sleep(3))
        assert not reader._reachable([("a.test", 443)] * 8)
    assert time.monotonic() - start < 1.5

    def refuse(host, timeout):
        raise UnicodeError if host[1] == 1 else OSError

    with monkeypatch.context() as patched:
        patched.setattr(reader.socket, "create_connection", refuse)
        assert not reader._reachable([("a.test", 1), ("b.test", 2)])
        assert not reader._reachable([])
    with reader.socket.create_server(("127.0.0.1", 0)) as server:
        assert reader._reachable([("127.0.0.1", server.getsockname()[1])])


def test_tfds_names(catalogue, monkeypatch):
    refused("tfds:fashion_mnst", "fashion_mnst", "tfds:fashion_mnist")
    refused("tfds:mnist:9.9.9", "mnist:9.9.9", "name a version it has")
    refused("tfds:qqqqqqqq", "unknown", "https://")
    refused("tfds:mnist/colour", "mnist/colour")
    for name in ("../up", "mnist/x/y", "kubric:optical_flow", "a b", "~"):
        refused(f"tfds:{name}", "must be tfds:NAME")
    refused("tfds:coil100", "coil100")
    monkeypatch.setattr(importlib.util, "find_spec", find_spec(absent=("tensorflow_datasets",)))
    refused("tfds:mnist", "pip install tensorflow-datasets")


def test_tfds_images_must_have_one_size(catalogue):
    refused("tfds:imagenette", "(None, None, 3)", "one size")
    refused("tfds:ag_news_subset", "absent")


# Names, and the module


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MNIST", "'mnist'"),
        ("mnsit", "'mnist'"),
        ("fashion_mnist", "'tfds:fashion_mnist'"),
        ("cifar10", "'tfds:cifar10'"),
        ("folders:x", "'folder:x'"),
        ("idx", "'idx:...'"),
        ("npz: ", "'npz:...'"),
        ("", "give mnist"),
        ("quite/else", "give mnist"),
        ("two\nlines", "give mnist"),
        ("a" * 5000, "give mnist"),
        ("nul\0", "give mnist"),
    ],
)
def test_unknown_names(name, meant):
    refused(name, data.FORMS, meant)


@pytest.mark.parametrize("place", ["a" * 5000, "nul\0", "two\nlines", "\udcff"])
@pytest.mark.parametrize("kind", ["idx", "npz", "folder", "tfds"])
def test_odd_places(kind, place):
    refused(f"{kind}:{place}")


def test_a_path_alone_is_understood(tmp_path):
    refused(str(tmp_path), f"'folder:{tmp_path}'")
    npz(tmp_path / "a.npz")
    refused(str(tmp_path / "a.npz"), f"'npz:{tmp_path / 'a.npz'}'")


def test_dataset_checks_itself():
    split = data.Split(pixels(2, 4, 4, 1))
    for other in (
        pixels(2, 4, 4),
        pixels(2, 4, 4, 1) / 255,
        pixels(0, 4, 4, 1),
        pixels(2, 4, 4, 3),
    ):
        with pytest.raises(InputError, match="test images"):
            data.Dataset("mine", split, data.Split(other))


def test_import_is_light():
    """Neither jax nor what only some sources need."""
    heavy = "jax tensorflow tensorflow_datasets PIL requests matplotlib"
    code = f"import sys, jaxdae.data; print({{*'{heavy}'.split()}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
