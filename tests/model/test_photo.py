"""The network for photographs: against `lax`, at every size and noise level, and what it costs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from jaxdae import kernels, pretrained, tiling
from jaxdae.errors import InputError
from jaxdae.losses import mean_squared_error
from jaxdae.model import (
    Conv,
    ConvTranspose,
    DenoisingAutoencoder,
    Dense,
    PhotoDenoiser,
    build,
    gray_params,
    parameter_count,
    parameter_shapes,
    pixel_shuffle,
    pixel_unshuffle,
)
from jaxdae.objectives import Example, restoration_loss

SMALL = PhotoDenoiser(channels=3, features=(5, 7, 6), blocks=1, level_features=(4, 6))


def random_params(model):
    """Parameters of which all layers matter: a fresh network's last layer is small."""
    params = jax.jit(model.init)(jax.random.key(0), model.example)["params"]
    return {**params, "output": {"kernel": 30 * params["output"]["kernel"]}}


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


@jax.jit
def small(params, images, sigma=None):
    return SMALL.apply({"params": params}, images, sigma)


def test_is_the_network_that_it_says(params):
    """Against the same network written out in `lax`'s own convolutions."""

    def conv(path, x, stride=1, transposed=False):
        kernel = params
        for part in path.split("/"):
            kernel = kernel[part]
        function = jax.lax.conv_transpose if transposed else jax.lax.conv_general_dilated
        dimensions = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return function(x, kernel["kernel"], strides, "SAME", dimension_numbers=dimensions)

    def block(name, x):
        return x + conv(f"{name}/conv_1", jax.nn.relu(conv(f"{name}/conv_0", x)))

    @jax.jit
    def reference(images, sigma):
        level = jnp.broadcast_to(sigma[:, None, None, None], (*images.shape[:3], 1))
        given = jnp.concatenate([images, level], -1)
        given = jnp.pad(given, ((0, 0), (0, 6), (0, 3), (0, 0)), mode="reflect")
        corners = [given[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        half = block("encode_0_0", conv("stem", jnp.concatenate(corners, -1)))
        quarter = block("encode_1_0", conv("down_0", half, 2))
        x = block("middle_0", conv("down_1", quarter, 2))
        x = block("decode_1_0", conv("up_1", x, 2, transposed=True) + quarter)
        x = block("decode_0_0", conv("up_0", x, 2, transposed=True) + half)
        noise = jnp.zeros((*given.shape[:3], 3))
        x = conv("output", x)
        for i in (0, 1):
            for j in (0, 1):
                part = x[..., 3 * (2 * i + j) :][..., :3]
                noise = noise.at[:, i::2, j::2].set(part)
        return (given[..., :3] - noise)[:, :10, :13]

    images = jax.random.uniform(jax.random.key(1), (2, 10, 13, 3))
    sigma = jnp.array([0.1, 0.4])
    expected = reference(images, sigma)
    assert jnp.abs(expected - images).mean() > 0.05
    np.testing.assert_allclose(small(params, images, sigma), expected, atol=1e-5)


def test_shuffling_pixels():
    x = jax.random.uniform(jax.random.key(0), (2, 6, 8, 3))
    halved = pixel_unshuffle(x)
    assert halved.shape == (2, 3, 4, 12)
    np.testing.assert_array_equal(halved[:, 1, 2, 3:6], x[:, 2, 5])
    np.testing.assert_array_equal(pixel_shuffle(halved), x)


@pytest.mark.parametrize("size", [(28, 28), (101, 133), (1, 3)])
def test_noise_levels_of_all_forms_agree_at_every_size(params, size):
    images = jax.random.uniform(jax.random.key(1), (2, *size, 3))
    out = small(params, images, 0.25)
    assert out.shape == images.shape and out.dtype == jnp.float32
    for level in (jnp.full(2, 0.25), jnp.full((2, *size, 1), 0.25)):
        np.testing.assert_allclose(small(params, images, level), out, atol=1e-6)
    each = small(params, images, jnp.array([0.25, 0.5]))
    np.testing.assert_allclose(each[0], out[0], atol=1e-6)
    assert jnp.abs(each[1] - out[1]).max() > 1e-3
    estimate = SMALL.apply({"params": params}, images, method="noise_level")
    assert estimate.shape == level.shape and (estimate >= 0).all() and estimate.max() > 0.01
    np.testing.assert_allclose(small(params, images), small(params, images, estimate), atol=1e-6)
    # A map is padded as the images are.
    level = jax.random.uniform(jax.random.key(2), (2, *size, 1))
    sides = [SMALL.padded_side(side) - side for side in size]
    padding = ((0, 0), *((0, side) for side in sides), (0, 0))
    if min(size) > 1:
        padded = (np.pad(x, padding, mode="reflect") for x in (images, level))
        whole = small(params, *padded)[:, : size[0], : size[1]]
        np.testing.assert_allclose(small(params, images, level), whole, atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (1, 1), (2, 8, 9, 3), (2, 8, 8, 1)])
def test_refuses_a_noise_level_that_does_not_fit(params, shape):
    images = jnp.zeros((2, 8, 9, 3))
    with pytest.raises(InputError, match=r"one number, 2 numbers, or a map of shape \(2, 8, 9, 1"):
        SMALL.apply({"params": params}, images, jnp.zeros(shape))


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_is_homogeneous(params, factor):
    """Brighter images with as much more noise give brighter images: there are no biases."""
    images = jax.random.uniform(jax.random.key(1), (2, 16, 24, 3))
    level = jax.random.uniform(jax.random.key(2), (2, 16, 24, 1))
    scaled = small(params, factor * images, factor * level)
    np.testing.assert_allclose(scaled, factor * small(params, images, level), atol=1e-5)
    blind = small(params, factor * images)
    np.testing.assert_allclose(blind, factor * small(params, images), atol=1e-5)


def multiplications(jaxpr):
    """Of `lax`'s own convolutions, which a GPU would run; without the zeros between pixels."""
    total = 0
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    total += multiplications(getattr(inner, "jaxpr", inner))
        if equation.primitive.name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            dilation = np.prod(equation.params["lhs_dilation"])
            pixels = out.shape[0] * out.shape[1] * out.shape[2]  # NHWC
            total += pixels * kernel.size // kernel.shape[3] * out.shape[3] // dilation
    return int(total)


@pytest.mark.parametrize(
    ("channels", "level", "count", "cost"),
    [
        (3, (), 878_400, 70_416),
        (1, (), 871_488, 68_688),
        (3, (24, 48, 64), 961_248, 74_721),
        (1, (24, 48, 64), 952_608, 72_561),
    ],
)
def test_parameters_and_multiplications(channels, level, count, cost):
    model = PhotoDenoiser(channels=channels, level_features=level)
    images = jax.ShapeDtypeStruct((1, 64, 96, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert parameter_count(variables) == count
    assert {path[-1].key for path, _ in jax.tree.leaves_with_path(variables)} == {"kernel"}
    program = jax.make_jaxpr(model.apply)(variables, images)
    assert multiplications(program.jaxpr) == cost * 64 * 96


def test_without_an_estimate_the_level_is_zero(params):
    blind = SMALL.clone(level_features=())
    assert not blind.estimates and SMALL.estimates
    bare = {name: value for name, value in params.items() if name != "level"}
    images = jax.random.uniform(jax.random.key(1), (2, 16, 24, 3))
    out = blind.apply({"params": bare}, images)
    np.testing.assert_allclose(out, small(params, images, 0.0), atol=1e-6)
    with pytest.raises(InputError, match="does not estimate noise levels: give sigma"):
        blind.apply({"params": bare}, images, method="noise_level")


def test_the_gray_network_of_one_in_colour(params):
    """It does to a gray image what the other does to three equal channels, told more noise."""
    gray = SMALL.clone(channels=1)
    converted = gray_params(params)
    assert jax.tree.map(jnp.shape, converted) == parameter_shapes(gray)
    images = jax.random.uniform(jax.random.key(1), (2, 13, 24, 1))
    for sigma in (0.2, 0.0):
        out = gray.apply({"params": converted}, images, sigma)
        told = small(params, jnp.repeat(images, 3, 3), 3**0.5 * sigma)
        expected = told.mean(3, keepdims=True)
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_computes_in_bfloat16_near_float32(params):
    images = jax.random.uniform(jax.random.key(1), (4, 28, 28, 3))
    narrow = SMALL.clone(dtype=jnp.bfloat16)
    out = jax.jit(narrow.apply)({"params": params}, images, 0.2)
    assert out.dtype == jnp.float32
    exact = small(params, images, 0.2)
    assert 0 < jnp.abs(out - exact).max() < 0.03 * jnp.abs(exact - images).max()
    given = images.astype(jnp.bfloat16)
    assert jax.eval_shape(narrow.apply, {"params": params}, given, 0.2).dtype == jnp.float32


def test_a_fresh_network_nearly_returns_its_input():
    model = build("photo", channels=3)
    images = jax.random.uniform(jax.random.key(1), (2, 40, 48, 3))
    variables = jax.jit(model.init)(jax.random.key(2), images)
    change = jax.jit(model.apply)(variables, images, 0.1) - images
    assert 0.002 < jnp.sqrt((change**2).mean()) < 0.05


def test_one_exported_program_serves_all_sizes(params):
    shape = export.symbolic_shape("batch, height, width, 3")
    level = jax.ShapeDtypeStruct((*shape[:3], 1), jnp.float32)
    with kernels.disabled():
        program = export.export(jax.jit(lambda x, s: SMALL.apply({"params": params}, x, s)))(
            jax.ShapeDtypeStruct(shape, jnp.float32), level
        )
        blind = export.export(jax.jit(lambda x: SMALL.apply({"params": params}, x)))(
            jax.ShapeDtypeStruct(shape, jnp.float32)
        )
    for size in [(28, 28), (101, 133), (5, 7)]:
        images = jax.random.uniform(jax.random.key(1), (2, *size, 3))
        level = jax.random.uniform(jax.random.key(2), (2, *size, 1))
        np.testing.assert_allclose(
            program.call(images, level), small(params, images, level), atol=1e-5
        )
        np.testing.assert_allclose(blind.call(images), small(params, images), atol=1e-5)


def test_is_saved_and_loaded(tmp_path, params):
    pretrained.save("photo", SMALL, params, {}, tmp_path)
    model, loaded = pretrained.load("photo", tmp_path)
    assert model == SMALL
    images = jax.random.uniform(jax.random.key(1), (1, 9, 9, 3))
    out = jax.jit(model.apply)({"params": loaded}, images, 0.2)
    np.testing.assert_array_equal(out, small(params, images, 0.2))
    assert pretrained.card("photo", tmp_path)["architecture"] == "photo"


def test_learns_to_denoise():
    """A few steps bring it well below its input's error, at every layer's own gradient."""
    import optax

    model = build("photo", channels=1, features=(8, 8), blocks=1)
    clean = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))
    clean = jnp.repeat(jnp.repeat(clean, 8, 1), 8, 2)  # squares
    params = model.init(jax.random.key(1), clean)["params"]
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(carry, key):
        params, state = carry
        noisy = clean + 0.2 * jax.random.normal(key, clean.shape)

        def loss(params):
            apply = partial(model.apply, {"params": params})
            example = Example(noisy, clean, sigma=jnp.full(8, 0.2))
            return restoration_loss(apply, example, mean_squared_error, True).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), (value, gradient)

    keys = jax.random.split(jax.random.key(2), 100)
    carry, losses = (params, state), []
    for key in keys:
        carry, (value, gradient) = step(carry, key)
        losses.append(float(value))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))
    assert np.mean(losses[-5:]) < 0.25 * 0.2**2
    noisy = clean + 0.2 * jax.random.normal(jax.random.key(9), clean.shape)
    level = model.apply({"params": carry[0]}, noisy, method="noise_level")
    assert abs(level.mean() - 0.2) < 0.03


