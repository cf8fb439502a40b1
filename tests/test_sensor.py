"""What a camera does to light: each part against its closed form, and JPEG against Pillow."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from jaxdae import camera, jpeg
from jaxdae.config import Config
from jaxdae.corruption import CORRUPTIONS, sensor
from jaxdae.errors import InputError
from jaxdae.from_config import make_corruption

PHASES = [(0, 0), (0, 1), (1, 0), (1, 1)]
ONE = camera.Camera(
    jnp.float32(0.004), jnp.float32(0.01), jnp.array([2.0, 1, 1.6]), jnp.array([0, 1])
)
SHAPE = (16, 21, 18, 3)
PICTURES = np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32)
corrupt = jax.jit(sensor())


def smooth(shape, seed=0):
    """A picture with the spectrum of photographs, 1 / f, in [0, 1]."""
    waves = np.random.default_rng(seed).normal(size=shape) + 0j
    y, x = (np.fft.fftfreq(side)[:, None] for side in shape[:2])
    waves = np.fft.fft2(waves, axes=(0, 1)) / (np.hypot(y, x.T)[..., None] + 0.01)
    image = np.fft.ifft2(waves, axes=(0, 1)).real
    image = (image - image.min()) / (image.max() - image.min())
    return image.astype(np.float32)


def psnr(a, b):
    return -10 * np.log10(np.mean(np.square(np.asarray(a, float) - b)) + 1e-12)


def test_gamma_there_and_back():
    values = jnp.linspace(0, 1, 256)
    light = camera.to_linear(values)
    np.testing.assert_allclose(camera.to_display(light), values, atol=1e-6)
    assert (np.diff(light) > 0).all()
    # IEC 61966-2-1: 18% gray is displayed as 118 of 255.
    assert round(255 * float(camera.to_display(jnp.float32(0.18)))) == 118
    np.testing.assert_allclose(camera.to_display(jnp.array([-0.1, 1.2])), [0, 1], atol=1e-6)


@pytest.mark.parametrize("signal", [0.0, 0.05, 0.5, 1.0])
def test_noise_is_poisson_gaussian(signal):
    drawn = np.asarray(camera.noise(jax.random.key(0), jnp.full((500, 400), signal), 0.004, 0.01))
    variance = 0.004 * signal + 0.01**2
    assert abs(drawn.mean()) < 5 * np.sqrt(variance / drawn.size)
    np.testing.assert_allclose(drawn.var(), variance, rtol=5 * np.sqrt(2 / drawn.size))


def test_cameras_lie_in_the_ranges_of_the_paper():
    cameras = jax.jit(jax.vmap(camera.draw_camera))(jax.random.split(jax.random.key(0), 4000))
    gain, read, balance, phase, smoothing = map(np.asarray, cameras)
    assert 1e-4 <= gain.min() < 1.05e-4 and 0.0115 < gain.max() <= 0.012
    np.testing.assert_allclose(np.log(gain).mean(), np.log([1e-4, 0.012]).mean(), atol=0.1)
    rest = np.log(read**2) - 2.18 * np.log(gain) - 1.2
    assert abs(rest.mean()) < 0.03 and abs(rest.std() - 0.26) < 0.02
    assert abs(np.corrcoef(rest, np.log(gain))[0, 1]) < 0.1
    for channel, (low, high) in {0: (1.9, 2.4), 1: (1, 1), 2: (1.5, 1.9)}.items():
        assert low <= balance[:, channel].min() <= balance[:, channel].max() <= high
        assert np.ptp(balance[:, channel]) >= 0.98 * (high - low)
    counts = np.unique(phase, axis=0, return_counts=True)[1]
    assert len(counts) == 4 and (abs(counts - 1000) < 5 * np.sqrt(750)).all()
    assert 0 <= smoothing.min() < 0.01 and 1.49 < smoothing.max() <= 1.5


@pytest.mark.parametrize("deviation", [0.3, 1.0, 1.5])
def test_smoothing_is_a_gaussian(deviation):
    image = np.random.default_rng(0).random((20, 31, 3)).astype(np.float32)
    found = jax.jit(camera.smooth)(image, deviation)
    expected = scipy.ndimage.gaussian_filter(
        image.astype(float), (deviation, deviation, 0), mode="nearest", radius=(4, 4, 0)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(camera.smooth)(image, 0.0), image)


def test_smoothed_noise_is_correlated():
    """Of white noise, by exp(-d^2 / (4 s^2)) at a distance d; its variance falls to that sum."""
    gray = np.full((300, 300, 1), 0.5, np.float32)
    plain, coarse = (
        np.asarray(camera.to_linear(camera.shoot(jax.random.key(1), gray, a)))
        for a in (camera.Camera(1e-3, 1e-3, np.ones(3), np.zeros(2, int), s) for s in (0.0, 1.2))
    )
    noise = coarse - coarse.mean()
    for distance in (1, 2, 3):
        found = (noise[distance:] * noise[:-distance]).mean() / noise.var()
        assert abs(found - np.exp(-(distance**2) / (4 * 1.2**2))) < 0.03
    assert abs(noise.var() / plain.var() - 1 / (4 * np.pi * 1.2**2)) < 0.01


@pytest.mark.parametrize("phase", PHASES)
def test_the_colour_filter(phase):
    mask = np.asarray(camera.bayer((6, 8), jnp.array(phase)))
    np.testing.assert_array_equal(mask.sum(-1), 1)
    np.testing.assert_array_equal(mask.sum((0, 1)), [12, 24, 12])
    row, column = phase
    assert mask[row, column, 0] and mask[1 - row, 1 - column, 2]
    image = jax.random.uniform(jax.random.key(0), (6, 8, 3))
    measured = np.asarray(camera.mosaic(image, jnp.array(phase)))
    np.testing.assert_array_equal(measured[row::2, column::2], image[row::2, column::2, 0])
    np.testing.assert_array_equal(
        measured[row::2, 1 - column :: 2], image[row::2, 1 - column :: 2, 1]
    )


@pytest.mark.parametrize("phase", PHASES)
def test_bilinear_interpolation_is_exact_on_planes(phase):
    """Inside, of a plane in each colour; at the border too, of a constant."""
    y, x = np.mgrid[:8, :9]
    planes = np.stack([y + 2 * x, 3 * y - x, 5 - y + x], -1).astype(np.float32)
    phase = jnp.array(phase)
    found = camera.demosaic(camera.mosaic(planes, phase), phase)
    np.testing.assert_allclose(found[1:-1, 1:-1], planes[1:-1, 1:-1], atol=1e-5)
    for size in [(8, 9), (2, 2), (3, 2)]:
        flat = jnp.broadcast_to(jnp.array([0.2, 0.5, 0.9]), (*size, 3))
        found = camera.demosaic(camera.mosaic(flat, phase), phase)
        np.testing.assert_allclose(found, flat, atol=1e-6)


def test_interpolation_correlates_the_noise():
    """White noise of variance 1 in the sensor: means over pixels that measure and that do not.

    Red lies at every second row and column. Along one axis, a value is measured or the mean of two:
    variances 1 and 1/2, covariance of neighbours 1/2. Both axes multiply. Green is measured at
    half of the pixels; elsewhere it is the mean of four.
    """
    grain = jax.random.normal(jax.random.key(0), (1000, 1000))
    out = np.asarray(camera.demosaic(grain, jnp.array([1, 0])))[2:-2, 2:-2]
    for channel, variance, along in [(0, 9 / 16, 3 / 8), (1, 5 / 8, 1 / 4), (2, 9 / 16, 3 / 8)]:
        plane = out[..., channel]
        np.testing.assert_allclose(plane.var(), variance, rtol=0.02)
        for a, b in ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])):
            np.testing.assert_allclose((a * b).mean(), along, rtol=0.03)
        np.testing.assert_allclose((plane[:, 3:] * plane[:, :-3]).mean(), 0, atol=0.01)
    assert abs((out[..., 0] * out[..., 2]).mean()) < 0.01  # colours apart


@pytest.mark.parametrize("blur", [False, True])
def test_a_photograph_is_unbiased_in_linear_light(blur):
    """A flat colour far from black and white: its mean, and its variance by channel."""
    light = np.array([0.3, 0.4, 0.25], np.float32)
    shown = jnp.broadcast_to(camera.to_display(jnp.asarray(light)), (400, 400, 3))
    shoot = jax.jit(camera.shoot, static_argnums=3)
    out = np.asarray(camera.to_linear(shoot(jax.random.key(0), shown, ONE, blur)), float)
    out = out[1:-1, 1:-1]
    balance = np.asarray(ONE.balance, float)
    variance = (0.004 * light / balance + 0.01**2) * balance**2 * [9 / 16, 5 / 8, 9 / 16]
    np.testing.assert_allclose(out.var((0, 1)), variance, rtol=0.04)
    # Neighbours agree, so that there are fewer independent values than pixels: 4 in red.
    error = np.abs(out.mean((0, 1)) - light)
    assert (error < 5 * np.sqrt(4 * variance / len(out) ** 2)).all()


def test_a_gray_photograph_has_white_noise():
    shown = jnp.full((300, 300, 1), camera.to_display(jnp.float32(0.4)))
    out = np.asarray(camera.to_linear(camera.shoot(jax.random.key(0), shown, ONE)), float)[..., 0]
    variance = 0.004 * 0.4 + 0.01**2
    np.testing.assert_allclose(out.var(), variance, rtol=0.03)
    assert abs(out.mean() - 0.4) < 5 * np.sqrt(variance / out.size)
    rest = out - 0.4
    assert abs((rest[1:] * rest[:-1]).mean()) < 5 * variance / 300


def test_without_noise_the_picture_is_left_as_it_is_or_blurred():
    still = ONE._replace(gain=jnp.zeros(()), read=jnp.zeros(()))
    image = jnp.asarray(smooth((32, 40, 3)))
    np.testing.assert_allclose(camera.shoot(jax.random.key(0), image, still), image, atol=1e-6)
    blurred = camera.shoot(jax.random.key(0), image, still, True)
    assert 20 < psnr(blurred, image) < 60


SAMPLING = {True: "4:2:0", False: "4:4:4"}
compress = jax.jit(jpeg.compress)


@pytest.mark.parametrize("subsample", [True, False])
@pytest.mark.parametrize("quality", [20, 75, 95])
@pytest.mark.parametrize("shape", [(64, 96, 3), (61, 83, 3), (33, 16, 3), (45, 50, 1)])
def test_jpeg_is_pillows(shape, quality, subsample):
    """libjpeg factors the DCT: here and there a coefficient is rounded to the next step."""
    if shape[2] == 1 and subsample:
        return
    image = np.round(smooth(shape) * 255) / 255
    file = io.BytesIO()
    pixels = np.round(image * 255).astype(np.uint8).squeeze()
    options = {"subsampling": SAMPLING[subsample]} if shape[2] == 3 else {}
    Image.fromarray(pixels).save(file, "jpeg", quality=quality, **options)
    theirs = np.asarray(Image.open(file), float).reshape(shape) / 255
    ours = compress(image, quality, subsample)
    loss = psnr(theirs, image)
    assert psnr(ours, theirs) > max(44, loss + 12)
    assert (abs(ours - theirs) < 2.5 / 255).mean() > 0.95
    np.testing.assert_allclose(psnr(ours, image), loss, atol=0.04)


@pytest.mark.parametrize("quality", [1, 20, 50, 75, 100])
def test_quantisation_tables_are_pillows(quality):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "jpeg", quality=quality)
    theirs = Image.open(file).quantization
    for i, base in enumerate((jpeg.LUMINANCE, jpeg.CHROMINANCE)):
        np.testing.assert_array_equal(jpeg.table(base, quality).ravel(), theirs[i])


def test_the_cosines_are_orthonormal():
    np.testing.assert_allclose(jpeg.DCT @ jpeg.DCT.T, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(jpeg.RGB @ jpeg.YCC, np.eye(3), atol=1e-4)
    with pytest.raises(InputError, match="gray and RGB images, and these have 2 channels"):
        jpeg.compress(jnp.zeros((8, 8, 2)), 90)


@pytest.mark.parametrize("shape", [(2, 9, 11, 3), (2, 8, 8, 1), (1, 1, 1, 3), (1, 3, 1, 3)])
def test_keeps_the_range_the_shape_and_the_type(shape):
    images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    out = np.asarray(corrupt(jax.random.key(0), images))
    assert out.shape == shape and 0 <= out.min() <= out.max() <= 1
    np.testing.assert_allclose(out * 255, np.round(out * 255), atol=1e-4)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        given = jax.ShapeDtypeStruct((2, 5, 4, 2), dtype)
        assert jax.eval_shape(sensor(), jax.random.key(0), given) == given


def test_noise_is_its_keys_and_positions():
    key, places = jax.random.key(3), np.arange(16)
    whole = np.asarray(corrupt(key, PICTURES, places))
    np.testing.assert_array_equal(corrupt(key, PICTURES, places), whole)
    other = corrupt(jax.random.key(4), PICTURES)
    assert all((a != b).any() for a, b in zip(whole, other, strict=True))
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_array_equal(corrupt(key, PICTURES[order], places[order]), whole[order])
    parts = [corrupt(key, PICTURES[i : i + 4], places[i : i + 4]) for i in range(0, 16, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    shared = jax.pmap(sensor(), in_axes=(None, 0, 0))(
        key, PICTURES.reshape(8, 2, *SHAPE[1:]), places.reshape(8, 2)
    )
    np.testing.assert_array_equal(np.reshape(shared, SHAPE), whole)


def test_a_share_of_images_is_compressed():
    """Compressed or not, the noise is the same."""
    flat = np.full((200, 16, 16, 3), 0.5, np.float32)
    key = jax.random.key(0)
    never, some, all_of_them = (
        np.asarray(jax.jit(sensor(share))(key, flat)) for share in (0, 0.25, 1)
    )
    plain = (some == never).all((1, 2, 3))
    assert abs(plain.mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / 200)
    np.testing.assert_array_equal(some[~plain], all_of_them[~plain])
    # Noise is of all strengths: from a level or two of 255 to a tenth of the range.
    deviation = never.std((1, 2, 3))
    assert deviation.min() < 0.015 and 0.05 < deviation.max() < 0.2


def test_a_configuration_names_it():
    assert CORRUPTIONS["sensor"].reads == ()
    assert repr(make_corruption(Config(corruption="sensor"))) == (
        "sensor(compressed=0.5, blur=False)"
    )
    with pytest.raises(InputError, match="compressed=2 must be a finite number"):
        sensor(2)
