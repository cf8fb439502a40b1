"""Stacks: what they hold comes back to the byte, or they are refused."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdae.errors import InputError
from jaxdae.image_io import limits
from jaxdae.image_io import numpy_stacks as stacks
from jaxdae.image_io.limits import TooLarge
from jaxdae.image_io.numpy_stacks import Stack, Writer


def copied(path, new, change=lambda images: images):
    with Stack(path) as stack, Writer(stack, new) as writer:
        for array in stack.images:
            for some in stack.read(array):
                writer.add(array, change(some))


@given(
    st.sampled_from(["u1", "u2", ">u2", "f2", "f4", ">f8"]),
    st.sampled_from([(5, 4, 3), (1, 4, 3, 1), (6, 2, 2, 3)]),
    st.booleans(),
    st.integers(1, 4),
)
def test_a_stack_comes_back_to_the_byte(tmp_path_factory, dtype, shape, fortran, step):
    folder = tmp_path_factory.mktemp("stack")
    x = np.random.default_rng(0).random(shape)
    dtype = np.dtype(dtype)
    x = (x * np.iinfo(dtype).max if dtype.kind == "u" else x).astype(dtype)
    x = np.asfortranarray(x) if fortran else x
    np.save(folder / "a.npy", x)
    np.savez(folder / "a.npz", x=x, y=x[:1], label=np.arange(len(x)))
    with Stack(folder / "a.npy") as stack:
        seen = list(stack.read(stack.images[0], step))
    assert [len(some) for some in seen[:-1]] == [step] * (len(seen) - 1)
    np.testing.assert_array_equal(np.concatenate(seen).reshape(shape), x)
    for name in ("a.npy", "a.npz"):
        copied(folder / name, folder / f"new-{name}")
    again = np.load(folder / "new-a.npy")
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, x)
    with np.load(folder / "new-a.npz") as file:
        assert set(file.files) == {"x", "y", "label"} and file["x"].dtype == dtype
        np.testing.assert_array_equal(file["x"], x)
        np.testing.assert_array_equal(file["label"], np.arange(len(x)))


def test_what_is_no_image_is_copied_unread(tmp_path):
    """Labels, names, and even objects, which are not unpickled; the same bytes every time."""
    objects = np.array([{}, None], object)
    x = np.zeros((300, 2, 2), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", names=np.array(["ä", "b"]), x=x, objects=objects)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("README", "of the data")
    for new in ("b.npz", "c.npz"):
        copied(tmp_path / "a.npz", tmp_path / new, lambda images: images + 1)
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "b.npz") as new, zipfile.ZipFile(tmp_path / "a.npz") as old:
        for name in ("names.npy", "objects.npy", "README"):
            assert new.read(name) == old.read(name)
        assert new.getinfo("x.npy").compress_type == zipfile.ZIP_DEFLATED
    assert (np.load(tmp_path / "b.npz")["x"] == 1).all()


def test_colours_change_the_shape(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 5), np.uint8))
    copied(tmp_path / "a.npy", tmp_path / "b.npy", lambda images: images.repeat(3, 3))
    assert np.load(tmp_path / "b.npy").shape == (3, 4, 5, 3)


def refused(path, *said):
    def read_all():
        with Stack(path) as stack:
            return [some for array in stack.images for some in stack.read(array)]

    with pytest.raises(InputError) as raised:
        read_all()
    for part in (path.name, *said):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((4, 4)), "holds no images"),
        (np.zeros((2, 4, 4), np.int64), "uint8, uint16 or floating point"),
        (np.zeros((2, 4, 4), bool), "uint8, uint16 or floating point"),
        (np.zeros((2, 4, 4), [("a", "u1")]), "uint8, uint16 or floating point"),
        (np.zeros((2, 0, 4)), "must hold pixels"),
        (np.zeros((2, 3, 9, 9)), "channels come last"),
        (np.full((2, 4, 4), 1.5), "in [1.5, 1.5]"),
        (np.full((2, 4, 4), np.nan), "in [nan, nan]"),
        (np.array([[[None]]]), "uint8, uint16 or floating point"),
        (np.array("a"), "holds no images"),
    ],
)
def test_other_arrays_are_refused(tmp_path, x, said):
    np.save(tmp_path / "a.npy", x)
    refused(tmp_path / "a.npy", said)
    np.savez(tmp_path / "a.npz", key=x)
    refused(tmp_path / "a.npz", said, "key")


def test_damaged_stacks_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((9, 4, 4), np.uint8))
    whole = (tmp_path / "a.npy").read_bytes()
    for broken in (b"", b"no array", whole[:-1], whole + b"!", whole[:50]):
        (tmp_path / "a.npy").write_bytes(broken)
        refused(tmp_path / "a.npy", "write it again")
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 4, 4), np.uint8))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    at = whole.index(b"NUMPY") + 150  # a pixel, which only the checksum knows
    whole[at] ^= 1
    (tmp_path / "a.npz").write_bytes(whole)
    refused(tmp_path / "a.npz", "CRC-32")
    np.savez(tmp_path / "b.npz")
    refused(tmp_path / "b.npz", "nothing")
    refused(tmp_path / "absent.npy", "no regular file")


def test_large_promises_are_not_believed(tmp_path, monkeypatch):
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 28, 28)}
    np.lib.format.write_array_header_1_0(header, shape)
    (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(100))
    refused(tmp_path / "a.npy", "but holds 100 bytes")
    np.save(tmp_path / "b.npy", np.zeros((2, 4, 4), np.uint8))
    monkeypatch.setattr(limits, "memory", lambda: 8 * 15)
    with pytest.raises(
        TooLarge, match=r"an image of '.*b.npy' is 4x4, 16 bytes, but .* memory, 15"
    ):
        stacks.Stack(tmp_path / "b.npy", max_pixels=15)
    monkeypatch.undo()
    with stacks.Stack(tmp_path / "b.npy", max_pixels=15):
        pass
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((3, 900, 900), np.uint8))
    with pytest.raises(TooLarge, match=r"'x' is 900x900, 810,000 bytes from 8.. in its file, but"):
        stacks.Stack(tmp_path / "d.npz", max_pixels=900 * 900 - 1)
    with stacks.Stack(tmp_path / "d.npz"):
        pass
    np.save(tmp_path / "c.npy", np.asfortranarray(np.zeros((2, 4, 4), np.uint8)))
    monkeypatch.setattr(stacks, "MAX_BYTES", 31)
    refused(tmp_path / "c.npy", "ascontiguousarray")
