"""The kernels against what they stand for, in every way that they can be asked."""

import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from jaxdae.kernels import primitives as native
from jaxdae.kernels.conv import Geometry, conv, conv_transpose, dense
from jaxdae.model import DenoisingAutoencoder
from jaxdae.optimizers import adam, centered, take_step

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)
REFERENCES = {"gather": native._gather, "scatter": native._scatter, "correlate": native._correlate}
PRIMITIVES = {
    "gather": native.gather_p,
    "scatter": native.scatter_p,
    "correlate": native.correlate_p,
}


def has(flag):
    """Whether Linux says this of the processor."""
    about = Path("/proc/cpuinfo")
    return about.is_file() and f" {flag} " in about.read_text().replace("\n", " ")


@pytest.fixture(autouse=True, scope="module")
def compiled():
    assert native.available()


def normal(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


@st.composite
def geometries(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.integers(1, 3))
    pads = [draw(st.tuples(st.integers(0, k), st.integers(0, k))) for k in kernel]
    image = tuple(draw(st.integers(max(1, k - low - high), 20)) for k, (low, high) in
                  zip(kernel, pads, strict=True))  # fmt: skip
    return Geometry(image, kernel, stride, tuple(pads))


ONE_PIXEL = Geometry((1, 1), (1, 1), 1, ((0, 0), (0, 0)))
# Channels about the sizes of vectors, tiles and panels.
channels = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 70])


def test_they_are_here():
    assert native.available()
    with native.without():
        assert not native.available()


extras = st.tuples(*4 * [st.booleans()])


def halved(*grid):
    """A kernel of 3 by 3 at stride 2 under "SAME" on images of even sides."""
    return Geometry(tuple(2 * size for size in grid), (3, 3), 2, ((0, 1), (0, 1)))


def pairs(geometry, batch, inputs, outputs):
    """Whether bfloat16 may take five products for six."""
    enough = batch * geometry.grid[0] * geometry.grid[1] > 512
    whole = inputs % 16 == 0 and outputs % 16 == 0
    tiled = native.tiled(jnp.bfloat16)
    return geometry == halved(*geometry.grid) and enough and whole and not tiled


def check(name, geometry, batch, inputs, outputs, dtype, extras):
    """One of the primitives against what it stands for, with a bias and gates or without, and with
    its matrix straight or turned."""
    x = normal(0, (batch, *geometry.image, inputs), dtype)
    y = normal(1, (batch, *geometry.grid, outputs), dtype)
    matrix = normal(2, (geometry.kernel[0] * geometry.kernel[1] * inputs, outputs))
    biased, turned, *gated = extras
    matrix = native._turn(matrix, geometry) if turned else matrix
    gates = [normal(3 + i, z.shape, dtype) if on else native.none()
             for i, (z, on) in enumerate(zip((x, y), gated, strict=True))]  # fmt: skip
    bias = native.none()
    if biased and name != "correlate":
        bias = normal(5, (outputs if name == "gather" else inputs,))
    factors = {"gather": (matrix, x), "scatter": (matrix, y), "correlate": (x, y)}[name]
    arguments = (*factors, bias, *gates)
    got = PRIMITIVES[name].bind(*arguments, geometry=geometry, turned=turned)
    want = jax.jit(partial(REFERENCES[name], geometry=geometry, turned=turned))(*arguments)
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    # Products of the same rounded factors: what differs is the order, and the last rounding. Pairs
    # of bfloat16 are sums of up to four factors, rounded once more.
    eps = 1e-5 if dtype == jnp.float32 else 2.0**-7
    scale = (1 + np.abs(want).max()) / 4
    if dtype == jnp.bfloat16 and pairs(geometry, batch, inputs, outputs):
        scale = 1 + 6 * np.sqrt(np.square(want).mean())
    np.testing.assert_allclose(got, want, rtol=eps, atol=eps * scale)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(PRIMITIVES)),
    geometries(),
    st.integers(1, 5),
    channels,
    channels,
    st.sampled_from(native.TYPES),
    extras,
)
def test_each_is_what_it_stands_for(name, geometry, batch, inputs, outputs, dtype, extras):
    check(name, geometry, batch, inputs, outputs, dtype, extras)


multiples_of_32 = st.sampled_from([32, 64, 96])


