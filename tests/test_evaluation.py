"""Evaluation: the same figures whatever the batch and the devices, and figures that draw."""

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdae import figures
from jaxdae.corruption import gaussian
from jaxdae.data import load
from jaxdae.evaluation import KEY, METRICS, Evaluator, encode, reconstruct
from jaxdae.losses import mean_squared_error
from jaxdae.model import DenoisingAutoencoder, DenseAutoencoder
from jaxdae.recognition import digit_recovery, read_digits

MODEL = DenoisingAutoencoder(image_size=(8, 8), channels=1, features=(4, 8), latent_dim=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (37, 8, 8, 1), np.uint8)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]


@pytest.fixture(scope="module")
def one_by_one():
    """Each image's metrics, computed on its own."""
    noisy, _ = [], []
    for i in range(len(IMAGES)):
        clean = IMAGES[i : i + 1].astype(np.float32) / 255
        noisy.append(gaussian(0.5)(jax.random.key(KEY), clean, np.array([i])))
    logits = jax.jit(lambda x: MODEL.apply({"params": PARAMS}, x, method="logits"))(
        np.concatenate(noisy)
    )
    clean = IMAGES.astype(np.float32) / 255
    outputs = jax.nn.sigmoid(logits)
    given = {name: logits if name == "bce" else outputs for name in METRICS}
    return {name: np.asarray(metric(given[name], clean)) for name, metric in METRICS.items()}


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 100), (1, 10), (2, 7), (8, 4)])
def test_every_image_counts_once(one_by_one, devices, batch_size):
    evaluate = Evaluator(
        MODEL, gaussian, IMAGES, batch_size=batch_size, devices=jax.devices()[:devices]
    )
    found = evaluate.per_image(PARAMS, 0.5)
    assert list(found) == ["mse", "psnr", "ssim", "bce"]
    for name, values in found.items():
        assert values.shape == (37,)
        np.testing.assert_allclose(values, one_by_one[name], rtol=2e-5, atol=1e-6)
    means = evaluate(PARAMS, 0.5)
    np.testing.assert_allclose(means["mse"], one_by_one["mse"].mean(dtype=float), rtol=1e-5)
    assert evaluate(PARAMS, 1.0)["mse"] != means["mse"]


def test_with_labels_what_is_restored_is_read():
    """As `digit_recovery` reads it, of images that a network has restored a little."""
    model = DenoisingAutoencoder(features=(2, 4), latent_dim=3)
    test = load("mnist").test
    images, labels = test.images[:50], test.labels[:50]
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 28, 28, 1)))["params"]
    evaluate = Evaluator(model, gaussian, images, labels=labels, batch_size=10)
    found = evaluate(params, 0.5)
    assert list(found) == ["mse", "psnr", "ssim", "bce", "accuracy"]
    output = reconstruct(model, params, gaussian(0.5), images)[2]
    assert found["accuracy"] == digit_recovery(output, labels)
    # Labelled with what is read, all is read right; with anything else, nothing.
    read = read_digits(output)
    for given, share in ((read, 1), ((read + 1) % 10, 0)):
        assert Evaluator(model, gaussian, images, labels=given)(params, 0.5)["accuracy"] == share


def test_reconstruct_shows_what_was_evaluated(one_by_one):
    clean, noisy, output = reconstruct(MODEL, PARAMS, gaussian(0.5), IMAGES)
    np.testing.assert_allclose(clean, IMAGES / 255, atol=1e-7)
    np.testing.assert_allclose(
        ((output - clean) ** 2).mean((1, 2, 3)), one_by_one["mse"], rtol=2e-5
    )
    expected = jax.jit(lambda x: MODEL.apply({"params": PARAMS}, x))(noisy)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    latent = encode(MODEL, PARAMS, gaussian(0.5), IMAGES)
    assert latent.shape == (37, 3)
    expected = jax.jit(lambda x: MODEL.apply({"params": PARAMS}, x, method="encode"))(noisy)
    np.testing.assert_allclose(latent, expected, atol=1e-5)


def has_ink(path):
    pixels = np.asarray(Image.open(path).convert("L"))
    return pixels.min() < 100 and pixels.max() > 250 and min(pixels.shape) > 150


@pytest.mark.parametrize("channels", [1, 3])
def test_image_rows_draw_the_pixels_they_are_given(tmp_path, channels):
    """An image of one value comes out as a square of that gray."""
    levels = np.linspace(0.1, 0.9, 9, dtype=np.float32)
    images = np.broadcast_to(levels[:, None, None, None], (9, 8, 8, channels))
    figures.image_rows(tmp_path / "rows.png", [{"given": images, "output": images}] * 2, "title")
    assert has_ink(tmp_path / "rows.png")
    values, counts = np.unique(
        np.asarray(Image.open(tmp_path / "rows.png").convert("L")), return_counts=True
    )
    large = set(values[counts > 4 * 50 * 50])  # four rows of squares of more than 50 by 50
    for level in np.rint(levels * 255):
        assert any(abs(int(value) - level) <= 2 for value in large), level


def test_curves_draw_at_one_epoch_and_at_many(tmp_path):
    for epochs in (1, 150):
        history = [
            {"epoch": e + 1, "train_loss": 1 / (e + 1), "test_loss": 1.1 / (e + 1)}
            for e in range(epochs)
        ]
        figures.learning_curves(
            tmp_path / f"{epochs}.png", history, "mean squared error", epochs // 3
        )
        assert has_ink(tmp_path / f"{epochs}.png")


@pytest.mark.parametrize("trained", [(0.5,), (0.1, 1.0)])
def test_error_against_sigma_draws(tmp_path, trained):
    figures.error_against_sigma(
        tmp_path / "e.png", {"a": {0.5: 0.01, 0.25: 0.02}, "b": {0.5: 0.03}}, trained
    )
    assert has_ink(tmp_path / "e.png")


@pytest.mark.parametrize("labels", [None, np.arange(50) % 10, np.arange(50)])
@pytest.mark.parametrize("width", [1, 16])
def test_latent_space_draws_any_width_and_labels(tmp_path, labels, width):
    latent = np.random.default_rng(0).normal(size=(50, width))
    figures.latent_space(tmp_path / "l.png", latent, labels, "title")
    assert has_ink(tmp_path / "l.png")


def test_the_evaluator_takes_many_images_piece_by_piece(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (23, 6, 6, 1), np.uint8)
    model = DenseAutoencoder(image_size=(6, 6), features=(8,), latent_dim=2)
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
