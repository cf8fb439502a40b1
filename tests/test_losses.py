"""The losses and their gradients against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdae.losses import LOSSES, takes_logits


def formulas(logits, clean):
    """The losses of each image, in float64, from probabilities as far as those reach."""
    z, y = logits.astype(float), clean.astype(float)
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    mse = np.square(p - y).mean(axis=(1, 2, 3))
    return {
        "mse": mse,
        "log_mse": np.log(mse + 1e-5),
        "bce": (-y * np.log(p) - (1 - y) * np.log(q)).mean(axis=(1, 2, 3)),
    }


def of_logits(name, logits, clean):
    """A loss as training computes it from a sigmoid network's logits."""
    loss = LOSSES[name]
    return loss(logits if takes_logits(loss) else jax.nn.sigmoid(logits), clean)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_their_formulas(name):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 5, 4, 3)).astype(np.float32) * 3
    clean = rng.uniform(size=logits.shape).astype(np.float32)
    logits[2:4] = rng.choice([-50, 50], size=(2, 5, 4, 3))
    logits[4], logits[5] = 50, -50
    clean[3] = rng.integers(0, 2, size=clean[3].shape)
    clean[4], clean[5] = 0, 1  # as wrong as can be

    def total(logits):
        values = of_logits(name, logits, clean)
        return values.sum(), values

    gradient, values = jax.jit(jax.grad(total, has_aux=True))(logits)
    assert values.shape == (6,)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, formulas(logits, clean)[name], rtol=1e-5, atol=1e-7)
    p = 1 / (1 + np.exp(-logits.astype(float)))
    squared = 2 * (p - clean) * p * (1 - p)
    error = ((p - clean) ** 2).mean((1, 2, 3), keepdims=True)
    expected = {"bce": p - clean, "mse": squared, "log_mse": squared / (error + 1e-5)}[name]
    expected = expected / clean[0].size
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_stay_finite_where_float32_saturates(name):
    logits = np.array([-1e4, 1e4, -1e4, 1e4], np.float32).reshape(4, 1, 1, 1)
    clean = np.array([1, 0, 0, 1], np.float32).reshape(4, 1, 1, 1)
    values, gradient = jax.jit(
        lambda z: (
            of_logits(name, z, clean),
            jax.grad(lambda z: of_logits(name, z, clean).sum())(z),
        )
    )(logits)
    worst, best = {"mse": (1, 0), "log_mse": np.log([1 + 1e-5, 1e-5]), "bce": (1e4, 0)}[name]
    np.testing.assert_allclose(values, [worst, worst, best, best], atol=1e-6)
    steepest = {"mse": 0, "log_mse": 0, "bce": 1}[name]
    np.testing.assert_allclose(gradient.ravel(), [-steepest, steepest, 0, 0])


def test_a_batch_means_what_it_means_in_keras():
    """Keras means over the channels, then over the places and images, of clipped probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 6, 5, 3)).astype(np.float32) * 2
    clean = rng.uniform(size=logits.shape).astype(np.float32)
    p = np.clip(1 / (1 + np.exp(-logits.astype(float))), 1e-7, 1 - 1e-7)
    entropy = (-clean * np.log(p) - (1 - clean) * np.log(1 - p)).mean(axis=-1).mean()
    squares = np.square(p - clean).mean(axis=-1).mean()
    got = jax.jit(lambda z: [of_logits(name, z, clean) for name in ("bce", "mse")])(logits)
    np.testing.assert_allclose([value.mean() for value in got], [entropy, squares], rtol=1e-5)