@settings(max_examples=100)
@given(
    st.sampled_from(sorted(PRIMITIVES)),
    st.builds(halved, st.integers(1, 15), st.integers(1, 15)),
    st.integers(1, 33),
    multiples_of_32,
    multiples_of_32,
    st.sampled_from(native.TYPES),
    extras,
)
def test_pairs_of_positions(name, geometry, batch, inputs, outputs, dtype, extras):
    """They take five products for six; bfloat16 from 513 positions on."""
    if dtype == jnp.bfloat16:
        batch = 512 // (geometry.grid[0] * geometry.grid[1]) + (batch + 3) // 4
    check(name, geometry, batch, inputs, outputs, dtype, extras)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(PRIMITIVES)),
    st.tuples(st.integers(1, 9), st.integers(14, 35)),
    st.one_of(st.just((1, 1, 1, 1)), st.tuples(*4 * [st.integers(0, 3)])),  # "SAME", or any
    st.integers(1, 2),
    st.integers(1, 9),
    st.integers(1, 3),
    multiples_of_32,
    st.sampled_from(native.TYPES),
    extras,
)
def test_images_of_few_channels(name, size, pads, stride, batch, inputs, outputs, dtype, extras):
    """They are summed along a row; all numbers of a patch of one channel are taken at once."""
    top, bottom, left, right = pads
    image = (max(size[0], 3 - top - bottom), size[1])
    geometry = Geometry(image, (3, 3), stride, ((top, bottom), (left, right)))
    check(name, geometry, batch, inputs, outputs, dtype, extras)


@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 3)])
def test_rows_that_several_rows_see_behind_a_gate(kernel, dtype):
    pads = tuple((size // 2, size // 2) for size in kernel)
    geometry = Geometry((19, 28), kernel, 1, pads)
    for outputs in (32, 64):
        check("scatter", geometry, 3, 1, outputs, dtype, (True, False, False, True))


def beside_float64(name, dtype):
    """A kernel's result, what float64 makes of the same factors, and of how many products each."""
    geometry = halved(14, 14)
    x, y = (
        normal(0, (8, *geometry.image, 32), dtype),
        normal(1, (8, *geometry.grid, 64), dtype),
    )
    matrix = normal(2, (288, 64), dtype).astype(jnp.float32)
    factors = {"gather": (matrix, x), "scatter": (matrix, y), "correlate": (x, y)}[name]
    nothing = 3 * [native.none()]
    got = PRIMITIVES[name].bind(*factors, *nothing, geometry=geometry, turned=False)
    with jax.enable_x64(True):
        a, b = (jnp.asarray(np.asarray(factor, np.float64)) for factor in factors)
        if name == "correlate":
            form = lambda w: native._gather(w, a, *nothing, geometry=geometry)  # noqa: E731
            (want,) = jax.linear_transpose(form, jnp.zeros((288, 64)))(b)
        else:
            want = REFERENCES[name](a, b, *nothing, geometry=geometry)
        want = np.asarray(want)
    assert want.dtype == np.float64
    terms = {"gather": 9 * 32, "scatter": 9 * 64, "correlate": 8 * 14 * 14}[name]
    return np.asarray(got, np.float64), want, terms


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_fewer_products_are_as_exact(name):
    """Against float64, beside the error of sums of float32 in any order."""
    got, want, terms = beside_float64(name, jnp.float32)
    error = np.sqrt(np.square(got - want).mean() / np.square(want).mean())
    assert error < 2.0**-25 * terms**0.5


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_fewer_products_of_bfloat16_are_rounded_and_no_more(name):
    """By about twice what rounding the result costs, and to neither side."""
    got, want, _ = beside_float64(name, jnp.bfloat16)
    error = np.sqrt(np.square(got - want).mean() / np.square(want).mean())
    assert error < 2.0**-7.75
    assert abs((got * want).sum() / np.square(want).sum() - 1) < 2.0**-12


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(PRIMITIVES)),
    st.one_of(st.integers(1, 130), st.sampled_from([128, 144, 200])),
    st.one_of(channels, st.integers(1, 1500), st.sampled_from([320, 1024])),
    st.one_of(channels, st.integers(1, 600)),
    st.sampled_from(native.TYPES),
    extras,
)
def test_images_of_one_pixel_are_vectors(name, batch, inputs, outputs, dtype, extras):
    check(name, ONE_PIXEL, batch, inputs, outputs, dtype, extras)


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 60), st.integers(1, 40), channels, st.booleans())
def test_sums_of_images(batch, height, width, count, narrow):
    x = normal(0, (batch, height, width, count), jnp.bfloat16 if narrow else jnp.float32)
    got = native.total_p.bind(x, dtype=jnp.dtype(jnp.float32))
    want = np.asarray(x, np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * x.size**0.5)


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("batch", [1, 5, 9])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 32), (3, 8), (32, 64), (40, 1)])
def test_what_was_computed_before_does_not_matter(name, dtype, batch, inputs, outputs):
    """Threads keep their memory: whatever lies in it, here what is no number, is not read."""
    for size in (14, 7):
        pads = ((0, 1), (0, 1))
        geometry = Geometry((2 * size, 2 * size), (3, 3), 2, pads)
        x = jnp.full((8, *geometry.image, 32), jnp.nan, dtype)
        y = jnp.full((8, *geometry.grid, 32), jnp.nan, dtype)
        few = jnp.full((8, *geometry.image, 1), jnp.nan, dtype)
        matrix, less = jnp.full((9 * 32, 32), jnp.nan), jnp.full((9, 32), jnp.nan)
        extras = (native.none(), native.none(), native.none())
        for primitive, factors in (
            (native.gather_p, (matrix, x)),
            (native.scatter_p, (matrix, y)),
            (native.scatter_p, (less, y)),
            (native.correlate_p, (x, y)),
            (native.correlate_p, (few, y)),
        ):
            assert np.isnan(
                primitive.bind(*factors, *extras, geometry=geometry, turned=False)
            ).any()
        check(name, geometry, batch, inputs, outputs, dtype, (True, size == 7, False, True))
    wide = [jnp.full(shape, jnp.nan, dtype) for shape in [(64, 1, 1, 600), (64, 1, 1, 64)]]
    options = {"geometry": ONE_PIXEL, "turned": False}
    native.gather_p.bind(jnp.full((600, 64), jnp.nan), wide[0], *extras, **options)
    native.correlate_p.bind(*wide, *extras, **options)
    check(name, ONE_PIXEL, batch, 550 + inputs, outputs, dtype, (True, False, False, True))


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize(
    ("geometry", "inputs", "outputs"),
    [
        (Geometry((300, 70), (3, 3), 2, ((0, 1), (1, 1))), 33, 20),
        (halved(75, 70), 32, 96),
        (halved(73, 70), 64, 64),
        (Geometry((260, 40), (5, 3), 1, ((2, 2), (1, 1))), 1, 32),
        (Geometry((120, 130), (3, 3), 1, ((1, 1), (1, 1))), 3, 65),
        (Geometry((300, 290), (3, 3), 1, ((1, 1), (1, 1))), 1, 32),
    ],
)
def test_images_that_are_taken_some_rows_at_a_time(name, dtype, geometry, inputs, outputs):
    for turned in (False, True):
        check(name, geometry, 2, inputs, outputs, dtype, (True, turned, True, True))


