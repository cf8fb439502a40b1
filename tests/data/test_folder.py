"""Folders of images of any size, pairs of folders, and what does not fit into memory."""

import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.run import main
from jaxdae import data, train_step, training
from jaxdae.corruption import gaussian, identity, pair, paired
from jaxdae.data import folder as folders
from jaxdae.data.patches import Crops
from jaxdae.errors import InputError
from jaxdae.evaluation import Evaluator
from jaxdae.losses import mean_squared_error
from jaxdae.model import DenseAutoencoder

RNG = np.random.default_rng(0)
SMALL = ["--recipe", "dense", "--features", "8", "--latent-dim", "4", "--no-figures", "--no-cache"]


def write(folder: Path, count: int, shape: tuple[int, ...] = (9, 8), suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}{suffix}")


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


def test_training_on_patches_resumes_bit_for_bit(tmp_path, capsys):
    write(tmp_path / "photos", 30, (20, 28))
    words = [*SMALL, "--dataset", f"folder:{tmp_path}/photos", "--crop", "8", "--batch-size", "16"]
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


@pytest.mark.parametrize("crop", [None, 8])
def test_a_file_holds_what_memory_does(tmp_path, monkeypatch, crop):
    write(tmp_path / "photos", 20, (18, 16))
    write(tmp_path / "photos/x", 0)
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


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    write(tmp_path / "photos", 20)
    monkeypatch.setattr(decoded_cache, "MEMORY", 0)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cannot be written.*choose another cache folder"):
        data.load(f"folder:{tmp_path}/photos", cache_dir=tmp_path / "cache")


def test_a_file_trains_to_the_same_bits(tmp_path, monkeypatch):
    write(tmp_path / "photos", 80)
    words = [*SMALL, "--dataset", f"folder:{tmp_path}/photos", "--epochs", "2", "--devices", "1"]
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


def test_the_evaluator_takes_many_images_piece_by_piece(monkeypatch):
    images = RNG.integers(0, 256, (23, 6, 6, 1), np.uint8)
    model = DenseAutoencoder(image_size=(6, 6), channels=1, features=(8,), latent_dim=2)
    params = model.init(jax.random.key(0), np.zeros((1, 6, 6, 1)))["params"]

    def evaluate():
        evaluator = Evaluator(
            model,
            gaussian,
            images,
            batch_size=4,
            devices=jax.devices()[:1],
            losses={"loss": mean_squared_error},
        )
        return evaluator, evaluator.per_image(params, 0.3)

    whole, expected = evaluate()
    np.testing.assert_allclose(expected["loss"], expected["mse"], rtol=1e-6)
    monkeypatch.setattr("jaxdae.evaluation.fits", lambda images, devices: False)
    monkeypatch.setattr("jaxdae.evaluation.PIECE_BYTES", 36 * 8)
    pieces, found = evaluate()
    assert whole.piece >= 23 and pieces.piece == 8
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def pairs(tmp_path: Path, count: int = 30) -> str:
    write(tmp_path / "clean", count)
    write(tmp_path / "noisy", count, suffix=".bmp")
    return f"pairs:{tmp_path}/noisy,{tmp_path}/clean"


def test_pairs_hold_the_clean_image_and_the_noisy_one(tmp_path):
    name = pairs(tmp_path)
    Image.fromarray(RNG.integers(0, 256, (9, 8, 3), np.uint8)).save(tmp_path / "noisy/004.bmp")
    dataset = data.load(name)
    assert dataset.image_shape == (9, 8, 3) and dataset.noisy_channels == 3
    assert len(dataset.train) + len(dataset.test) == 30
    alone = data.load(f"folder:{tmp_path}/clean")  # split by the clean files' names
    np.testing.assert_array_equal(dataset.test.images[..., :1], alone.test.images)
    inputs, clean = pair(paired(3, 3), jax.random.key(0), dataset.train.images)
    np.testing.assert_array_equal(inputs, dataset.train.images[..., 3:])
    np.testing.assert_array_equal(clean, dataset.train.images[..., :3])


