"""IDX files: the images that they hold, or an InputError; and the package's own MNIST."""

import gzip
import hashlib
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdae import data
from jaxdae.data import mnist
from tests.data.sources import mutations, pixels, refused, survives

FILES = tuple(mnist.SHA256)  # train images, train labels, test images, test labels


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
    digits = data.load("mnist")
    assert (digits.name, digits.image_shape) == ("mnist", (28, 28, 1))
    assert (len(digits.train), len(digits.test)) == (60_000, 10_000)
    for split, names in ((digits.train, FILES[:2]), (digits.test, FILES[2:])):
        assert split.labels is not None
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert np.bincount(split.labels).shape == (10,)
        for name, x in zip(
            names, (split.images[..., 0], split.labels.astype(np.uint8)), strict=True
        ):
            assert hashlib.sha256(idx(x)).hexdigest() == mnist.SHA256[name]
        assert list(split.labels[:3]) == ([5, 0, 4] if names[0] == FILES[0] else [7, 2, 1])


def test_damaged_mnist_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "FOLDER", tmp_path)
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
        ("huge", ["promises", "4294967295x4294967295", "hold at most"]),
        ("none", ["[0, 4, 5, 1]", "no side of 0"]),
        ("no width", ["[7, 4, 0, 1]", "no side of 0"]),
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
    refused(f"idx:{tmp_path}", "promises 1073741824", "hold at most")
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
