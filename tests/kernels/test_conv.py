"""The CPU forms against `jax.lax`: values, both gradients, every transformation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxdae.kernels import build, conv, conv_transpose, in_conv_layout, weighted_image_sum
from jaxdae.kernels.conv import DIMENSIONS
from jaxdae.kernels.conv_shape import ConvShape
from jaxdae.kernels.im2col import col2im, im2col

pytestmark = pytest.mark.usefixtures("form")
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
windows = st.tuples(st.integers(1, 5), st.integers(1, 5))
channels = st.tuples(st.integers(1, 4), st.integers(1, 4))
strides = st.integers(1, 3)
# Each example compiles two programs.
few = settings(max_examples=12)


def lax_conv(x, kernel, stride=1, padding="SAME"):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS
    )


def lax_conv_transpose(x, kernel, stride=1):
    return lax.conv_transpose(x, kernel, (stride, stride), "SAME", dimension_numbers=DIMENSIONS)


def normal(seed, shape, dtype=jnp.float32):
    """Drawn by NumPy, which compiles nothing for a new shape."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def arrays(size, window, channel, batch=2, dtype=jnp.float32):
    seed = sum(size) * 7 + sum(window)
    return (
        normal((seed, 0), (batch, *size, channel[0]), dtype),
        normal((seed, 1), (*window, *channel), dtype),
    )


def assert_same_function(ours, theirs, x, kernel, tolerance=1e-4):
    """Equal outputs and, for a random cotangent, equal gradients of the input and the kernel."""

    def with_gradients(function):
        def run(x, kernel):
            out, vjp = jax.vjp(function, x, kernel)
            return out, *vjp(normal(1, out.shape, out.dtype))

        return jax.jit(run)(x, kernel)

    got, want = with_gradients(ours), with_gradients(theirs)
    assert got[0].shape == want[0].shape
    assert got[0].dtype == want[0].dtype
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (1 + np.abs(b).max()))