@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("layer", [conv, conv_transpose])
def test_a_layer_with_its_relu_and_bias(layer, dtype):
    """Values and gradients, of the relu as written in front of the layer."""
    x, kernel, bias = normal(0, (3, 9, 8, 20), dtype), normal(1, (3, 3, 20, 40)), normal(2, (40,))
    g = normal(3, jax.eval_shape(partial(layer, stride=2), x, kernel).shape, dtype)

    def run(function):
        out, vjp = jax.vjp(function, x, kernel, bias)
        return out, *vjp(g)

    got = run(partial(layer, stride=2, rectify=True))
    with native.without():
        want = run(lambda x, k, b: layer(jax.nn.relu(x), k, b, stride=2))
    eps = 1e-5 if dtype == jnp.float32 else 2.0**-7
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.linalg.norm(a - b) <= eps * np.linalg.norm(b)


@pytest.mark.parametrize("channels", [20, 32])  # 32: whole vectors of inputs
@pytest.mark.parametrize("dtype", native.TYPES)
def test_a_dense_layer_with_its_relu_and_bias(dtype, channels):
    x, bias = normal(0, (3, 7, 5, channels), dtype), normal(2, (40,))
    kernel = normal(1, (35 * channels, 40))
    g = normal(3, (3, 40), dtype)

    def run(function):
        out, vjp = jax.vjp(function, x, kernel, bias)
        return out, *vjp(g)

    got = run(partial(dense, rectify=True))
    with native.without():
        plain = run(partial(dense, rectify=True))
    rounded = kernel.astype(dtype).astype(jnp.float32)
    inputs = jax.nn.relu(x.astype(jnp.float32)).reshape(3, -1)
    want = jax.jit(jnp.matmul)(inputs, rounded) + bias
    eps = 1e-5 if dtype == jnp.float32 else 2.0**-7
    assert got[0].dtype == dtype
    np.testing.assert_allclose(got[0].astype(jnp.float32), want, rtol=eps, atol=20 * eps)
    for a, b in zip(got, plain, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.linalg.norm(a - b) <= eps * np.linalg.norm(b)


@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_hides_a_nan(dtype, sign, stride):
    x = normal(0, (1, 12, 12, 32), dtype).at[0, 4, 4, 3].set(sign * jnp.nan)
    out = conv(x, normal(1, (3, 3, 32, 32)), stride=stride, rectify=True)
    reached = np.isnan(np.asarray(out, np.float32)).all(-1)[0]
    first, last = (3, 5) if stride == 1 else (1, 2)
    assert reached[first : last + 1, first : last + 1].all()
    assert not reached[last + 2 :].any()


def leaves(seed, shapes, low=-1.0):
    draw = np.random.default_rng(seed).uniform
    return [jnp.asarray(draw(low, 1.0, shape), jnp.float32) for shape in shapes]


def layers(seed, shapes, low=-1.0):
    """Kernels of these shapes, with their biases, and numbers that have none."""
    tree = {
        f"{i}": {"kernel": kernel, "bias": bias}
        for i, shape in enumerate(shapes)
        for kernel, bias in [leaves(seed + i, [shape, shape[-1:]], low)]
    }
    return {**tree, "scale": {"scale": leaves(seed, [(7,)], low)[0]}}


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
        draw = lambda tree, low: jax.tree.map(lambda x: leaves(3, [x.shape], low)[0], tree)  # noqa: E731
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
    cross = leaves(3, [kernel[:-1]]), leaves(4, [()], low)
    state = native.AdamState(leaves(1, shapes), leaves(2, shapes, low), *cross)
    return leaves(0, shapes), state


@pytest.mark.parametrize("added", [False, True])
def test_adam_maps_and_differentiates(added):
    gradient, state = centered_pair()
    params = leaves(5, [x.shape for x in gradient]) if added else []

    def step(gradient, rate):
        scales = [*SCALES[:2], rate, *SCALES[3:]]
        return jax.tree.leaves(native.adam(scales, gradient, state, [(0, 1)], params))

    def plain(gradient, rate):
        scales = jnp.stack([*SCALES[:2], rate, *SCALES[3:]])
        given = (*gradient, *jax.tree.leaves(state), *params)
        return native._adam(scales, *given, pairs=((0, 1),), added=added)

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
    params = leaves(5, [x.shape for x in gradient])
    before = jax.device_get((state, params))
    for call in (native.adam, jax.jit(native.adam, static_argnums=3)):
        jax.block_until_ready(call(SCALES, gradient, state, ((0, 1),), params))
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get((state, params)))


