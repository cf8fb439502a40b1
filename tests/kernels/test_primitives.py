"""The primitives against `jax.lax`, in every way that they can be asked."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdae.kernels import build, conv, conv_transpose, dense
from jaxdae.kernels import primitives as pr
from jaxdae.kernels.conv_shape import ONE_PIXEL, ConvShape
from tests.kernels.reference import (
    PRIMITIVES,
    REFERENCES,
    conv_forward,
    needs_compiler,
    random_normal,
    rotate,
)

pytestmark = needs_compiler


@pytest.fixture(autouse=True, scope="module")
def compiled():
    assert build.available()


@st.composite
def shapes(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.integers(1, 3))
    pads = [draw(st.tuples(st.integers(0, k), st.integers(0, k))) for k in kernel]
    image = tuple(draw(st.integers(max(1, k - low - high), 20)) for k, (low, high) in
                  zip(kernel, pads, strict=True))  # fmt: skip
    return ConvShape(image, kernel, stride, tuple(pads))


# Channels about the sizes of vectors, AMX tiles and panels.
channels = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 70])
extras = st.tuples(*4 * [st.booleans()])
multiples_of_32 = st.sampled_from([32, 64, 96])


def halved(*grid):
    """A kernel of 3 by 3 at stride 2 under "SAME" on images of even sides."""
    return ConvShape(tuple(2 * size for size in grid), (3, 3), 2, ((0, 1), (0, 1)))


def pairs(shape, batch, inputs, outputs):
    """Whether bfloat16 may take five products for six."""
    enough = batch * shape.y_size[0] * shape.y_size[1] > 512
    whole = inputs % 16 == 0 and outputs % 16 == 0
    tiled = build.uses_amx(jnp.bfloat16)
    return shape == halved(*shape.y_size) and enough and whole and not tiled


def check(name, shape, batch, inputs, outputs, dtype, extras):
    """One of the primitives against what it stands for, with a bias and masks or without, and with
    its matrix straight or rotated."""
    x = random_normal(0, (batch, *shape.x_size, inputs), dtype)
    y = random_normal(1, (batch, *shape.y_size, outputs), dtype)
    matrix = random_normal(2, (shape.kernel[0] * shape.kernel[1] * inputs, outputs))
    biased, rotated, *masked = extras
    matrix = rotate(matrix, shape) if rotated else matrix
    masks = [random_normal(3 + i, z.shape, dtype) if on else pr.none()
             for i, (z, on) in enumerate(zip((x, y), masked, strict=True))]  # fmt: skip
    bias = pr.none()
    if biased and name != "conv_weight_grad":
        bias = random_normal(5, (outputs if name == "conv_forward" else inputs,))
    factors = {
        "conv_forward": (matrix, x),
        "conv_data_grad": (matrix, y),
        "conv_weight_grad": (x, y),
    }[name]
    arguments = (*factors, bias, *masks)
    got = PRIMITIVES[name].bind(*arguments, shape=shape, rotated=rotated, compiled=True)
    want = jax.jit(partial(REFERENCES[name], shape=shape, rotated=rotated))(*arguments)
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    # Products of the same rounded factors: what differs is the order, and the last rounding. Pairs
    # of bfloat16 are sums of up to four factors, rounded once more.
    eps = 1e-5 if dtype == jnp.float32 else 2.0**-7
    scale = (1 + np.abs(want).max()) / 4
    if dtype == jnp.bfloat16 and pairs(shape, batch, inputs, outputs):
        scale = 1 + 6 * np.sqrt(np.square(want).mean())
    np.testing.assert_allclose(got, want, rtol=eps, atol=eps * scale)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.sampled_from(sorted(PRIMITIVES)),
    shapes(),
    st.integers(1, 5),
    channels,
    channels,
    st.sampled_from(build.TYPES),
    extras,
)
def test_each_is_what_it_stands_for(name, shape, batch, inputs, outputs, dtype, extras):
    check(name, shape, batch, inputs, outputs, dtype, extras)


@pytest.mark.slow
@settings(max_examples=100)
@given(
    st.sampled_from(sorted(PRIMITIVES)),
    st.builds(halved, st.integers(1, 15), st.integers(1, 15)),
    st.integers(1, 33),
    multiples_of_32,
    multiples_of_32,
    st.sampled_from(build.TYPES),
    extras,
)
def test_pairs_of_positions(name, shape, batch, inputs, outputs, dtype, extras):
    """They take five products for six; bfloat16 from 513 positions on."""
    if dtype == jnp.bfloat16:
        batch = 512 // (shape.y_size[0] * shape.y_size[1]) + (batch + 3) // 4
    check(name, shape, batch, inputs, outputs, dtype, extras)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.sampled_from(sorted(PRIMITIVES)),
    st.tuples(st.integers(1, 9), st.integers(14, 35)),
    st.one_of(st.just((1, 1, 1, 1)), st.tuples(*4 * [st.integers(0, 3)])),  # "SAME", or any
    st.integers(1, 2),
    st.integers(1, 9),
    st.integers(1, 3),
    multiples_of_32,
    st.sampled_from(build.TYPES),
    extras,
)
def test_images_of_few_channels(name, size, pads, stride, batch, inputs, outputs, dtype, extras):
    """Whose outputs are too few to fill a vector, or whose patches are small."""
    top, bottom, left, right = pads
    image = (max(size[0], 3 - top - bottom), size[1])
    shape = ConvShape(image, (3, 3), stride, ((top, bottom), (left, right)))
    check(name, shape, batch, inputs, outputs, dtype, extras)


@pytest.mark.parametrize("dtype", build.TYPES)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 3)])
def test_rows_that_several_rows_see_behind_a_mask(kernel, dtype):
    pads = tuple((size // 2, size // 2) for size in kernel)
    shape = ConvShape((19, 28), kernel, 1, pads)
    for outputs in (32, 64):
        check("conv_data_grad", shape, 3, 1, outputs, dtype, (True, False, False, True))


def beside_float64(name, dtype):
    """A kernel's result, what float64 makes of the same factors, and of how many products each."""
    shape = halved(14, 14)
    x, y = (
        random_normal(0, (8, *shape.x_size, 32), dtype),
        random_normal(1, (8, *shape.y_size, 64), dtype),
    )
    matrix = random_normal(2, (288, 64), dtype).astype(jnp.float32)
    factors = {
        "conv_forward": (matrix, x),
        "conv_data_grad": (matrix, y),
        "conv_weight_grad": (x, y),
    }[name]
    nothing = 3 * [pr.none()]
    got = PRIMITIVES[name].bind(*factors, *nothing, shape=shape, rotated=False, compiled=True)
    with jax.enable_x64(True):
        a, b = (jnp.asarray(np.asarray(factor, np.float64)) for factor in factors)
        if name == "conv_weight_grad":
            form = lambda w: conv_forward(w, a, *nothing, shape=shape)  # noqa: E731
            (want,) = jax.linear_transpose(form, jnp.zeros((288, 64)))(b)
        else:
            want = REFERENCES[name](a, b, *nothing, shape=shape)
        want = np.asarray(want)
    assert want.dtype == np.float64
    terms = {"conv_forward": 9 * 32, "conv_data_grad": 9 * 64, "conv_weight_grad": 8 * 14 * 14}[
        name
    ]
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
    st.sampled_from(build.TYPES),
    extras,
)
def test_images_of_one_pixel_are_vectors(name, batch, inputs, outputs, dtype, extras):
    check(name, ONE_PIXEL, batch, inputs, outputs, dtype, extras)


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 60), st.integers(1, 40), channels, st.booleans())
def test_sums_of_images(batch, height, width, count, narrow):
    x = random_normal(0, (batch, height, width, count), jnp.bfloat16 if narrow else jnp.float32)
    got = pr.bias_grad_p.bind(x, dtype=jnp.dtype(jnp.float32), compiled=True)
    want = np.asarray(x, np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * x.size**0.5)


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
@pytest.mark.parametrize("dtype", build.TYPES)
@pytest.mark.parametrize("batch", [1, 5, 9])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 32), (3, 8), (32, 64), (40, 1)])
def test_what_was_computed_before_does_not_matter(name, dtype, batch, inputs, outputs):
    """Threads keep their memory: whatever lies in it, here what is no number, is not read."""
    for size in (14, 7):
        pads = ((0, 1), (0, 1))
        shape = ConvShape((2 * size, 2 * size), (3, 3), 2, pads)
        x = jnp.full((8, *shape.x_size, 32), jnp.nan, dtype)
        y = jnp.full((8, *shape.y_size, 32), jnp.nan, dtype)
        few = jnp.full((8, *shape.x_size, 1), jnp.nan, dtype)
        matrix, less = jnp.full((9 * 32, 32), jnp.nan), jnp.full((9, 32), jnp.nan)
        extras = (pr.none(), pr.none(), pr.none())
        for primitive, factors in (
            (pr.conv_forward_p, (matrix, x)),
            (pr.conv_data_grad_p, (matrix, y)),
            (pr.conv_data_grad_p, (less, y)),
            (pr.conv_weight_grad_p, (x, y)),
            (pr.conv_weight_grad_p, (few, y)),
        ):
            assert np.isnan(
                primitive.bind(*factors, *extras, shape=shape, rotated=False, compiled=True)
            ).any()
        check(name, shape, batch, inputs, outputs, dtype, (True, size == 7, False, True))
    wide = [jnp.full(shape, jnp.nan, dtype) for shape in [(64, 1, 1, 600), (64, 1, 1, 64)]]
    options = {"shape": ONE_PIXEL, "rotated": False, "compiled": True}
    pr.conv_forward_p.bind(jnp.full((600, 64), jnp.nan), wide[0], *extras, **options)
    pr.conv_weight_grad_p.bind(*wide, *extras, **options)
    check(name, ONE_PIXEL, batch, 550 + inputs, outputs, dtype, (True, False, False, True))


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
@pytest.mark.parametrize("dtype", build.TYPES)
@pytest.mark.parametrize(
    ("shape", "inputs", "outputs"),
    [
        (ConvShape((300, 70), (3, 3), 2, ((0, 1), (1, 1))), 33, 20),
        (halved(75, 70), 32, 96),
        (halved(73, 70), 64, 64),
        (ConvShape((260, 40), (5, 3), 1, ((2, 2), (1, 1))), 1, 32),
        (ConvShape((120, 130), (3, 3), 1, ((1, 1), (1, 1))), 3, 65),
        (ConvShape((300, 290), (3, 3), 1, ((1, 1), (1, 1))), 1, 32),
    ],
)
def test_images_that_are_taken_some_rows_at_a_time(name, dtype, shape, inputs, outputs):
    for rotated in (False, True):
        check(name, shape, 2, inputs, outputs, dtype, (True, rotated, True, True))


