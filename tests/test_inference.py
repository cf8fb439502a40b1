"""Restoring many images: in pieces, with a rest, and as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdae.errors import InputError
from jaxdae.inference import denoise
from jaxdae.model import DenoisingAutoencoder


@pytest.fixture(scope="module")
def network():
    model = DenoisingAutoencoder(image_shape=(8, 8, 1), features=(3, 4), latent_dim=2)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    return model, params


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 11])
def test_pieces_are_the_whole(network, count):
    model, params = network
    images = jax.random.uniform(jax.random.key(1), (count, 8, 8, 1))
    out = jax.jit(lambda images: denoise(model, params, images, piece=4))(images)
    assert out.shape == images.shape
    whole = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(out, whole, atol=1e-6)


def test_only_a_cpu_takes_pieces(network):
    model, params = network
    images = jnp.zeros((12, 8, 8, 1))
    traced = jax.jit(lambda images: denoise(model, params, images, piece=4)).trace(images)
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("cuda", "tpu"):
        assert "stablehlo.while" not in traced.lower(lowering_platforms=(platform,)).as_text()


def test_images_of_another_shape_and_empty_pieces_are_refused(network):
    model, params = network
    with pytest.raises(InputError, match="do not fit this model"):
        denoise(model, params, jnp.zeros((70, 8, 9, 1)))
    with pytest.raises(InputError, match="piece=0 must be at least 1"):
        denoise(model, params, jnp.zeros((70, 8, 8, 1)), piece=0)
