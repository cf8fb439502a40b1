"""NumPy archives: the images that they hold, or an InputError; nothing is unpickled."""

import io
import os
import zipfile

import numpy as np
import pytest

from jaxdae import data
from tests.data.sources import mutations, npz, pixels, refused, survives


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
        (pixels(0), ["[0, 4, 5]", "no side of 0"]),
        (pixels(7, 0), ["[7, 0, 5]", "no side of 0"]),
        (pixels(7, 4, 5, 0), ["[7, 4, 5, 0]", "no side of 0"]),
        (pixels(7, 3, 32, 32), ["channels come last", "moveaxis"]),
        (pixels(1), ["[0, 4, 5, 1]", "no side of 0"]),
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mutated_npz(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, x_train=pixels(7), x_test=pixels(3), y_train=np.arange(7))
    for mutation in mutations(path.read_bytes(), 1, 400):
        path.write_bytes(mutation)
        survives(f"npz:{path}")