def test_pairs_train_and_crop(tmp_path):
    name = pairs(tmp_path)
    words = [*SMALL, "--dataset", name, "--epochs", "1", "--batch-size", "8", "--devices", "1"]
    words += ["--figures"]  # of which the noisy part of an image is none, nor the clean one's
    assert main([*words, "--crop", "8", "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/report.html").is_file()
    assert (tmp_path / "run/figures/latent_space.png").is_file()
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["corruption"] == "paired" and config["crop"] == 8
    assert list(json.loads((tmp_path / "run/summary.json").read_text())["test"]) == ["paired()"]


def test_a_network_learns_what_pairs_say(tmp_path):
    # The clean image is the noisy one's negative: no guess without the pairs comes near it.
    bright = RNG.random((64, 1, 1, 1)) < 0.5
    noisy = (np.where(bright, 200, 50) + RNG.integers(-30, 30, (64, 6, 6, 1))).astype(np.uint8)
    images = np.concatenate([np.broadcast_to(np.where(bright, 30, 220), noisy.shape), noisy], -1)
    model = DenseAutoencoder(image_size=(6, 6), channels=1, features=(8,), latent_dim=2)
    corruption, optimizer = paired(1, 1), optax.adam(1e-2)
    state = train_step.create_state(model, optimizer, 0)
    step = jax.jit(train_step.make_train_step(model, corruption, mean_squared_error, optimizer))
    for i in range(200):
        state, metrics = step(state, images.astype(np.uint8), jax.random.key(i))
    assert metrics["loss"] < 0.01


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda root: (root / "noisy/003.bmp").unlink(), "1 images of .* no partner .*'003'"),
        (lambda root: (root / "clean/003.png").unlink(), "1 images of .* no partner .*'003'"),
        (lambda root: write(root / "clean", 1, suffix=".bmp"), "'000' with two suffixes"),
        (lambda root: write(root / "noisy", 1, (9, 9), ".bmp"), "both must have one size"),
        (lambda root: (root / "noisy").rename(root / "other"), "is no folder"),
        (lambda root: write(root / "clean", 1, (9, 9)), "both must have one size"),
    ],
)
def test_pairs_that_do_not_match_are_told(tmp_path, spoil, complaint):
    name = pairs(tmp_path, 12)
    spoil(tmp_path)
    with pytest.raises(InputError, match=complaint) as told:
        data.load(name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--dataset", "pairs:only-one"], "must name two folders"),
        (["--crop", "32"], "--crop 32 makes patches of image files, and 'mnist' has none"),
        (["--corruption", "paired"], "needs pairs of noisy and clean images"),
        (["--dataset", "folder:PHOTOS"], "all must have one size: .* --crop"),
        (["--dataset", "folder:PHOTOS", "--crop", "4"], "--crop 4 must be at least 8"),
        (["--dataset", "folder:PHOTOS", "--crop", "30"], "smaller than --crop 30: choose at most"),
        (["--dataset", "pairs:PHOTOS,PHOTOS", "--crop", "9", "--sigma", "1"], "--sigma means"),
        (
            ["--dataset", "pairs:PHOTOS,PHOTOS", "--crop", "9", "--corruption", "masking"],
            "whose images have their noise: --corruption paired",
        ),
    ],
)
def test_mistakes_are_answered_in_a_line(tmp_path, capsys, words, complaint):
    write(tmp_path, 12, (20, 20))
    write(tmp_path, 3, (28, 26))
    words = [word.replace("PHOTOS", str(tmp_path)) for word in words]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(complaint, error), error
    assert not (tmp_path / "run").exists()


def test_no_pair_is_the_whole_image():
    images = RNG.random((3, 4, 4, 2), np.float32)
    inputs, clean = pair(identity(), jax.random.key(0), images)
    assert clean is images
    np.testing.assert_array_equal(inputs, images)
