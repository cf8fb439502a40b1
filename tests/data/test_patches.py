"""Random patches: cut from their images, and a function of (seed, epoch, number) alone."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.run import main
from jaxdae.data.patches import Crops, texture
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


def test_turned_patches_are_all_eight_ways_of_the_same_places():
    pictures = [RNG.integers(0, 256, (70, 90, 3), np.uint8) for _ in range(3)]
    plain, crops = Crops(pictures, 16), Crops(pictures, 16, turns=True)
    rows = np.arange(len(crops))
    before, after = plain.patches(0, 2, rows), crops.patches(0, 2, rows)
    found = []
    for a, b in zip(before, after, strict=True):
        ways = [
            np.array_equal(np.rot90(mirrored, quarter), b)
            for mirrored in (a, a.swapaxes(0, 1))
            for quarter in range(4)
        ]
        assert sum(ways) == 1
        found.append(ways.index(True))
    assert set(found) == set(range(8))
    np.testing.assert_array_equal(crops.patches(0, 2, rows[5:7]), after[5:7])
    np.testing.assert_array_equal(crops[3:9].patches(0, 2, np.arange(6)), after[3:9])
    np.testing.assert_array_equal(crops[rows], plain[rows])  # those to test on stay


def test_of_several_candidates_the_one_with_most_texture():
    """Where half of a picture is flat, patches come from the other half."""
    picture = np.full((64, 128, 1), 90, np.uint8)
    picture[:, 64:] = RNG.integers(0, 256, (64, 64, 1))
    one, four = Crops([picture], 16), Crops([picture], 16, candidates=4)
    patches = [crops.patches(0, epoch, np.arange(32)) for crops in (one, four) for epoch in (0, 1)]
    flat = [(each == 90).all((1, 2, 3)).mean() for each in patches]
    assert min(flat[:2]) > 0.2 and max(flat[2:]) < 0.1
    assert (texture(patches[2]) >= texture(patches[0])).all()
    assert (texture(patches[2]) > texture(patches[0])).any()
    np.testing.assert_array_equal(four.patches(0, 1, np.array([7])), patches[3][[7]])


def test_pairs_are_cut_at_the_same_places():
    """Those where the clean image has most texture, turned alike."""
    clean = [RNG.integers(0, 256, (64, 96, 1), np.uint8) for _ in range(2)]
    noisy = [255 - (image // 2) for image in clean]  # with less texture, and a flat part
    noisy[0][:, :48] = 7
    options = {"turns": True, "candidates": 3}
    targets = Crops(clean, 16, **options)
    inputs = Crops(noisy, 16, judged_by=targets, **options)[2:20]
    rows = np.arange(18)
    expected = targets.patches(3, 1, rows + 2)
    found = inputs.patches(3, 1, rows)
    known = (found != 7).all((1, 2, 3))
    assert known.sum() > 5
    np.testing.assert_array_equal(found[known], 255 - expected[known] // 2)


def test_texture_is_the_sum_of_differences():
    patch = np.zeros((2, 8, 8, 1), np.uint8)
    patch[1, 4:] = 200  # an edge of four pixels of every other column
    assert texture(patch).tolist() == [0, 4 * 200]


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
