"""Adam's step by its kernel: the numbers of optax, and of its form in JAX's operations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdae.kernels import AdamState, adam_step, build
from jaxdae.kernels.adam import _adam
from jaxdae.optimizers import adam, centered, take_step
from tests.kernels.reference import needs_compiler, uniform_leaves

pytestmark = needs_compiler


@pytest.fixture(autouse=True, scope="module")
def compiled():
    assert build.available()


def layers(seed, shapes, low=-1.0):
    """Kernels of these shapes, with their biases, and numbers that have none."""
    tree = {
        f"{i}": {"kernel": kernel, "bias": bias}
        for i, shape in enumerate(shapes)
        for kernel, bias in [uniform_leaves(seed + i, [shape, shape[-1:]], low)]
    }
    return {**tree, "scale": {"scale": uniform_leaves(seed, [(7,)], low)[0]}}


@pytest.mark.slow
@given(
    st.lists(
        st.sampled_from([(1, 1), (5, 1), (3, 3, 7, 1), (2, 15), (40, 16), (9, 17), (3, 5000)]),
        max_size=4,
    ),
    st.integers(1, 9999),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=25)
def test_adam_is_optax_s(shapes, count, nesterov, centering, added):
    optimizer = adam(0.1, 0.9, 0.98, 1e-7, nesterov=nesterov, centering=centering)
    reference = optax.nadam if nesterov else optax.adam
    reference = reference(0.1, 0.9, 0.98, 1e-7)
    reference = centered(reference) if centering else reference
    state = reference.init(layers(0, shapes))
    inner = state.inner if centering else state
    moments = inner[0]._replace(
        count=jnp.int32(count), mu=layers(1, shapes), nu=layers(2, shapes, low=0.1)
    )
    inner = (moments, *inner[1:])
    if centering:
        draw = lambda tree, low: jax.tree.map(lambda x: uniform_leaves(3, [x.shape], low)[0], tree)  # noqa: E731
        state = state._replace(
            inner=inner, cross=draw(state.cross, -1.0), square=draw(state.square, 0.5)
        )
    else:
        state = inner
    given = layers(4, shapes), state
    if added:
        given = (*given, layers(5, shapes))
        ours, theirs = (jax.jit(partial(take_step, one))(*given) for one in (optimizer, reference))
    else:
        ours, theirs = (jax.jit(one.update)(*given) for one in (optimizer, reference))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


SCALES = [0.9, 0.99, 2.0, 0.5, 3.0, 1e-7, -0.7, 0.9]


def centered_pair(kernel=(3, 20), low=0.5):
    """A kernel, its bias and a leaf of its own: gradients, and a state."""
    shapes = [kernel, kernel[-1:], (5,)]
    cross = uniform_leaves(3, [kernel[:-1]]), uniform_leaves(4, [()], low)
    state = AdamState(uniform_leaves(1, shapes), uniform_leaves(2, shapes, low), *cross)
    return uniform_leaves(0, shapes), state


@pytest.mark.parametrize("added", [False, True])
def test_adam_maps_and_differentiates(added):
    gradient, state = centered_pair()
    params = uniform_leaves(5, [x.shape for x in gradient]) if added else []

    def step(gradient, rate):
        scales = [*SCALES[:2], rate, *SCALES[3:]]
        return jax.tree.leaves(adam_step(scales, gradient, state, [(0, 1)], params))

    def plain(gradient, rate):
        scales = jnp.stack([*SCALES[:2], rate, *SCALES[3:]])
        given = (*gradient, *jax.tree.leaves(state), *params)
        return _adam(scales, *given, pairs=((0, 1),), added=added)

    rates = jnp.arange(1.0, 4.0)
    for form in (
        lambda f: f(gradient, rates[0]),
        lambda f: jax.vmap(f, (None, 0))(gradient, rates),
        lambda f: jax.jvp(f, (gradient, rates[0]), (state.mean, rates[1])),
        lambda f: jax.grad(lambda gradient: sum(x.sum() for x in f(gradient, 1.0)))(gradient),
    ):
        got, want = (jax.tree.leaves(jax.jit(partial(form, f))()) for f in (step, plain))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_adam_leaves_alone_what_it_does_not_own():
    """What is averaged is written where it lies only where nobody else holds it; so are params."""
    gradient, state = centered_pair()
    params = uniform_leaves(5, [x.shape for x in gradient])
    before = jax.device_get((state, params))
    for call in (adam_step, jax.jit(adam_step, static_argnums=3)):
        jax.block_until_ready(call(SCALES, gradient, state, ((0, 1),), params))
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get((state, params)))


@pytest.mark.parametrize(("leaf", "index"), [(0, (1, 3)), (1, (17,)), (2, (4,))])
def test_adam_hides_no_nan(leaf, index):
    gradient, state = centered_pair()
    gradient[leaf] = gradient[leaf].at[index].set(jnp.nan)
    got = jax.tree.leaves(adam_step(SCALES, gradient, state, [(0, 1)]))
    want = _adam(jnp.array(SCALES), *gradient, *jax.tree.leaves(state), pairs=((0, 1),))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    assert np.isnan(got[leaf][index])
