"""Pairs of noisy and clean images: they belong together, train, and are told apart from none."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from experiments.run import main
from jaxdae import data, train_step
from jaxdae.data import decoded_cache
from jaxdae.errors import InputError
from jaxdae.from_config import examples_of
from jaxdae.model import DenseAutoencoder
from jaxdae.objectives import Pair, Paired
from tests.data.sources import QUICK, write_images

RNG = np.random.default_rng(0)


def pairs(tmp_path: Path, count: int = 30) -> str:
    write_images(tmp_path / "clean", count)
    write_images(tmp_path / "noisy", count, suffix=".bmp")
    return f"pairs:{tmp_path}/noisy,{tmp_path}/clean"


def test_pairs_hold_the_clean_image_and_the_noisy_one(tmp_path):
    name = pairs(tmp_path)
    Image.fromarray(RNG.integers(0, 256, (9, 8, 3), np.uint8)).save(tmp_path / "noisy/004.bmp")
    dataset = data.load(name)
    assert dataset.image_shape == (9, 8, 3)
    assert len(dataset.train) + len(dataset.test) == 30
    alone = data.load(f"folder:{tmp_path}/clean")  # split by the clean files' names
    np.testing.assert_array_equal(dataset.test.images[..., :1], alone.test.images)
    noisy = data.load(f"folder:{tmp_path}/noisy")
    by_name = np.concatenate([noisy.train.images, noisy.test.images])
    assert sorted(map(bytes, by_name)) == sorted(
        map(bytes, np.concatenate([dataset.train.noisy, dataset.test.noisy]))
    )
    example = Paired().prepare(jax.random.key(0), examples_of(dataset.train))
    np.testing.assert_array_equal(example.input, dataset.train.noisy)
    np.testing.assert_array_equal(example.target, dataset.train.images)


@pytest.mark.parametrize("memory", [1 << 29, 0])
def test_both_of_a_pair_are_cut_at_the_same_place(tmp_path, monkeypatch, memory):
    """Patches of negatives are the negatives of the patches, in memory and from the cache."""
    monkeypatch.setattr(decoded_cache, "MEMORY", memory)
    for i in range(12):
        pixels = RNG.integers(0, 256, (20 + i, 31, 1 + 2 * (i % 2)), np.uint8).squeeze()
        for folder, values in (("clean", pixels), ("noisy", 255 - pixels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / folder / f"{i}.png")
    name = f"pairs:{tmp_path}/noisy,{tmp_path}/clean"
    train = data.load(name, crop=8, cache_dir=tmp_path / "cache").train
    rows = np.arange(len(train))
    for clean, noisy in [
        (train.images[rows], train.noisy[rows]),
        (train.images.patches(0, 3, rows), train.noisy.patches(0, 3, rows)),
    ]:
        np.testing.assert_array_equal(noisy, 255 - clean)


def test_pairs_train_and_crop(tmp_path):
    name = pairs(tmp_path)
    words = [*QUICK, "--dataset", name, "--epochs", "1", "--batch-size", "8", "--devices", "1"]
    words += ["--figures"]  # of which the noisy part of an image is none, nor the clean one's
    assert main([*words, "--crop", "8", "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/report.html").is_file()
    assert (tmp_path / "run/figures/latent_space.png").is_file()
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["objective"] == "paired" and config["crop"] == 8
    assert list(json.loads((tmp_path / "run/summary.json").read_text())["test"]) == ["paired()"]


def test_a_network_learns_what_pairs_say(tmp_path):
    # The clean image is the noisy one's negative: no guess without the pairs comes near it.
    bright = RNG.random((64, 1, 1, 1)) < 0.5
    noisy = (np.where(bright, 200, 50) + RNG.integers(-30, 30, (64, 6, 6, 1))).astype(np.uint8)
    clean = np.broadcast_to(np.where(bright, 30, 220).astype(np.uint8), noisy.shape)
    model = DenseAutoencoder(image_size=(6, 6), features=(8,), latent_dim=2)
    optimizer = optax.adam(1e-2)
    state = train_step.create_state(model, optimizer, 0)
    step = jax.jit(train_step.make_train_step(model, Paired(), optimizer))
    for i in range(200):
        state, metrics = step(state, Pair(noisy, clean), jax.random.key(i))
    assert metrics["loss"] < 0.01


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda root: (root / "noisy/003.bmp").unlink(), "1 images in .* no partner .*'003'"),
        (lambda root: (root / "clean/003.png").unlink(), "1 images in .* no partner .*'003'"),
        (lambda root: write_images(root / "clean", 1, suffix=".bmp"), "'000' with two suffixes"),
        (lambda root: write_images(root / "noisy", 1, (9, 9), ".bmp"), "both must have one size"),
        (lambda root: (root / "noisy").rename(root / "other"), "is no folder"),
        (lambda root: write_images(root / "clean", 1, (9, 9)), "all must have one size"),
    ],
)
def test_pairs_that_do_not_match_are_told(tmp_path, spoil, complaint):
    name = pairs(tmp_path, 12)
    spoil(tmp_path)
    with pytest.raises(InputError, match=complaint) as told:
        data.load(name)
    assert "\n" not in str(told.value)