@pytest.mark.parametrize(("leaf", "index"), [(0, (1, 3)), (1, (17,)), (2, (4,))])
def test_adam_hides_no_nan(leaf, index):
    gradient, state = centered_pair()
    gradient[leaf] = gradient[leaf].at[index].set(jnp.nan)
    got = jax.tree.leaves(native.adam(SCALES, gradient, state, [(0, 1)]))
    want = native._adam(jnp.array(SCALES), *gradient, *jax.tree.leaves(state), pairs=((0, 1),))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    assert np.isnan(got[leaf][index])


@settings(max_examples=40)
@given(
    st.integers(0, 2**31 - 1),
    st.lists(st.integers(1, 5), max_size=2),
    st.one_of(st.integers(1, 70), st.integers(1000, 1050), st.integers(2040, 2060)),
)
def test_normal_numbers_are_jax_s(seed, batch, count):
    """Bit for bit, whatever keys are mapped over."""
    keys = jax.random.split(jax.random.key(seed), batch)
    got, want = partial(native.normal, count=count), partial(jax.random.normal, shape=(count,))
    for _ in batch:
        got, want = jax.vmap(got), jax.vmap(want)
    np.testing.assert_array_equal(jax.jit(got)(keys), jax.jit(want)(keys))


def test_all_normal_numbers_are_jax_s():
    """Nearly all of the 2**23 that there are, those of either end among them."""
    key, count = jax.random.key(1), 2**25
    got = native.normal(key, count)
    np.testing.assert_array_equal(got, jax.random.normal(key, (count,)))
    assert len(np.unique(got)) > 0.98 * 2**23
    assert np.abs(got).max() > 5.1


