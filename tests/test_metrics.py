"""The metrics against scikit-image's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from jaxdae.metrics import mse, of_image, psnr, ssim

# The last ones are smaller than the window of 7.
SHAPES = [(28, 28, 1), (17, 12, 3), (7, 9, 2), (6, 5, 3), (3, 20, 1)]


@jax.jit
def ours(output, clean):
    return mse(output, clean), psnr(output, clean), ssim(output, clean)


def pairs(shape):
    """Pairs of images that differ in kind: (output, clean), each (kinds, *shape) in float32."""
    rng = np.random.default_rng(0)
    y, x, c = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    noise = rng.uniform(size=(2, *shape))
    smooth = [0.5 + 0.5 * np.sin(3 * x + c + i) * np.cos(2 * y) for i in range(2)]
    digit = np.where((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.1, 0.97, 0.03)
    faint = 1e-3 * rng.normal(size=shape)
    flat = np.ones(shape)
    kinds = [
        (noise[0], noise[1]),
        (smooth[0], smooth[1]),
        (1 - smooth[0], smooth[0]),
        (noise[0], smooth[0]),
        (noise[0] + faint, noise[0]),
        (smooth[0] + faint, smooth[0]),
        (digit + faint, digit),
        (digit, digit.mean() * flat),
        (0.97 * flat + faint, 0.97 * flat),
        (0.9 * flat, 0.95 * flat),
        (0.03 * flat, 0.02 * flat),
        (0 * flat, flat),
        (noise[0], 0.03 * flat),
        (noise[0] + 1, noise[1] - 1),  # metrics do not clip
    ]
    return (np.stack(side).astype(np.float32) for side in zip(*kinds, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_scikit_image(shape):
    output, clean = pairs(shape)
    window = min(7, *(side if side % 2 else side - 1 for side in shape[:2]))
    expected = [
        (
            np.square(a - b).mean(),
            peak_signal_noise_ratio(b, a, data_range=1),
            structural_similarity(a, b, data_range=1, channel_axis=-1, win_size=window),
        )
        for a, b in zip(output.astype(float), clean.astype(float), strict=True)
    ]
    got = dict(zip(("mse", "psnr", "ssim"), ours(output, clean), strict=True))
    # PSNR in dB, so a relative error; SSIM to 1e-5 whatever its size.
    for (name, values), want in zip(got.items(), zip(*expected, strict=True), strict=True):
        assert values.shape == (len(output),)
        assert values.dtype == jnp.float32
        tolerance = {"rtol": 0, "atol": 1e-5} if name == "ssim" else {"rtol": 1e-5, "atol": 1e-9}
        np.testing.assert_allclose(values, want, err_msg=f"{name} {shape}", **tolerance)


def test_equal_images():
    images = np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    images[1], images[2] = 0.03, 0
    error, ratio, similarity = ours(images, images)
    np.testing.assert_array_equal(error, 0)
    np.testing.assert_array_equal(ratio, np.inf)
    np.testing.assert_allclose(similarity, 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 3)])
def test_ssim_of_images_that_hold_no_window_of_three(shape):
    """Windows of one pixel have no variance: what is left compares brightness."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 2, *shape)).astype(np.float32)
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    np.testing.assert_allclose(jax.jit(ssim)(a, b), expected.mean(axis=(1, 2, 3)), atol=1e-6)


def test_ssim_takes_another_window():
    a, b = np.random.default_rng(0).uniform(size=(2, 1, 15, 14, 1)).astype(np.float32)
    expected = structural_similarity(a[0], b[0], data_range=1, channel_axis=-1, win_size=11)
    wide = jax.jit(functools.partial(ssim, window=11))
    np.testing.assert_allclose(wide(a, b), [expected], atol=1e-5)


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 600, 3), (600, 9, 3), (5, 4, 1), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_of_one_image_they_are_the_same(shape, dtype):
    rng = np.random.default_rng(sum(shape))
    clean = rng.random(shape, np.float32)
    output = np.clip(clean + 0.1 * rng.standard_normal(shape, np.float32), 0, 1)
    if dtype != np.float32:
        clean, output = (np.rint(x * np.iinfo(dtype).max).astype(dtype) for x in (clean, output))
    found = of_image(output, clean)
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    a, b = (x[None].astype(np.float64) / top for x in (output, clean))
    expected = [float(value[0]) for value in ours(jnp.float32(a), jnp.float32(b))]
    assert list(found) == ["mse", "psnr", "ssim"]
    assert list(found.values()) == pytest.approx(expected, rel=1e-4)
    if min(shape[:2]) >= 7:
        window = structural_similarity(a[0], b[0], data_range=1, channel_axis=-1)
        assert found["ssim"] == pytest.approx(window, abs=1e-9)


def test_of_an_equal_image():
    image = np.random.default_rng(0).random((300, 20, 3))
    found = of_image(image, image)
    assert found == {"mse": 0, "psnr": np.inf, "ssim": pytest.approx(1, abs=1e-12)}
