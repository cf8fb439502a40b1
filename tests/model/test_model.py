"""The models against Keras's arrays, and their shapes at every size."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from jaxdae import kernels
from jaxdae.errors import InputError
from jaxdae.losses import LOSSES, takes_logits
from jaxdae.model import (
    ARCHITECTURES,
    Denoiser,
    DenoisingAutoencoder,
    DenseAutoencoder,
    MaxPoolAutoencoder,
    UNet,
    build,
    max_pool,
    parameter_count,
)
from jaxdae.model.base import reflect

DATA = Path(__file__).parents[1] / "files"
PUBLISHED = {
    "strided": (
        DenoisingAutoencoder(),
        "mse",
        "encoder/conv_0 encoder/conv_1 encoder/latent decoder/dense decoder/conv_transpose_0 "
        "decoder/conv_transpose_1 decoder/output",
        178_001,
    ),
    "maxpool_16_8_8": (
        MaxPoolAutoencoder(),
        "bce",
        "encoder/conv_0 encoder/conv_1 encoder/conv_2 decoder/conv_0 decoder/conv_1 "
        "decoder/conv_2 decoder/output",
        4_385,
    ),
    "maxpool_32_32": (
        MaxPoolAutoencoder(features=(32, 32), upsampling="transposed"),
        "bce",
        "encoder/conv_0 encoder/conv_1 decoder/conv_transpose_0 decoder/conv_transpose_1 "
        "decoder/output",
        28_353,
    ),
}


def from_keras(arrays, kind, layers):
    """Keras's arrays (`weight/` or `grad/`, in layer order) as a parameter tree."""
    tree = {"encoder": {}, "decoder": {}}
    for name in sorted(key for key in arrays.files if key.startswith(kind)):
        number, layer, leaf = name.removeprefix(kind + "/").split("_")
        value = arrays[name]
        if layer == "Conv2DTranspose" and leaf == "kernel":
            value = value[::-1, ::-1].swapaxes(2, 3)
        half, layer = layers[int(number) // 2].split("/")
        tree[half].setdefault(layer, {})[leaf] = value
    return tree


@pytest.mark.parametrize("name", PUBLISHED)
def test_computes_what_keras_computes(name):
    model, loss, layers, count = PUBLISHED[name]
    arrays = np.load(DATA / f"keras_parity_{name}.npz", allow_pickle=False)
    params = from_keras(arrays, "weight", layers.split())
    assert parameter_count(params) == count
    fresh = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(arrays["noisy"]))["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)

    # Eight images take the plain decoder; repeated to 40, the one with the joint dense layer.
    for repeats in (1, 5):
        noisy, clean, expected = (
            np.tile(arrays[key], (repeats, 1, 1, 1)) for key in ("noisy", "clean", "output")
        )

        @jax.jit
        def run(params, noisy=noisy, clean=clean):
            logits = model.apply({"params": params}, noisy, method="logits")
            outputs = model.activation(logits)
            given = logits if takes_logits(LOSSES[loss]) else outputs
            return LOSSES[loss](given, clean).mean(), outputs

        (value, outputs), gradient = jax.value_and_grad(run, has_aux=True)(params)
        np.testing.assert_allclose(outputs, expected, atol=1e-5, rtol=0)
        np.testing.assert_allclose(value, arrays["loss"], atol=1e-5, rtol=0)
        for path, ours in jax.tree.leaves_with_path(gradient):
            theirs = from_keras(arrays, "grad", layers.split())
            for key in path:
                theirs = theirs[key.key]
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            assert error < 1e-4, (jax.tree_util.keystr(path), error)


def test_a_large_batch_in_bfloat16_is_several_small_ones():
    """The joint dense layer, which there is without tiles, rounds elsewhere, and no more."""
    model, exact = build("strided", dtype=jnp.bfloat16), build("strided")
    images = jax.random.uniform(jax.random.key(0), (64, *model.example.shape[1:]))
    params = model.init(jax.random.key(1), images)["params"]
    joint, expected = (m.apply({"params": params}, images, method="logits") for m in (model, exact))
    plain = [model.apply({"params": params}, images[i::2], method="logits") for i in range(2)]
    rounding = np.linalg.norm(
        jnp.concatenate(plain) - jnp.concatenate([expected[::2], expected[1::2]])
    )
    assert 0 < np.linalg.norm(joint - expected) < 1.2 * rounding


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_depends_on_known_parameters_alone_is_computed_once(dtype):
    if not kernels.available() or kernels.uses_amx(dtype):
        pytest.skip("the layers are not joined for a small batch")
    model = build("strided", dtype=dtype)
    images = jax.random.uniform(jax.random.key(0), (8, *model.example.shape[1:]))
    variables = model.init(jax.random.key(1), images)

    def known(images):
        return model.apply(variables, images)

    def transposed(program):  # convolutions in a program, or in the branches that it may take
        return str(program).count("conv_data_grad")

    given = jax.make_jaxpr(model.apply)(variables, images)
    assert transposed(jax.make_jaxpr(known)(images)) == transposed(given) - 1
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(jax.jit(known)(images), expected, atol=8 * jnp.finfo(dtype).eps)
    gradient = jax.jit(jax.grad(lambda images: known(images).sum()))(images)
    assert jnp.isfinite(gradient).all() and jnp.any(gradient)
    many = jax.jit(jax.vmap(known))(jnp.stack([images, images]))
    np.testing.assert_allclose(many[1], expected, atol=8 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=8)
@given(st.integers(1, 37), st.integers(1, 37), st.integers(1, 3), st.integers(1, 4))
def test_any_size_and_channels(name, height, width, channels, out_channels):
    fixed = name in ("strided", "dense")
    size = {"image_size": (height, width)} if fixed else {}
    model = build(name, channels=channels, out_channels=out_channels, **size)
    images = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    out = jax.eval_shape(model.apply, params, images)
    assert out.shape == (2, height, width, out_channels)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize(
    "model",
    [
        DenoisingAutoencoder(image_size=(9, 14), channels=3, features=(4, 8, 5), latent_dim=3),
        DenoisingAutoencoder(image_size=(11, 7), channels=2, out_channels=1, kernel_size=(5, 4)),
        MaxPoolAutoencoder(image_size=(15, 17), channels=1, features=(3, 4)),
        MaxPoolAutoencoder(image_size=(28, 28), channels=1, features=(4, 3, 2)),
        DenseAutoencoder(image_size=(5, 6), channels=2, features=(7, 5), latent_dim=3),
    ],
)
def test_encode_then_decode_is_the_model(model):
    images = jax.random.uniform(jax.random.key(0), (9, *model.example.shape[1:]))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    assert set(variables["params"]) == {"encoder", "decoder"}
    assert {path[-1].key for path, _ in jax.tree.leaves_with_path(variables)} == {"kernel", "bias"}

    @jax.jit
    def both(images):
        latent = model.apply(variables, images, method="encode")
        return model.apply(variables, images), model.apply(variables, latent, method="decode")

    out, decoded = both(images)
    np.testing.assert_allclose(out, decoded, atol=1e-6)
    assert 0 <= out.min() <= out.max() <= 1
    # What an image becomes does not depend on its neighbours in the batch, nor on their number.
    np.testing.assert_allclose(out[8:], both(images[8:])[0], atol=1e-5)


def test_the_u_net_is_what_it_says():
    """Against the same network written out in `lax`'s own convolutions."""
    model = UNet(image_size=(10, 13), channels=2, out_channels=1, features=(3, 4, 5), bridge=6)
    images = jax.random.uniform(jax.random.key(0), (3, 10, 13, 2))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    params = jax.tree.map(lambda x: x + 0.1, params)  # biases other than zero

    def conv(name, x, stride=1, transposed=False):
        layer = params[name]["conv"] if "conv" in params[name] else params[name]
        dimensions = ("NHWC", "HWIO", "NHWC")
        function = jax.lax.conv_transpose if transposed else jax.lax.conv_general_dilated
        strides = (stride, stride)
        out = function(x, layer["kernel"], strides, "SAME", dimension_numbers=dimensions)
        return out + layer["bias"]

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    relu = jax.nn.relu

    @jax.jit
    def reference(images):
        full = conv("stem", jnp.pad(images, ((0, 0), (0, 2), (0, 3), (0, 0)), mode="reflect"))
        half = conv("down_0", relu(full), 2)
        half = half + conv("encode_0", relu(half))
        x = conv("down_1", relu(half), 2)
        x = x + conv("encode_1", relu(x))
        narrow = relu(conv("bridge_in", x))
        wide = dense("bridge_wide", relu(dense("bridge_hidden", narrow.reshape(3, -1))))
        x = x + conv("bridge_out", wide.reshape(narrow.shape))
        x = x + conv("decode_1", relu(x))
        x = conv("up_1", relu(x), 2, transposed=True) + half
        x = x + conv("decode_0", relu(x))
        x = conv("up_0", relu(x), 2, transposed=True) + full
        return conv("output", relu(conv("last", relu(x))))[:, :-2, :-3]

    out = jax.jit(lambda x: model.apply({"params": params}, x, method="logits"))(images)
    np.testing.assert_allclose(out, reference(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bridge", "reaches"), [(0, False), (5, True)])
def test_the_bridge_tells_every_pixel_of_the_whole_image(bridge, reaches):
    model = build("unet", image_size=(64, 64), channels=1, features=(2, 2, 2), bridge=bridge)
    images = jax.random.uniform(jax.random.key(0), (1, 64, 64, 1))
    variables = jax.jit(model.init)(jax.random.key(5), images)
    gradient = jax.jit(jax.grad(lambda x: model.apply(variables, x)[0, 63, 63, 0]))(images)
    assert bool(gradient[0, :8, :8].any()) == reaches


def test_the_u_net_stays_small():
    model = build("unet", bridge=384, image_size=(28, 28))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    assert parameter_count(params) == 923_673
    assert not hasattr(model, "encode")


ANY_SIZE = {
    "unet": UNet(bridge=0, features=(4, 6, 8)),
    "maxpool": MaxPoolAutoencoder(),
    "transposed": MaxPoolAutoencoder(features=(3, 4), upsampling="transposed"),
}


@pytest.fixture(scope="module", params=ANY_SIZE)
def any_size(request):
    """A network for images of any size, and one set of its parameters."""
    model = ANY_SIZE[request.param]
    return model, jax.jit(model.init)(jax.random.key(0), model.example)


@pytest.mark.parametrize("size", [(28, 28), (101, 133), (512, 768), (2, 3), (1, 1)])
def test_one_set_of_parameters_serves_all_sizes(any_size, size):
    """Jitted or not, one image or many, under vmap, and as it is without padding."""
    model, variables = any_size
    images = jax.random.uniform(jax.random.key(1), (2, *size, 1))
    out = jax.jit(model.apply)(variables, images)
    assert out.shape == images.shape and 0 <= out.min() <= out.max() <= 1
    one = jax.jit(model.apply)(variables, images[1:])
    np.testing.assert_allclose(one, out[1:], atol=1e-6)
    each = jax.jit(jax.vmap(lambda image: model.apply(variables, image[None])[0]))(images)
    np.testing.assert_allclose(each, out, atol=1e-6)
    if max(size) > 200:
        return
    sides = [model.padded_side(side) - side for side in size]
    mode = "symmetric" if size == (1, 1) else "reflect"
    padded = np.pad(images, ((0, 0), *((0, side) for side in sides), (0, 0)), mode=mode)
    whole = jax.jit(model.apply)(variables, padded)
    np.testing.assert_allclose(whole[:, : size[0], : size[1]], out, atol=1e-6)


def test_devices_share_images_of_any_size(any_size):
    model, variables = any_size
    images = jax.random.uniform(jax.random.key(1), (4, 2, 21, 10, 1))
    devices = jax.devices()[:4]
    shared = jax.pmap(model.apply, in_axes=(None, 0), devices=devices)(variables, images)
    alone = [jax.jit(model.apply)(variables, part) for part in images]
    np.testing.assert_allclose(shared, jnp.stack(alone), atol=1e-6)


def test_one_exported_program_serves_all_sizes(any_size):
    model, variables = any_size
    shape = export.symbolic_shape("batch, height, width, 1")
    argument = jax.ShapeDtypeStruct(shape, jnp.float32)
    with kernels.disabled():
        program = export.export(jax.jit(lambda x: model.apply(variables, x)))(argument)
    for size in [(28, 28), (101, 133), (5, 7)]:
        images = jax.random.uniform(jax.random.key(1), (2, *size, 1))
        expected = jax.jit(model.apply)(variables, images)
        np.testing.assert_allclose(program.call(images), expected, atol=1e-5)


def test_a_noise_level_and_a_linear_output():
    class Subtract(Denoiser):
        def forward(self, images, sigma=None):
            level = jnp.zeros(()) if sigma is None else sigma
            return images - jnp.reshape(level, (-1, 1, 1, 1))

    images = jax.random.normal(jax.random.key(0), (3, 5, 4, 2))
    model, levels = Subtract(channels=2, output="linear"), jnp.array([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(model.apply({}, images), images)
    out = model.apply({}, images, levels)
    np.testing.assert_allclose(out, images - levels[:, None, None, None])
    np.testing.assert_array_equal(model.apply({}, images, levels, method="logits"), out)
    for name in ("unet", "maxpool"):
        linear = build(name, output="linear", features=(2, 3))
        variables = linear.init(jax.random.key(0), linear.example)
        logits = linear.apply(variables, linear.example, method="logits")
        np.testing.assert_array_equal(linear.apply(variables, linear.example), logits)


@given(st.integers(1, 9), st.integers(0, 20))
def test_reflection_is_numpys(side, count):
    x = np.random.default_rng(0).random((2, side, 3, 1), np.float32)
    mode = "reflect" if side > 1 else "edge"
    expected = np.pad(x, ((0, 0), (0, count), (0, 0), (0, 0)), mode=mode)
    np.testing.assert_array_equal(reflect(jnp.asarray(x), 1, count), expected)
    np.testing.assert_array_equal(
        reflect(jnp.asarray(x.swapaxes(1, 2)), 2, count), expected.swapaxes(1, 2)
    )


def test_computes_in_bfloat16_near_float32():
    images = jax.random.uniform(jax.random.key(0), (32, 28, 28, 1))
    wide, narrow = DenoisingAutoencoder(), DenoisingAutoencoder(dtype=jnp.bfloat16)
    variables = jax.jit(wide.init)(jax.random.key(1), images)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    encode = jax.jit(lambda v, x: narrow.apply(v, x, method="encode"))
    assert encode(variables, images).dtype == jnp.bfloat16
    out = jax.jit(narrow.apply)(variables, images)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, jax.jit(wide.apply)(variables, images), atol=0.02)


def test_bfloat16_gradients_are_those_of_float32_to_rounding():
    """Sums over the batch, for the biases as for the kernels, are taken in float32."""
    images = jax.random.uniform(jax.random.key(0), (64, 28, 28, 1))
    wide, narrow = DenoisingAutoencoder(), DenoisingAutoencoder(dtype=jnp.bfloat16)
    params = jax.jit(wide.init)(jax.random.key(1), images)["params"]

    def gradient(model):
        def loss(params):
            return ((model.apply({"params": params}, images, method="logits") - images) ** 2).sum()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    for exact, rounded in zip(gradient(wide), gradient(narrow), strict=True):
        assert rounded.dtype == jnp.float32
        assert jnp.linalg.norm(rounded - exact) < 0.05 * jnp.linalg.norm(exact)


def test_initialises_as_keras_does():
    images = jnp.zeros((1, 28, 28, 1))
    params = jax.jit(DenoisingAutoencoder().init)(jax.random.key(0), images)["params"]
    kernel = params["decoder"]["conv_transpose_1"]["kernel"]
    limit = np.sqrt(6 / (9 * (64 + 32)))
    assert 0.99 * limit < jnp.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)
    assert not any(
        leaf.any() for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "bias"
    )


def test_max_pool_rounds_up_and_gives_ties_to_the_first():
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 5, 7, 3)))
    reference = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    np.testing.assert_array_equal(max_pool(x), reference)
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient.ravel(), [1, 0, 0, 0])
    assert jnp.isnan(max_pool(jnp.array([0.0, jnp.nan, 2, 1]).reshape(1, 2, 2, 1))).all()


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("vae", {}, "strided"),
        ("strided", {"depth": 3}, "features"),
        ("strided", {"latent_dim": 0}, "positive"),
        ("unet", {"bridge": -1}, "positive"),
        ("strided", {"features": ()}, "positive"),
        ("maxpool", {"upsampling": "cubic"}, "nearest"),
        ("unet", {"output": "tanh"}, "sigmoid or linear"),
    ],
)
def test_refuses_what_it_cannot_build(name, fields, words):
    with pytest.raises(InputError, match=words):
        build(name, **fields)


def test_refuses_images_of_another_shape():
    for model, shape, takes in [
        (DenoisingAutoencoder(), (1, 32, 32, 3), r"\(batch, 28, 28, 1\)"),
        (UNet(channels=2), (1, 32, 32, 3), r"\(batch, height, width, 2\)"),
        (UNet(), (28, 28, 1), r"\(batch, height, width, 1\)"),
    ]:
        with pytest.raises(InputError, match=takes):
            model.init(jax.random.key(0), jnp.zeros(shape))


def test_dense_layers_need_an_image_size():
    images = jnp.zeros((1, 28, 28, 1))
    for model in (DenoisingAutoencoder(image_size=None), UNet(bridge=8)):
        with pytest.raises(InputError, match="image_size"):
            model.init(jax.random.key(0), images)


def test_importing_the_model_imports_little_else():
    """Nothing beyond jax, flax and jaxtyping: no TensorFlow, no data set library, no plots."""
    heavy = "tensorflow tensorflow_datasets matplotlib orbax.checkpoint PIL tyro rich"
    code = (
        "import sys, jax, flax.linen; before = set(sys.modules); import jaxdae.model; "
        f"new = set(sys.modules) - before; print(sorted(new & set({heavy.split()!r})))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