@pytest.mark.parametrize("rectify", [False, True])
def test_layers_without_a_bias(rectify):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    for layer, with_bias in (
        (make(use_bias=False), make())
        for make in (
            lambda **options: Conv(3, 4, **options),
            lambda **options: ConvTranspose(3, 4, stride=2, **options),
            lambda **options: Dense(60, 4, **options),
        )
    ):
        kernel = layer.init(jax.random.key(1), x)["params"]
        assert set(kernel) == {"kernel"}
        zero = {**kernel, "bias": jnp.zeros(4)}
        out, expected = (
            jax.jit(m.apply, static_argnums=2)({"params": p}, x, rectify)
            for m, p in ((layer, kernel), (with_bias, zero))
        )
        np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_a_transposed_convolution_after_a_dense_layer(biases):
    class Both(nn.Module):
        def setup(self):
            self.dense = Dense(6, 36, use_bias=biases[0])
            self.conv = ConvTranspose(4, 2, stride=2, use_bias=biases[1])

        def __call__(self, x, joined):
            if joined:
                return self.conv.after_dense(self.dense, x, (3, 3, 4))
            return self.conv(self.dense(x).reshape(-1, 3, 3, 4))

    x = jax.random.normal(jax.random.key(0), (40, 6))
    variables = Both().init(jax.random.key(1), x, False)
    joined, apart = (
        jax.jit(Both().apply, static_argnums=2)(variables, x, b) for b in (True, False)
    )
    np.testing.assert_allclose(joined, apart, atol=1e-5)


