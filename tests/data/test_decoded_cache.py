"""Decoded images give the same data set and the same bits in memory and in a cache file."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from experiments.run import main
from jaxdae import data, training
from jaxdae.data import decoded_cache
from jaxdae.data import folder as folders
from jaxdae.data.decoded_cache import decode_ahead
from jaxdae.errors import InputError
from tests.data.sources import QUICK, write_images

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("crop", [None, 8])
def test_a_file_holds_what_memory_does(tmp_path, monkeypatch, crop):
    write_images(tmp_path / "photos", 20, (18, 16))
    write_images(tmp_path / "photos/x", 0)
    Image.fromarray(RNG.integers(0, 256, (18, 16, 3), np.uint8)).save(tmp_path / "photos/z.png")
    name, cache = f"folder:{tmp_path}/photos", tmp_path / "cache"
    held = data.load(name, crop=crop, cache_dir=cache)
    assert not cache.exists() and held.image_shape[2] == 3
    monkeypatch.setattr(decoded_cache, "MEMORY", 3000)
    mapped = data.load(name, crop=crop, cache_dir=cache)
    for one, two in ((held.train, mapped.train), (held.test, mapped.test)):
        np.testing.assert_array_equal(np.asarray(one.images), np.asarray(two.images))
    assert crop is None or held.sha256 == mapped.sha256
    (kept,) = (cache / "folders").iterdir()

    def fail(path):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "read_uint8", fail)
        again = data.load(name, crop=crop, cache_dir=cache)
    np.testing.assert_array_equal(np.asarray(again.train.images), np.asarray(held.train.images))
    assert again.sha256 == mapped.sha256 is not None
    # A file that is damaged, or images that have changed, are noticed.
    os.truncate(kept / "pixels", 100)
    whole = data.load(name, crop=crop, cache_dir=cache)
    np.testing.assert_array_equal(np.asarray(whole.train.images), np.asarray(held.train.images))
    Image.fromarray(np.zeros((18, 16), np.uint8)).save(tmp_path / "photos/000.png")
    os.utime(tmp_path / "photos/000.png", (1, 1))
    changed = data.load(name, crop=crop, cache_dir=cache)
    assert changed.sha256 != mapped.sha256
    assert len(list((cache / "folders").iterdir())) == 2


@pytest.mark.parametrize(("most", "ahead"), [(99, 1), (100, 1), (350, 3)])
def test_few_large_images_wait_in_memory(tmp_path, monkeypatch, most, ahead):
    monkeypatch.setattr(decoded_cache, "AHEAD", most)
    paths = [tmp_path / f"{i}" for i in range(9)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes(decoded_cache.LARGE_FILE - i % 2))
    asked, begun = [], []

    def size(path):
        asked.append(path)
        return 100

    def decode(path):
        begun.append(path)
        return path.name

    for i, name in enumerate(decode_ahead(decode, paths[::2], size)):
        assert name == str(2 * i) and len(begun) <= i + ahead
    assert asked == paths[::2]
    assert list(decode_ahead(decode, paths[1::2], size)) == ["1", "3", "5", "7"]
    assert asked == paths[::2]  # small files are not asked


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", 20)
    monkeypatch.setattr(decoded_cache, "MEMORY", 0)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cannot be written.*choose another cache folder"):
        data.load(f"folder:{tmp_path}/photos", cache_dir=tmp_path / "cache")


def test_a_file_trains_to_the_same_bits(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", 80)
    words = [*QUICK, "--dataset", f"folder:{tmp_path}/photos", "--epochs", "2", "--devices", "1"]
    words += ["--batch-size", "8"]
    assert main([*words, "--out", str(tmp_path / "held")]) == 0
    monkeypatch.setattr(decoded_cache, "MEMORY", 0)
    monkeypatch.setattr(training, "fits", lambda images, devices: False)
    monkeypatch.setattr("jaxdae.evaluation.fits", lambda images, devices: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([*words, "--out", str(tmp_path / "mapped")]) == 0
    assert (tmp_path / "cache/jaxdae/folders").is_dir()
    one, two = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("held", "mapped")
    )
    assert one["params_sha256"] == two["params_sha256"]
    assert one["test"] == two["test"]