def test_normal_numbers_of_other_kinds_are_jax_s():
    key, other = jax.random.key(0), jax.random.key(0, impl="rbg")
    old = jax.random.PRNGKey(0)
    for drawn, dtype in ((key, jnp.bfloat16), (other, jnp.float32), (old, jnp.float32)):
        got = native.normal(drawn, 40, dtype)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, jax.random.normal(drawn, (40,), dtype))
    with pytest.raises(ValueError, match=r"2\*\*32"):
        jax.jit(lambda key: native.normal(key, 2**32)).lower(key)
    with native.without():
        np.testing.assert_array_equal(native.normal(key, 40), jax.random.normal(key, (40,)))


def test_rounding_is_to_the_nearest_and_ties_to_even():
    values = jnp.float32([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7, -1 - 2**-8, 3e38, 1e-30])
    x = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    zeros, size = jnp.zeros((1, 1, 1, len(values))), (1, 1, 1, len(values))
    got = conv(x, zeros, values)
    np.testing.assert_array_equal(got, values.astype(jnp.bfloat16).reshape(size))


PROGRAM = """
import os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:int(sys.argv[1])]))
import hashlib, jax, jax.numpy as jnp
from jaxdae.kernels import primitives as native
from jaxdae.kernels.conv import conv
from jaxdae.model import DenoisingAutoencoder
assert native.available()
for dtype in (jnp.float32, jnp.bfloat16):
    model = DenoisingAutoencoder(dtype=dtype)
    images = jax.random.uniform(jax.random.key(0), (32, 28, 28, 1))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    layer = params["encoder"]["conv_1"]
    x = jax.random.normal(jax.random.key(2), (32, 14, 14, 32)).astype(dtype)
    function = lambda x, k, b: conv(x, k, b, stride=2, rectify=True)
    y, vjp = jax.vjp(function, x, layer["kernel"], layer["bias"])
    draw = lambda i, *sizes: [jax.random.uniform(jax.random.key(i), n) for n in sizes]
    sizes = (700, 40), (40,), (4096, 3)
    state = native.AdamState(draw(0, *sizes), draw(1, *sizes), draw(2, (700,)), draw(3, ()))
    steps = native.adam([0.9, 0.99, 2, 0, 3, 1e-7, -1, 0.9], draw(4, *sizes), state, [(0, 1)])
    for array in (y, *vjp(y), *jax.tree.leaves(steps)):
        print(hashlib.sha256(jax.device_get(array).tobytes()).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_bits_do_not_depend_on_the_threads():
    def run(processors):
        said = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(processors)],
            env={**os.environ, "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        return said.stdout

    alone = run(1)
    assert len(alone.splitlines()) == 2 * (4 + 11)
    assert alone == run(os.cpu_count())


OTHERS = """
import sys, numpy as np, jax, jax.numpy as jnp
from functools import partial
from jaxdae.kernels import primitives as native
from jaxdae.kernels.conv import conv, conv_transpose
native.OPTIONS = (*native.OPTIONS, *sys.argv[1:])
assert native.available()
assert native.tiled(jnp.bfloat16) == ("-D__AMX_BF16__" in sys.argv)
assert not native.tiled(jnp.float32)

draws = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(draws.standard_normal(shape, np.float32))
several = ((1, 32), (20, 1), (33, 70), (64, 32))
for layer, stride, size, taps, channels in (
    (conv, 2, (3, 9, 8), 3, several), (conv_transpose, 2, (3, 9, 8), 3, several),
    (conv_transpose, 1, (3, 9, 8), 3, several), (conv, 1, (3, 1, 1), 1, several),
    # pairs, and along rows
    (conv, 2, (19, 10, 12), 3, several[3:]), (conv_transpose, 2, (19, 5, 6), 3, several[3:]),
    (conv_transpose, 1, (3, 5, 30), 3, ((32, 1),)),
):
    for inputs, outputs in channels:
        for dtype, eps in ((jnp.float32, 1e-5), (jnp.bfloat16, 2.0**-7)):
            x = normal(*size, inputs).astype(dtype)
            kernel, bias = normal(taps, taps, inputs, outputs) / taps, normal(outputs)
            g = normal(*jax.eval_shape(partial(layer, stride=stride), x, kernel).shape)

            def run(g, *arguments):
                out, vjp = jax.vjp(partial(layer, stride=stride, rectify=True), *arguments)
                return out, *vjp(g.astype(dtype))

            got = jax.jit(run)(g, x, kernel, bias)
            with native.without():  # by another name, for what was traced of `run` is kept
                want = jax.jit(lambda *arguments: run(*arguments))(g, x, kernel, bias)
            for a, b in zip(got, want, strict=True):
                a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
                assert np.linalg.norm(a - b) <= eps * np.linalg.norm(b), (layer, inputs, dtype)

