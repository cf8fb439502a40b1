"""Random patches: cut from their images, and a function of (seed, epoch, number) alone."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.run import main
from jaxdae.data.patches import Crops
from tests.data.sources import QUICK, write_images

RNG = np.random.default_rng(0)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(8, 40), st.integers(8, 40)), min_size=1, max_size=5),
    st.sampled_from([1, 3]),
    st.integers(0, 3),
)
def test_patches_are_cut_from_their_pictures(sides, channels, epoch):
    pictures = []
    for i, (h, w) in enumerate(sides):  # each pixel tells its picture and its place
        rows, columns = np.mgrid[:h, :w]
        places = np.stack([np.full((h, w), i), rows, columns][:channels], -1)
        pictures.append(places.astype(np.uint8))
    crops = Crops(pictures, 8)
    assert len(crops) == sum((h // 8) * (w // 8) for h, w in sides)
    assert crops.shape == (len(crops), 8, 8, channels)
    rows = np.arange(len(crops))
    for patches in (crops.patches(0, epoch, rows), crops[rows]):
        assert patches.shape == crops.shape
        numbers = patches[:, 0, 0, 0]
        assert (patches[..., 0] == numbers[:, None, None]).all()  # none lies in two pictures
        counts = np.bincount(numbers, minlength=len(sides))
        assert counts.tolist() == [(h // 8) * (w // 8) for h, w in sides]
        if channels == 3:
            top, left = patches[:, 0, 0, 1], patches[:, 0, 0, 2]
            assert (patches[:, -1, -1, 1] == top + 7).all()
            assert (patches[:, -1, -1, 2] == left + 7).all()
    if channels == 3:
        grid = {tuple(place) for place in crops[rows][:, 0, 0].tolist()}
        assert len(grid) == len(crops) and all(y % 8 == x % 8 == 0 for _, y, x in grid)


def test_patches_depend_on_seed_epoch_and_number_alone():
    pictures = [RNG.integers(0, 256, (40, 50, 1), np.uint8) for _ in range(3)]
    crops, again = Crops(pictures, 16), Crops(pictures, 16)
    first = crops.patches(0, 0, np.arange(len(crops)))
    other = crops.patches(0, 1, np.arange(len(crops)))
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, crops.patches(1, 0, np.arange(len(crops))))
    np.testing.assert_array_equal(again.patches(0, 1, np.array([4, 2])), other[[4, 2]])
    np.testing.assert_array_equal(again.patches(0, 0, np.array([5])), first[[5]])
    part = crops[2:6]
    assert len(part) == 4
    np.testing.assert_array_equal(part.patches(0, 1, np.arange(4)), other[2:6])


def test_places_are_uniform():
    crops = Crops([np.arange(12 * 12, dtype=np.uint8).reshape(12, 12, 1)] * 2000, 8)
    corner = crops.patches(0, 0, np.arange(len(crops)))[:, 0, 0, 0]
    counts = np.bincount(corner // 12 * 5 + corner % 12, minlength=25)
    assert len(counts) == 25 and counts.min() > 40 and counts.max() < 130  # 80 expected


@pytest.mark.slow
def test_training_on_patches_resumes_bit_for_bit(tmp_path, capsys):
    write_images(tmp_path / "photos", 30, (20, 28))
    words = [*QUICK, "--dataset", f"folder:{tmp_path}/photos", "--crop", "8", "--batch-size", "16"]
    words += ["--epochs", "3", "--schedule", "constant", "--devices", "1"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    # Stopped after an epoch: the same run, whose later checkpoints are lost.
    assert main([*words, "--out", str(tmp_path / "part")]) == 0
    (tmp_path / "part/summary.json").unlink()
    for step in sorted((tmp_path / "part/checkpoints").iterdir(), key=lambda p: int(p.name))[1:]:
        for file in sorted(step.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        step.rmdir()
    assert main(["--resume", str(tmp_path / "part"), "--no-figures", "--no-cache"]) == 0
    assert "resumed after epoch 1" in capsys.readouterr().out
    one, two = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "part"))
    assert one["params_sha256"] == two["params_sha256"]
    assert one["test"] == two["test"]
    # Patches of test pictures do not move.
    assert main([*words, "--seed", "1", "--out", str(tmp_path / "seed")]) == 0
    three = json.loads((tmp_path / "seed/summary.json").read_text())
    assert three["params_sha256"] != one["params_sha256"]