@pytest.mark.parametrize(
    ("features", "blocks", "level"),
    [((3,), 1, ()), ((2, 3), 1, ()), ((2, 2, 3), 2, ()), ((2, 3), 1, (2,)), ((2,), 1, (2, 2, 2))],
)
def test_reaches_as_far_as_it_says(features, blocks, level):
    """A changed pixel changes outputs up to the reach, and none beyond."""
    model = PhotoDenoiser(features=features, blocks=blocks, level_features=level)
    reach, stride = model.reach, model.stride
    side = 2 * (reach + stride) + stride
    params = jax.tree.map(jnp.abs, random_params(model))  # no two influences cancel
    images = jnp.ones((1, side, side, 1))
    changes = jnp.zeros((stride, side, side, 1))
    middle, sigma = reach + stride, None if level else 0.5
    for i in range(stride):  # every place within a stride
        changes = changes.at[i, middle + i, middle + i].set(1)
    images = jnp.broadcast_to(images, changes.shape)

    @jax.jit
    def derivative(images, changes):  # a difference would lose the small ones to rounding
        return jax.jvp(lambda x: model.apply({"params": params}, x, sigma), (images,), (changes,))[
            1
        ]

    farthest = 0
    for i, change in enumerate(np.asarray(derivative(images, changes))[..., 0] != 0):
        for axis in (0, 1):
            lines = np.flatnonzero(change.any(1 - axis))
            farthest = max(farthest, *np.abs(lines - (middle + i)))
    assert farthest == reach


