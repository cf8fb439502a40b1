"""Normal numbers by their kernel: JAX's, bit for bit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdae.kernels import build, normal
from tests.kernels.reference import needs_compiler

pytestmark = needs_compiler


@pytest.fixture(autouse=True, scope="module")
def compiled():
    assert build.available()


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.integers(0, 2**31 - 1),
    st.lists(st.integers(1, 5), max_size=2),
    st.one_of(st.integers(1, 70), st.integers(1000, 1050), st.integers(2040, 2060)),
)
def test_normal_numbers_are_jax_s(seed, batch, count):
    """Bit for bit, whatever keys are mapped over."""
    keys = jax.random.split(jax.random.key(seed), batch)
    got, want = partial(normal, count=count), partial(jax.random.normal, shape=(count,))
    for _ in batch:
        got, want = jax.vmap(got), jax.vmap(want)
    np.testing.assert_array_equal(jax.jit(got)(keys), jax.jit(want)(keys))


@pytest.mark.slow
def test_all_normal_numbers_are_jax_s():
    """Nearly all of the 2**23 that there are, those of either end among them."""
    key, count = jax.random.key(1), 2**25
    got = normal(key, count)
    np.testing.assert_array_equal(got, jax.random.normal(key, (count,)))
    assert len(np.unique(got)) > 0.98 * 2**23
    assert np.abs(got).max() > 5.1


def test_normal_numbers_of_other_kinds_are_jax_s():
    key, other = jax.random.key(0), jax.random.key(0, impl="rbg")
    old = jax.random.PRNGKey(0)
    for drawn, dtype in ((key, jnp.bfloat16), (other, jnp.float32), (old, jnp.float32)):
        got = normal(drawn, 40, dtype)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, jax.random.normal(drawn, (40,), dtype))
    with pytest.raises(ValueError, match=r"2\*\*32"):
        jax.jit(lambda key: normal(key, 2**32)).lower(key)
    with build.disabled():
        np.testing.assert_array_equal(normal(key, 40), jax.random.normal(key, (40,)))
