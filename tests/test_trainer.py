"""`jaxdae.train` and what may be passed to it: a network, a corruption, a loss of one's own."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxdae
from experiments.run import main
from jaxdae.corruption import Corruption, gaussian
from jaxdae.data import Dataset, Split
from jaxdae.errors import DivergenceError, InputError
from jaxdae.files import tree_sha256
from jaxdae.losses import image_mean
from jaxdae.model import Denoiser
from jaxdae.objectives import Paired, Supervised

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 6, 5, 1), np.uint8)
DATASET = Dataset("mine", Split(IMAGES[:32]), Split(IMAGES[32:]))
TINY = jaxdae.recipe("dense", features=8, latent_dim=4, batch_size=8, epochs=2, devices=1)


class Small(Denoiser):
    """A network in the manner of a user."""

    @nn.compact
    def forward(self, images, sigma=None):
        hidden = nn.relu(nn.Conv(4, (3, 3))(images))
        return nn.Conv(self.outputs, (3, 3))(hidden)


def halve(key, image):
    return image / 2 + jax.random.uniform(key, image.shape) / 10


def absolute_error(outputs, clean):
    return image_mean(jnp.abs(outputs - clean))


def test_it_is_the_run_of_the_command_line(tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", x_train=IMAGES[:32], x_test=IMAGES[32:])
    words = "--recipe dense --features 8 --latent-dim 4 --batch-size 8 --epochs 2 --devices 1"
    out = ["--no-figures", "--no-cache", "--out", str(tmp_path / "run")]
    assert main([*words.split(), "--dataset", f"npz:{tmp_path}/mine.npz", *out]) == 0
    capsys.readouterr()
    seen = []
    epochs = list(jaxdae.train(TINY, DATASET, callbacks=[lambda epoch: seen.append(epoch.number)]))
    assert capsys.readouterr() == ("", "")
    assert [epoch.number for epoch in epochs] == seen == [1, 2]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert tree_sha256(jax.tree.map(np.asarray, epochs[-1].params)) == summary["params_sha256"]
    header, *rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    for epoch, row in zip(epochs, rows, strict=True):
        assert list(epoch.metrics) == header.split(",")
        for name, text in zip(header.split(","), row.split(","), strict=True):
            if "seconds" not in name and "per_second" not in name:
                assert epoch.metrics[name] == float(text), name
    # What an epoch holds stays when the next has been trained.
    first = jax.tree.leaves(epochs[0].params)
    assert all(np.isfinite(leaf).all() for leaf in first)
    restored = jaxdae.denoise(epochs[-1].model, epochs[-1].params, IMAGES[32:] / np.float32(255))
    assert restored.shape == (8, 6, 5, 1)


def test_ones_own_network_corruption_loss_and_optimiser():
    config = jaxdae.recipe("default", batch_size=8, epochs=30, devices=1)
    shapes = []

    def loss(outputs, clean):
        shapes.append(outputs.shape)
        return absolute_error(outputs, clean)

    epochs = list(
        jaxdae.train(
            config,
            DATASET,
            model=Small(),
            corruption=Corruption("halve()", halve),
            loss=loss,
            optimizer=optax.sgd(0.3, momentum=0.9),
        )
    )
    assert isinstance(epochs[-1].model, Small) and (8, 6, 5, 1) in shapes
    assert set(epochs[-1].params) == {"Conv_0", "Conv_1"}
    first, last = epochs[0].metrics, epochs[-1].metrics
    assert "learning_rate" not in last
    assert last["train_loss"] < 0.75 * first["train_loss"]
    # The loss that is reported is the one that was given, of the same noisy images.
    noisy = Corruption("halve()", halve)(jax.random.key(20_080_705), DATASET.test.images / 255)
    restored = jaxdae.denoise(epochs[-1].model, epochs[-1].params, noisy)
    error = np.abs(np.asarray(restored) - DATASET.test.images / 255).mean()
    np.testing.assert_allclose(last["test_loss"], error, rtol=1e-4)


def test_centred_steps_take_a_plain_flax_network():
    config = jaxdae.recipe("default", batch_size=8, epochs=1, devices=1)
    (epoch,) = jaxdae.train(config, DATASET, model=Small())
    assert epoch.metrics["learning_rate"] > 0 and np.isfinite(epoch.metrics["test_mse"])


def test_stages_follow_each_other():
    config = jaxdae.recipe("dense", features=8, batch_size=8, epochs=2, clean_epochs=1, devices=1)
    numbers = [(epoch.number, epoch.metrics["step"]) for epoch in jaxdae.train(config, DATASET)]
    assert numbers == [(1, 4), (2, 8), (3, 12)]


def test_an_objective_of_ones_own():
    """It makes the examples and judges them; its corruption is what the test images get."""
    calls = []

    class Negative(Supervised):
        def loss(self, apply, example):
            calls.append(example.input.shape)
            return image_mean(jnp.abs(apply(example.input) - (1 - example.target)))

    config = jaxdae.recipe(epochs=2, batch_size=16)
    epochs = list(
        jaxdae.train(config, DATASET, model=Small(), objective=Negative(gaussian(0.1, 0.0)))
    )
    assert calls and [epoch.number for epoch in epochs] == [1, 2]
    assert epochs[1].metrics["train_loss"] < epochs[0].metrics["train_loss"]
    assert 0 < epochs[1].metrics["test_mse"] < 1


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"model": nn.Dense(3)}, "model Dense must be a jaxdae.model.Denoiser: subclass it"),
        ({"model": Small(channels=3)}, "build it with channels=1, out_channels=1"),
        ({"model": Small(image_size=(8, 8))}, r"build it with image_size=\(6, 5\)"),
        ({"objective": Paired(), "loss": absolute_error}, "give it alone"),
        ({"dataset": "nothing"}, "is no data set"),
        ({"config": jaxdae.recipe(epochs=0)}, "epochs 0 must be at least 1"),
        ({"config": jaxdae.recipe(batch_size=64)}, "batch size 64 exceeds"),
        ({"config": jaxdae.recipe(objective="paired")}, "needs pairs of noisy and clean"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(given, complaint):
    given = {"config": TINY, "dataset": DATASET, **given}
    with pytest.raises(InputError, match=complaint):
        jaxdae.train(**given)


def test_divergence_is_told():
    config = jaxdae.recipe("dense", batch_size=8, learning_rate=1e30, devices=1, optimizer="adam")
    with pytest.raises(DivergenceError, match="lower the learning rate"):
        list(jaxdae.train(config, DATASET, optimizer=optax.sgd(float("nan"))))


@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        ("best", {}, "unknown recipe 'best': it is one of default"),
        ("default", {"epoch": 1}, "no field 'epoch': did you mean 'epochs'"),
        ("default", {"epochs": 1.5}, r"epochs=1.5 is of the wrong type: it must be .*int"),
        ("default", {"sigma": "loud"}, "sigma=.*wrong type"),
        ("default", {"corruption": "rain"}, "corruption='rain' is of the wrong type"),
    ],
)
def test_a_recipe_that_cannot_be(name, values, complaint):
    with pytest.raises(InputError, match=complaint):
        jaxdae.recipe(name, **values)


def test_a_recipe_takes_numbers_and_lists():
    config = jaxdae.recipe("unet", sigma=0.3, features=[4, 8])
    assert config.sigma == (0.3,) and config.features == (4, 8) and config.recipe == "unet"


def test_the_package_is_cheap_to_import_and_has_its_parts():
    code = (
        "import sys, jaxdae\n"
        "assert 'jax' not in sys.modules, 'jax'\n"
        "jaxdae.recipe('default')\n"
        "assert 'jax' not in sys.modules, 'jax'\n"
        "assert jaxdae.errors.InputError and set(jaxdae.__all__) <= set(dir(jaxdae))\n"
        "try:\n    jaxdae.nothing\n"
        "except AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'jaxdae' has no attribute 'nothing'\n"