@few
@given(sizes, windows, channels, strides, st.sampled_from(["SAME", "VALID", "wide"]))
def test_conv_is_lax_conv(size, window, channel, stride, padding):
    if padding == "wide":
        # No wider: XLA's own CPU gradient reads out of bounds where it exceeds the window less 1.
        padding = ((window[0] - 1, 0), (window[1] // 2, window[1] - 1))
    x, kernel = arrays([s + 4 for s in size], window, channel)
    assert_same_function(
        lambda x, k: conv(x, k, stride=stride, padding=padding),
        lambda x, k: lax_conv(x, k, stride, padding),
        x,
        kernel,
    )


@few
@given(sizes, windows, channels, strides)
def test_conv_transpose_is_lax_conv_transpose(size, window, channel, stride):
    x, kernel = arrays(size, window, channel)
    assert_same_function(
        lambda x, k: conv_transpose(x, k, stride=stride),
        lambda x, k: lax_conv_transpose(x, k, stride),
        x,
        kernel,
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_accumulate_in_float32(dtype):
    x, kernel = arrays((9, 8), (3, 3), (64, 8), dtype=dtype)
    ours = [conv(x, kernel, stride=2), conv_transpose(x, kernel, stride=2), conv(x, kernel)]
    wide, wide_kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    exact = [
        lax_conv(wide, wide_kernel, 2),
        lax_conv_transpose(wide, wide_kernel, 2),
        lax_conv(wide, wide_kernel),
    ]
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == dtype
        error = np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)
        assert error < float(jnp.finfo(dtype).eps)
    assert_same_function(
        lambda x, k: conv_transpose(x, k, stride=2),
        lambda x, k: lax_conv_transpose(x, k, 2),
        x,
        kernel,
        tolerance=8 * float(jnp.finfo(dtype).eps),
    )


@pytest.mark.parametrize("layer", [conv, conv_transpose])
def test_a_kernel_of_a_wider_type_keeps_its_gradient(layer):
    """The kernel is rounded on the way in; its gradient, a sum over the images, is not."""
    x, kernel = arrays((9, 8), (3, 3), (5, 8), batch=16)

    def gradient(x, kernel):
        return jax.grad(lambda k: layer(x, k, stride=2).astype(jnp.float32).sum())(kernel)

    narrow = x.astype(jnp.bfloat16)
    got, want = gradient(narrow, kernel), gradient(narrow.astype(jnp.float32), kernel)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weighted_image_sum(dtype):
    weights, images, bias = normal(0, (6, 4)), normal(1, (5, 5, 4, 2)), normal(2, (2,))
    weights = weights.astype(dtype)
    expected = np.einsum("bn,nhwc->bhwc", weights.astype("float32"), images[:4]) + images[4] + bias
    got = jax.jit(weighted_image_sum)(weights, images, bias)
    assert got.dtype == dtype
    few = 1e-5 if dtype == "float32" else 0.03
    np.testing.assert_allclose(got.astype("float32"), expected, rtol=few, atol=few)


@few
@given(sizes, windows, st.integers(1, 3), strides, st.integers(0, 2), st.integers(0, 2))
def test_col2im_is_the_adjoint_of_im2col(size, window, count, stride, low, high):
    image = tuple(s + 5 for s in size)
    shape = ConvShape(image, window, stride, ((low, high), (high, low)))
    x = normal(0, (count, *image, 2))
    patches = jax.jit(im2col, static_argnums=1)(x, shape)
    assert patches.shape == (window[0] * window[1] * count, *shape.y_size, 2)
    other = normal(1, patches.shape)
    np.testing.assert_allclose(
        np.vdot(patches, other),
        np.vdot(x, jax.jit(col2im, static_argnums=1)(other, shape)),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("layer", [conv, conv_transpose])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channel", [(1, 3), (3, 1)])
def test_differentiates_both_ways_and_twice(layer, stride, channel):
    x, kernel = arrays((5, 4), (3, 3), channel)
    check_grads(
        lambda x, k: jnp.sin(layer(x, k, stride=stride)), (x, kernel), order=2, rtol=0.02, atol=0.02
    )


@pytest.mark.slow
@pytest.mark.parametrize("layer", [conv, conv_transpose])
def test_under_jit_vmap_scan_and_pmap(layer):
    x, kernel = arrays((6, 7), (3, 3), (3, 4), batch=4)

    def gradients(x, kernel):
        return jax.value_and_grad(lambda x, k: (layer(x, k, stride=2) ** 2).sum(), (0, 1))(
            x, kernel
        )

    stacked = jnp.stack([x, -2 * x])
    expected = [gradients(one, kernel) for one in stacked]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    ways = {
        "jit": lambda: jax.tree.map(
            lambda *leaves: jnp.stack(leaves),
            *[jax.jit(gradients)(one, kernel) for one in stacked],
        ),
        "vmap": lambda: jax.vmap(gradients, (0, None))(stacked, kernel),
        "scan": lambda: lax.scan(lambda _, one: (None, gradients(one, kernel)), None, stacked)[1],
    }
    if jax.local_device_count() >= 2:
        ways["pmap"] = lambda: jax.pmap(gradients, in_axes=(0, None))(stacked, kernel)
        shard = jax.shard_map(
            lambda one, kernel: jax.tree.map(lambda g: g[None], gradients(one[0], kernel)),
            mesh=Mesh(jax.devices()[:2], ("devices",)),
            in_specs=(P("devices"), P()),
            out_specs=(P("devices"), (P("devices"), P("devices"))),
            check_vma=False,
        )
        ways["shard_map"] = lambda: jax.jit(shard)(stacked, kernel)
    for name, run in ways.items():
        for a, b in zip(jax.tree.leaves(run()), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("layer", [conv, conv_transpose])
def test_cpu_programs_hold_no_convolution_and_others_do(layer):
    """The choice is made when the program is lowered, for whichever platform it is lowered."""
    x, kernel = arrays((8, 8), (3, 3), (3, 4))
    gradient = jax.jit(jax.grad(lambda x, k: (layer(x, k, stride=2) ** 2).sum(), (0, 1)))
    traced = gradient.trace(x, kernel)
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("cuda", "tpu"):
        assert "stablehlo.convolution" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_what_stands_between_convolutions_is_not_transposed():
    """A transposition where the images come in, as often as they are read, and one at the end."""
    kernels = [normal(i, (3, 3, 8, 8)) for i in range(3)]
    bias = jnp.arange(8.0)[None, None, None]

    def add(x, bias):
        return jax.nn.relu(x + bias)

    def transpositions(between):
        def block(x):
            for kernel in kernels:
                x = between(conv(x, kernel), bias)
            return (x**2).sum()

        program = jax.jit(jax.grad(block)).lower(jnp.zeros((64, 12, 12, 8))).compile()
        return program.as_text().count(" transpose(")

    with build.disabled():  # the kernels have no other layout
        assert transpositions(partial(in_conv_layout, add)) <= 9 + 1
        assert transpositions(add) > 20  # the count would see it


def test_in_conv_layout_is_the_function():
    x, y = normal(0, (2, 3, 4, 5, 6))
    for arguments in ((x, y), (x, y[:1, :1, :1])):
        np.testing.assert_array_equal(
            in_conv_layout(jnp.subtract, *arguments), jnp.subtract(*arguments)
        )