def test_the_reach_of_the_network_at_its_defaults():
    assert PhotoDenoiser(level_features=()).reach == 91 and PhotoDenoiser().stride == 8
    assert DenoisingAutoencoder().reach is None and DenoisingAutoencoder().stride == 1


@pytest.mark.parametrize("size", [(90, 131), (64, 200), (127, 64), (1, 300), (300, 1), (7, 9)])
@pytest.mark.parametrize("level", [(), (3, 3)])
def test_windows_give_the_result_of_the_whole_image(size, level):
    model = PhotoDenoiser(channels=3, features=(4, 4), blocks=1, level_features=level)
    params = random_params(model)
    sigma = None if level else 0.3
    apply = jax.jit(lambda x: model.apply({"params": params}, x, sigma))
    images = np.random.default_rng(0).random((2, *size, 3), np.float32)
    whole = np.asarray(apply(images))
    assert np.abs(whole - images).mean() > 0.02
    found = tiling.windows(size, model.reach, model.stride, 60 * 70)
    if not level:  # whose estimate reaches farther
        assert (len(found) > 1) == (size[0] * size[1] > 60 * 70)
    restored = np.full_like(images, np.nan)
    for read, kept, inside in found:
        restored[:, *kept] = np.asarray(apply(images[:, *read]))[:, *inside]
    np.testing.assert_allclose(restored, whole, atol=1e-5)