@pytest.mark.parametrize("dtype", build.TYPES)
@pytest.mark.parametrize("layer", [conv, conv_transpose])
def test_a_layer_with_its_relu_and_bias(layer, dtype):
    """Values and gradients, of the relu as written in front of the layer."""
    x, kernel, bias = (
        random_normal(0, (3, 9, 8, 20), dtype),
        random_normal(1, (3, 3, 20, 40)),
        random_normal(2, (40,)),
    )
    g = random_normal(3, jax.eval_shape(partial(layer, stride=2), x, kernel).shape, dtype)

    def run(function):
        out, vjp = jax.vjp(function, x, kernel, bias)
        return out, *vjp(g)

    got = run(partial(layer, stride=2, rectify=True))
    with build.disabled():
        want = run(lambda x, k, b: layer(jax.nn.relu(x), k, b, stride=2))
    eps = 1e-5 if dtype == jnp.float32 else 2.0**-7
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.linalg.norm(a - b) <= eps * np.linalg.norm(b)


@pytest.mark.parametrize("channels", [20, 32])  # 32: whole vectors of inputs
@pytest.mark.parametrize("dtype", build.TYPES)
def test_a_dense_layer_with_its_relu_and_bias(dtype, channels):
    x, bias = random_normal(0, (3, 7, 5, channels), dtype), random_normal(2, (40,))
    kernel = random_normal(1, (35 * channels, 40))
    g = random_normal(3, (3, 40), dtype)

    def run(function):
        out, vjp = jax.vjp(function, x, kernel, bias)
        return out, *vjp(g)

    got = run(partial(dense, rectify=True))
    with build.disabled():
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


@pytest.mark.parametrize("dtype", build.TYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_hides_a_nan(dtype, sign, stride):
    x = random_normal(0, (1, 12, 12, 32), dtype).at[0, 4, 4, 3].set(sign * jnp.nan)
    out = conv(x, random_normal(1, (3, 3, 32, 32)), stride=stride, rectify=True)
    reached = np.isnan(np.asarray(out, np.float32)).all(-1)[0]
    first, last = (3, 5) if stride == 1 else (1, 2)
    assert reached[first : last + 1, first : last + 1].all()
    assert not reached[last + 2 :].any()


def test_rounding_is_to_the_nearest_and_ties_to_even():
    values = jnp.float32([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7, -1 - 2**-8, 3e38, 1e-30])
    x = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    zeros, size = jnp.zeros((1, 1, 1, len(values))), (1, 1, 1, len(values))
    got = conv(x, zeros, values)
    np.testing.assert_array_equal(got, values.astype(jnp.bfloat16).reshape(size))