draw = lambda i, *sizes: [jax.random.uniform(jax.random.key(i), n) for n in sizes]
sizes = (300, 20), (20,), (5000,)
state = native.AdamState(draw(0, *sizes), draw(1, *sizes), draw(2, (300,)), draw(3, ()))
scales, gradient = [0.9, 0.99, 2.0, 0.5, 3.0, 1e-7, -1.0, 0.9], draw(4, *sizes)
got = jax.tree.leaves(native.adam(scales, gradient, state, [(0, 1)]))
want = native._adam(jnp.array(scales), *gradient, *jax.tree.leaves(state), pairs=((0, 1),))
for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

key = jax.random.key(0)
np.testing.assert_array_equal(native.normal(key, 5000), jax.random.normal(key, (5000,)))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of another processor")
@pytest.mark.parametrize(
    "flags",
    [
        ["-march=x86-64-v3"],
        ["-mno-amx-tile", "-mno-amx-bf16"],
        pytest.param(
            ["-mno-amx-tile", "-mno-amx-bf16", "-mno-avx512bf16"],
            marks=pytest.mark.skipif(not has("avx512_bf16"), reason="the same without"),
        ),
        pytest.param(
            ["-D__AMX_BF16__", "-include", str(Path(__file__).with_name("tiles.h"))],
            marks=pytest.mark.skipif(not has("avx512f"), reason="tiles come with AVX-512"),
        ),
    ],
    ids=["vectors of eight", "no tiles", "no products of bfloat16", "tiles in software"],
)
def test_other_processors(flags, tmp_path):
    """Vectors of eight, without bfloat16; vectors of sixteen, without tiles; and with them."""
    subprocess.run(
        [sys.executable, "-c", OTHERS, *flags],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
        timeout=300,
    )


@pytest.fixture
def forgotten_library():
    """As if nothing had been compiled or looked for."""
    native._load.cache_clear()
    yield
    native._load.cache_clear()
    assert native.available()


@pytest.mark.usefixtures("forgotten_library")
def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not native.available()
    assert not native.tiled(jnp.bfloat16)
    x, kernel = normal(0, (2, 8, 8, 4)), normal(1, (3, 3, 4, 5))
    program = jax.jit(lambda x: conv(x, kernel)).lower(x)
    assert "jaxdae_gather" not in program.as_text()
    got = program.compile()(x)
    monkeypatch.undo()
    native._load.cache_clear()
    np.testing.assert_allclose(got, conv(x, kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("forgotten_library")
def test_a_compiler_that_fails_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "OPTIONS", (*native.OPTIONS, "--no-such-option"))
    assert not native.available()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_library_is_kept_and_mended(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "OPTIONS", (*native.OPTIONS, "-O0"))  # sooner compiled
    path = native._build("float32")
    before = path.stat().st_mtime_ns
    assert native._build("float32") == path
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"no library")
    assert hasattr(native._open("float32"), "jaxdae_gather")
    assert path.read_bytes() != b"no library"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_was_traced_without_is_not_kept():
    """A batch for which the dense layer and what follows it are one, through a named function."""
    model = DenoisingAutoencoder((8, 8, 1), features=(4, 8), latent_dim=3)
    x = normal(0, (40, 8, 8, 1))
    params = jax.jit(model.init)(jax.random.key(0), x)

    def program():
        return jax.jit(lambda x: model.apply(params, x)).lower(x).as_text()

    with native.without():
        assert "jaxdae_gather" not in program()
        assert "dot_general" in program()
    assert "jaxdae_gather" in program()
    assert "dot_general" not in program()


def test_a_model_can_be_exported_as_it_is():
    """By `jax.export` itself: a file knows nothing of these kernels."""
    model = DenoisingAutoencoder((8, 8, 1), features=(4, 8))
    x = normal(0, (3, 8, 8, 1))
    params = jax.jit(model.init)(jax.random.key(0), x)
    whole = jax.jit(partial(model.apply, params))
    assert "jaxdae_gather" in whole.lower(x).as_text()
    exported = export.export(whole)(x)
    assert "jaxdae" not in exported.mlir_module().replace("jaxdae/", "")
    np.testing.assert_allclose(exported.call(x), whole(x), rtol=1e-5, atol=1e-5)
