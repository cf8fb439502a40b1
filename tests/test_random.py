"""Random numbers that are to be JAX's own, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdae.random import fold_in, unrolled

seeds = st.integers(0, 2**31 - 1)
shapes = st.sampled_from([(), (1,), (5,), (3, 4), (28, 28, 1), (2, 0)])


def same(a, b):
    assert a.dtype == b.dtype
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(a, b)


@settings(max_examples=30)
@given(seeds, shapes, st.sampled_from([jnp.uint8, jnp.uint16, jnp.uint32]))
def test_the_bits_are_those_of_jax(seed, shape, dtype):
    key = jax.random.key(seed)
    same(jax.random.bits(unrolled(key), shape, dtype), jax.random.bits(key, shape, dtype))


@settings(max_examples=20)
@given(seeds, shapes)
def test_so_are_the_numbers_made_of_them(seed, shape):
    key = jax.random.key(seed)
    for draw in (jax.random.normal, jax.random.uniform):
        same(jax.jit(draw, static_argnums=1)(unrolled(key), shape), draw(key, shape))


@settings(max_examples=20)
@given(seeds, st.integers(0, 2**32 - 1))
def test_so_are_the_keys_made_of_a_key(seed, data):
    key, data = jax.random.key(seed), np.uint32(data)
    folded = jax.random.fold_in(key, data)
    same(fold_in(key, data), folded)
    data_of = jax.random.key_data
    same(data_of(jax.random.fold_in(unrolled(key), data)), data_of(folded))
    same(data_of(jax.random.split(unrolled(key))), data_of(jax.random.split(key)))


def test_sixty_four_bits():
    with jax.enable_x64(True):
        key = jax.random.key(3)
        same(jax.random.bits(unrolled(key), (7,), jnp.uint64), jax.random.bits(key, (7,), "uint64"))
        same(jax.random.normal(unrolled(key), (7,)), jax.random.normal(key, (7,)))
    seeded = jax.random.key(5, impl=jax.random.key_impl(unrolled(key)))
    same(jax.random.key_data(seeded), jax.random.key_data(jax.random.key(5)))


def test_batches_of_keys():
    keys = jax.random.split(jax.random.key(0), 6)
    draw = jax.vmap(lambda key: jax.random.uniform(key, (3,)))
    same(draw(unrolled(keys)), draw(keys))


def test_other_keys_are_left_alone():
    old, other = jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")
    assert unrolled(old) is old
    assert unrolled(other) is other
    same(fold_in(old, 3), jax.random.fold_in(old, 3))
    same(fold_in(other, 3), jax.random.fold_in(other, 3))
    with jax.threefry_partitionable(False):
        key = jax.random.key(0)
        assert unrolled(key) is key


def test_numbers_beyond_counting():
    with pytest.raises(ValueError, match=r"2\*\*32"):
        jax.jit(lambda key: jax.random.bits(unrolled(key), (2**16, 2**16))).lower(jax.random.key(0))
