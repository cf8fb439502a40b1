"""The networks that come with the package: whole, what their cards say, and good to go on from."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import skimage.data

from benchmarks.publish import describe
from benchmarks.publish import main as publish
from experiments.common.flags import parse
from jaxdae import pretrained
from jaxdae.corruption import gaussian
from jaxdae.data import load
from jaxdae.errors import InputError
from jaxdae.evaluation import Evaluator
from jaxdae.inference import denoise
from jaxdae.model import (
    DenoisingAutoencoder,
    MaxPoolAutoencoder,
    PhotoDenoiser,
    UNet,
    parameter_count,
)
from jaxdae.objectives import Supervised
from jaxdae.train_step import create_state, make_train_step

DENOISERS = [name for name in pretrained.names() if name.startswith("digits-")]
PHOTOS = {"photo": 3, "photo-gaussian": 3, "photo-gray": 1, "photo-gaussian-gray": 1}
CARD = ("data", "recipe", "seed", "command", "results", "machine", "versions", "limits")


def test_the_promised_networks_are_there():
    assert {
        "digits-blind",
        "digits-sigma-0.5",
        "digits-sigma-1.0",
        "digits-unet",
        "digit-classifier",
        *PHOTOS,
    } == set(pretrained.names())


@pytest.mark.parametrize("name", DENOISERS)
def test_denoises_as_its_card_says(name):
    model, params = pretrained.load(name)
    card = pretrained.card(name)
    assert parameter_count(params) == card["parameters"]
    for word in CARD:
        assert card[word] not in ("", None), word
    evaluate = Evaluator(model, gaussian, load("mnist").test.images)
    sigma = 1.0 if name == "digits-sigma-1.0" else 0.5
    found, stated = evaluate(params, sigma), card["results"][str(sigma)]
    for metric in ("mse", "ssim", "bce"):
        np.testing.assert_allclose(found[metric], stated[metric], rtol=2e-3)


@pytest.mark.parametrize("name", PHOTOS)
def test_photographs_are_cleaned(name):
    """An image that none of them has seen: at a level that is told and at their own estimate."""
    model, params = pretrained.load(name)
    card = pretrained.card(name)
    assert parameter_count(params) == card["parameters"] < 1_000_000
    assert model.channels == PHOTOS[name] and model.image_size is None
    for word in CARD:
        assert card[word] not in ("", None), word
    clean = (skimage.data.astronaut()[:200, 100:340] / 255).astype(np.float32)
    clean = clean if model.channels == 3 else clean.mean(2, keepdims=True)
    noise = np.random.default_rng(0).standard_normal(clean.shape, np.float32)

    @jax.jit
    def restore(image, level=None):
        return denoise(model, params, image[None], level)[0]

    def psnr(image):
        return -10 * np.log10(np.mean((np.clip(image, 0, 1) - clean) ** 2))

    noisy = clean + 25 / 255 * noise
    told, blind = restore(noisy, 25 / 255), restore(noisy)
    assert psnr(noisy) < 20.7
    assert min(psnr(told), psnr(blind)) > 28.5
    if "gaussian" in name:
        assert psnr(blind) > psnr(told) - 0.2
        level = model.apply({"params": params}, noisy[None], method="noise_level")
        assert abs(float(level.mean()) * 255 - 25) < 2.5
    assert psnr(restore(clean)) > 38
    for image in (noisy, clean):  # no colour cast
        change = restore(image).mean((0, 1)) / image.mean((0, 1)) - 1
        assert np.abs(change).max() < 0.004


@pytest.mark.parametrize("name", DENOISERS)
def test_training_goes_on_from_it(name):
    """A few small steps on noisy digits neither diverge nor unlearn."""
    model, params = pretrained.load(name)
    images = load("mnist").train.images[:320].reshape(10, 32, 28, 28, 1)
    optimizer = optax.adam(1e-5)
    step = jax.jit(make_train_step(model, Supervised(gaussian(0.5)), optimizer))
    state = create_state(model, optimizer, seed=0).replace(params=jax.tree.map(jnp.asarray, params))
    losses = []
    for i, batch in enumerate(images):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    worst = {"digits-unet": 0.011, "digits-sigma-1.0": 0.03}.get(
        name, 0.018
    )  # a fresh network has 0.1 and more
    assert max(losses) < worst, losses
    assert not np.array_equal(
        jax.tree.leaves(state.params)[0], jax.tree.leaves(params)[0], equal_nan=True
    )


@pytest.mark.parametrize(
    "model",
    [
        DenoisingAutoencoder(
            image_size=(8, 12), channels=3, features=(3, 4), latent_dim=2, out_channels=1
        ),
        UNet(image_size=(8, 8), channels=1, features=(2, 3), bridge=0),
    ],
)
def test_what_is_saved_is_loaded(model, tmp_path):
    images = jax.random.uniform(jax.random.key(0), (2, *model.example.shape[1:]))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    pretrained.save("mine", model, params, {"data": "none"}, tmp_path)
    again, loaded = pretrained.load("mine", tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert pretrained.card("mine", tmp_path)["data"] == "none"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "mine.npz"]


def test_an_unknown_name_is_told_what_there_is(tmp_path):
    with pytest.raises(InputError, match=r"one of .*digit-classifier"):
        pretrained.load("resnet")
    with pytest.raises(InputError, match="no pretrained network"):
        pretrained.load("../weights/digit-classifier")


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "empty", "delete", "card", "text", "pickle"]
)
def test_damage_is_noticed(damage, tmp_path):
    for suffix in ("json", "npz"):
        shutil.copy(pretrained.FOLDER / f"digit-classifier.{suffix}", tmp_path)
    path = tmp_path / "digit-classifier.npz"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "truncate":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    elif damage == "pickle":
        np.savez(path, kernel=np.array([{"run": "me"}], dtype=object))
        content = bytearray(path.read_bytes())
    elif damage == "card":
        card = tmp_path / "digit-classifier.json"
        described = json.loads(card.read_text())
        card.write_text(json.dumps({**described, "architecture": "none"}))
    elif damage == "text":
        (tmp_path / "digit-classifier.json").write_text("{")
    path.write_bytes(content)
    if damage == "delete":
        path.unlink()
    with pytest.raises(InputError, match="damaged"):
        pretrained.load("digit-classifier", tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["--recipe", "unet", "--seed", "3"],
        ["--sigma", "0.2", "0.7", "--no-centering", "--ema-decay", "0.99", "--epochs", "7"],
    ],
)
def test_the_command_in_a_card_is_the_run(words):
    config = parse(words).config
    card = describe(config, {"test": {}, "versions": {}})
    program = "python -m experiments.run "
    assert card["command"].startswith(program)
    assert parse(card["command"].removeprefix(program).split()).config == config


def test_only_a_finished_run_is_published(tmp_path, capsys):
    assert publish([str(tmp_path), "mine", "--to", str(tmp_path / "to")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "holds no run" in error and error.count("\n") == 1
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("architecture", "first", "model"),
    [
        ("strided", {"image_shape": [8, 12, 3], "features": [3, 4]},
         DenoisingAutoencoder(3, image_size=(8, 12), features=(3, 4))),
        ("maxpool", {"image_shape": [9, 9, 2]}, MaxPoolAutoencoder(2)),
        ("unet", {"features": [2, 3]},
         UNet(bridge=384, image_size=(28, 28), features=(2, 3))),
        ("unet", {"bridge": 0, "image_shape": [8, 8, 3]}, UNet(3)),
    ],
)  # fmt: skip
def test_cards_of_the_first_format_are_read(architecture, first, model, tmp_path):
    """They have an image shape for every network, and a bridge for every U-Net."""
    params = jax.jit(model.init)(jax.random.key(0), model.example)["params"]
    pretrained.save("old", model, params, {}, tmp_path)
    card = json.loads((tmp_path / "old.json").read_text())
    del card["format"]
    card |= {"architecture": architecture, "fields": first}
    (tmp_path / "old.json").write_text(json.dumps(card))
    found, _ = pretrained.load("old", tmp_path)
    assert found == model


def test_half_the_size_is_float32_again(tmp_path):
    model = PhotoDenoiser(features=(4, 4))
    params = jax.jit(model.init)(jax.random.key(0), model.example)["params"]
    for name, half in (("whole", False), ("half", True)):
        pretrained.save(name, model, params, {}, tmp_path, half=half)
    sizes = [(tmp_path / f"{name}.npz").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.65 * sizes[0]
    _, found = pretrained.load("half", tmp_path)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-7)


def test_the_card_of_photographs():
    words = ["--recipe", "photo-gaussian", "--dataset", "folder:photos", "--gray", "--epochs", "3"]
    card = describe(parse(words).config, {"test": {"0.1": {}}, "versions": {}})
    assert card["about"] == (
        "Removes white Gaussian noise up to sigma 55/255 from gray photographs of any size."
    )
    assert "CC BY-SA 4.0" in card["data"] and card["recipe"]["clip"] is False
    assert sorted(card["command"].split()) == sorted(["python", "-m", "experiments.run", *words])
    parts = (pretrained.FOLDER / "NOTICE").read_text()
    assert "CID22" in parts and "lomiri" in parts
