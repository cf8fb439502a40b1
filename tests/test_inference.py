"""Restoring many images: in pieces, with a rest, and as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdae.errors import InputError
from jaxdae.inference import denoise, stream
from jaxdae.model import DenoisingAutoencoder


@pytest.fixture(scope="module")
def network():
    model = DenoisingAutoencoder(image_size=(8, 8), channels=1, features=(3, 4), latent_dim=2)
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
    with pytest.raises(InputError, match="do not fit this network"):
        denoise(model, params, jnp.zeros((70, 8, 9, 1)))
    with pytest.raises(InputError, match="piece=0 must be at least 1"):
        denoise(model, params, jnp.zeros((70, 8, 8, 1)), piece=0)


@pytest.mark.parametrize("lengths", [[], [1], [4], [3, 1, 9, 4, 1], [1] * 11])
def test_a_stream_gives_every_group_its_own(lengths):
    """In its order, whatever the batches are, each of one size."""
    images = iter(np.arange(1, 2 * sum(lengths) + 1, dtype=np.float32).reshape(-1, 2))
    groups = [(i, np.stack([next(images) for _ in range(n)])) for i, n in enumerate(lengths)]
    seen, asked = [], []

    def apply(batch):
        seen.append(batch.copy())
        return jnp.asarray(batch) * 10

    def given():
        for group in groups:
            asked.append(group[0])
            yield group

    results = list(stream(apply, given(), 4))
    assert [tag for tag, _ in results] == [tag for tag, _ in groups] == asked
    for (_, result), (_, group) in zip(results, groups, strict=True):
        np.testing.assert_array_equal(result, 10 * group)
    assert len(seen) == -(-sum(lengths) // 4)
    assert all(batch.shape == (4, 2) for batch in seen)
    if seen:
        np.testing.assert_array_equal(np.concatenate(seen)[sum(lengths) :], 0)


def test_a_stream_asks_for_no_more_than_it_needs():
    asked = 0

    def given():
        nonlocal asked
        for i in range(1_000):
            asked += 1
            yield i, np.zeros((1, 2), np.float32)

    results = stream(lambda batch: batch, given(), 4)
    for _ in range(5):
        next(results)
    assert asked <= 12  # the batches of these, and one that is computed meanwhile
