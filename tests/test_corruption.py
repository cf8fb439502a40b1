"""The corruptions: their distributions against theory, and their independence of the batch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdae.corruption import (
    Corruption,
    compose,
    compressed,
    gaussian,
    grayscale,
    identity,
    masking,
    one_of,
    photo,
    poisson,
    salt_and_pepper,
    speckle,
)
from jaxdae.errors import InputError

CORRUPTIONS = {
    "identity": identity(),
    "grayscale": grayscale(),
    "gaussian": gaussian(0.5),
    "gaussian_range": gaussian((0.02, 0.1), mean=0),
    "masking": masking(0.25),
    "masking_range": masking((0.1, 0.9)),
    "salt_and_pepper": salt_and_pepper(0.3),
    "speckle": speckle(0.4),
    "poisson": poisson(20.0),
    "compose": compose(gaussian(0.05, mean=0), gaussian(0.05, mean=0), masking(0.5), masking(0.5)),
}
RANDOM = [name for name in CORRUPTIONS if name not in ("identity", "grayscale")]
SHAPE = (16, 13, 11, 3)
POSITIONS = np.arange(16)
# Image i is i / 15 everywhere: sixteen distributions at once.
LEVELS = np.broadcast_to((POSITIONS / 15).astype(np.float32)[:, None, None, None], SHAPE)
GRAY = np.full(SHAPE, 0.5, np.float32)
PICTURES = np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32)


def all_of_them(key, images, positions):
    return {name: corrupt(key, images, positions) for name, corrupt in CORRUPTIONS.items()}


# One program for all: the draws they share are compiled once.
corrupt_all = jax.jit(all_of_them)
blind = jax.jit(CORRUPTIONS["gaussian_range"])


@functools.cache
def draws(which, count=50):
    """Every corruption of LEVELS or GRAY under `count` keys: (count, *SHAPE), float64."""
    images = {"levels": LEVELS, "gray": GRAY}[which]
    runs = [
        jax.device_get(corrupt_all(jax.random.key(seed), images, POSITIONS))
        for seed in range(count)
    ]
    return {name: np.stack([run[name] for run in runs]).astype(float) for name in CORRUPTIONS}


@functools.cache
def pictures(seed):
    return jax.device_get(corrupt_all(jax.random.key(seed), PICTURES, POSITIONS))


def assert_moments(sample, mean, variance, deviations=5):
    """The sample's mean and variance, each within so many of its standard errors."""
    sample = sample.ravel()
    spread = np.square(sample - mean)
    count = np.sqrt(sample.size)
    # Half a unit in the last place of float32 is what a sample without noise may be off.
    assert abs(sample.mean() - mean) < deviations * math.sqrt(variance) / count + 6e-8
    assert abs(spread.mean() - variance) < deviations * spread.std() / count + 1e-12


def assert_rate(happened, p, deviations=5):
    assert abs(happened.mean() - p) < deviations * math.sqrt(p * (1 - p) / happened.size)


def clipped_normal(mean, sigma):
    """The exact mean and variance of clip(N(mean, sigma^2), 0, 1)."""
    if sigma == 0:
        return min(max(mean, 0), 1), 0.0
    low, high = -mean / sigma, (1 - mean) / sigma

    def cdf(z):
        return math.erfc(-z / math.sqrt(2)) / 2

    def pdf(z):
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    inside, above = cdf(high) - cdf(low), cdf(-high)
    first = mean * inside + sigma * (pdf(low) - pdf(high)) + above
    second = (
        (mean**2 + sigma**2) * inside
        + 2 * mean * sigma * (pdf(low) - pdf(high))
        + sigma**2 * (low * pdf(low) - high * pdf(high))
        + above
    )
    return first, second - first**2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_keeps_the_range_and_the_shape(name):
    shape = (*SHAPE[:-1], 1) if name == "grayscale" else SHAPE
    for images in (pictures(0)[name], draws("levels")[name][0]):
        assert images.shape == shape
        assert images.min() >= 0
        assert images.max() <= 1
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        out = jax.eval_shape(
            CORRUPTIONS[name], jax.random.key(0), jax.ShapeDtypeStruct((2, 5, 4, 3), dtype)
        )
        assert out.dtype == dtype


@pytest.mark.parametrize("name", RANDOM)
def test_noise_is_its_keys_and_positions(name):
    here = pictures(0)[name]
    again = jax.device_get(corrupt_all(jax.random.key(0), PICTURES, POSITIONS))[name]
    np.testing.assert_array_equal(here, again)
    assert all((a != b).any() for a, b in zip(here, pictures(1)[name], strict=True))
    # The same gray image at sixteen places: no two get the same noise.
    gray = draws("gray")[name][0]
    assert len(np.unique(gray.reshape(16, -1), axis=0)) == 16
    # Places given in another order: the noise follows them.
    order = np.random.default_rng(1).permutation(16)
    moved = corrupt_all(jax.random.key(0), PICTURES[order], POSITIONS[order])[name]
    np.testing.assert_array_equal(moved, here[order])


def test_without_chance():
    np.testing.assert_array_equal(pictures(0)["identity"], PICTURES)
    luma = PICTURES.astype(float) @ np.array([[0.299], [0.587], [0.114]])
    np.testing.assert_allclose(pictures(0)["grayscale"], luma, atol=1e-6)
    np.testing.assert_array_equal(pictures(0)["grayscale"], pictures(1)["grayscale"])
    assert grayscale().out_channels == 1


@pytest.mark.parametrize("level", [0, 3, 8, 15])
def test_gaussian_and_speckle_are_clipped_normals(level):
    x = level / 15
    assert_moments(draws("levels")["gaussian"][:, level], *clipped_normal(x + 0.5, 0.5))
    assert_moments(draws("levels")["speckle"][:, level], *clipped_normal(x, 0.4 * x))


def test_unclipped_noise_is_normal():
    """Around every gray level, at the level that it is said to have."""
    corrupt = gaussian((0.1, 0.5), mean=0, clip=False)
    images = np.broadcast_to(LEVELS[:, :1, :1, :], (16, 60, 70, 3))
    noise = np.asarray(jax.jit(corrupt)(jax.random.key(0), images, POSITIONS)) - images
    levels = np.asarray(corrupt.levels(jax.random.key(0), 16, POSITIONS))
    assert levels.min() > 0.1 and levels.max() < 0.5 and np.ptp(levels) > 0.1
    normal = noise / levels[:, None, None, None]
    assert abs(normal.mean()) < 0.02
    np.testing.assert_allclose(normal.std((1, 2, 3)), 1, atol=0.02)
    np.testing.assert_allclose((normal**4).mean(), 3, atol=0.1)
    assert (noise + images).min() < 0 and (noise + images).max() > 1
    assert masking(0.5).levels(jax.random.key(0), 16) is None
    assert gaussian(0.25).levels(jax.random.key(0), 3).tolist() == [0.25] * 3


def test_one_of_several():
    """Each equally often, each as if alone."""
    parts = [masking(1.0), identity(), speckle(0.0)]
    mixed = one_of(*parts, masking(1.0))
    images = np.broadcast_to(np.float32(0.5), (400, 4, 4, 1))
    lost = np.asarray(jax.jit(mixed)(jax.random.key(1), images)) == 0
    assert (lost.all((1, 2, 3)) | ~lost.any((1, 2, 3))).all()
    assert 0.42 < lost.mean() < 0.58
    mostly = one_of(*parts, shares=(6, 1, 1))
    lost = np.asarray(jax.jit(mostly)(jax.random.key(1), images)).mean((1, 2, 3)) == 0
    assert 0.68 < lost.mean() < 0.82
    for shares in ((1, 2), (0, 0, 0), (1, -1, 1), (1, math.inf, 1)):
        with pytest.raises(InputError, match="must be 3 numbers of at least 0, not all 0"):
            one_of(*parts, shares=shares)
    assert str(one_of(identity(), masking(0.5))) == "one_of(identity(), masking(p=0.5))"


def test_photographs_suffer_from_all_of_it():
    """Some images from noise that leaves [0, 1], most from 8 bits; at most a fifth little."""
    images = np.random.default_rng(0).uniform(0.2, 0.8, (64, 4, 4, 3)).astype(np.float32)
    images = images.repeat(8, 1).repeat(8, 2)
    noisy = np.asarray(jax.jit(photo())(jax.random.key(1), images))
    assert photo().levels(jax.random.key(1), 64) is None
    whole = np.abs(noisy * 255 - np.rint(noisy * 255)).max((1, 2, 3)) < 1e-3
    assert 0.6 < whole.mean() < 0.9
    deviation = (noisy - images).std((1, 2, 3))
    assert (deviation < 0.01).mean() < 0.25 and deviation.max() < 0.3
    assert len({round(float(d), 6) for d in deviation}) == 64


def test_compressed_noise():
    images = np.full((4, 32, 32, 3), 0.5, np.float32)
    plain, noisy = (
        np.asarray(jax.jit(compressed(sigma))(jax.random.key(0), images)) for sigma in (0.0, 0.1)
    )
    np.testing.assert_allclose(plain, images, atol=1 / 255)
    assert (np.abs(noisy * 255 - np.rint(noisy * 255)) < 1e-3).all()
    assert 0.02 < noisy.std() < 0.12


def test_noise_is_not_shared_by_pixels_or_channels():
    noise = draws("gray")["gaussian_range"] - 0.5
    noise /= noise.std(axis=(2, 3, 4), keepdims=True)
    across = [noise[..., 0] * noise[..., 1], noise[:, :, 1:] * noise[:, :, :-1]]
    across += [noise[:, :, :, 1:] * noise[:, :, :, :-1], noise[:, 1:] * noise[:, :-1]]
    for product in across:
        assert abs(product.mean()) < 5 / math.sqrt(product.size)


@pytest.mark.parametrize("level", [0, 4, 7, 12, 15])
def test_poisson_is_shot_noise(level):
    x, peak, sample = level / 15, 20, draws("levels")["poisson"][:, level]
    rate = peak * x
    photons = np.round(sample * peak)
    np.testing.assert_allclose(sample * peak, photons, atol=1e-4)
    share = [math.exp(-rate) * rate**n / math.factorial(n) for n in range(peak)]
    values = np.array([*range(peak), peak]) / peak
    share = np.array([*share, 1 - sum(share)])
    mean = share @ values
    assert_moments(sample, mean, share @ (values - mean) ** 2)
    if level == 7:  # clipping is rare there: the textbook's mean x and variance x / peak
        np.testing.assert_allclose([sample.mean(), sample.var()], [x, x / peak], rtol=0.03)


def test_masking_and_salt_and_pepper_rates():
    for name, p in (("masking", 0.25), ("salt_and_pepper", 0.3)):
        sample = draws("gray")[name]
        changed = sample != 0.5
        # A pixel is lost with all its channels.
        assert (changed.all(axis=-1) == changed.any(axis=-1)).all()
        assert_rate(changed[..., 0], p)
        if name == "masking":
            assert (sample[changed] == 0).all()
        else:
            assert set(sample[changed]) == {0, 1}
            assert_rate(sample[..., 0] == 1, p / 2)
    picture, masked = PICTURES, pictures(0)["masking"]
    np.testing.assert_array_equal(masked, np.where(masked == 0, 0, picture))


@pytest.mark.parametrize(("p", "rate"), [(0.0, 0), (1.0, 1)])
def test_certainty(p, rate):
    """Strengths at the ends of their range are legal, and exact."""
    key, images = jax.random.key(0), jnp.asarray(GRAY)
    assert (masking(p)(key, images) == 0).mean() == rate
    assert (salt_and_pepper(p)(key, images) != 0.5).mean() == rate


@pytest.mark.parametrize(
    ("name", "low", "high"), [("gaussian_range", 0.02, 0.1), ("masking_range", 0.1, 0.9)]
)
def test_a_range_is_drawn_for_each_image(name, low, high):
    sample = draws("gray")[name]
    if name == "masking_range":
        strengths = (sample[..., 0] == 0).mean(axis=(2, 3))
    else:
        np.testing.assert_allclose(sample.mean(), 0.5, atol=1e-3)
        strengths = sample.std(axis=(2, 3, 4))
    # In every batch they spread over the range ...
    assert (np.ptp(strengths, axis=1) > 0.4 * (high - low)).all()
    # ... over all of them uniformly (Kolmogorov and Smirnov, at 1%) ...
    # An estimate may lie a little outside.
    drawn = np.sort(np.clip((strengths.ravel() - low) / (high - low), 0, 1))
    distance = np.abs(drawn - (np.arange(drawn.size) + 0.5) / drawn.size).max()
    assert distance < 1.63 / math.sqrt(drawn.size)
    # ... and the strength says nothing of the noise that it scales.
    if name == "gaussian_range":
        first = sample[:, :, 0, 0, 0].ravel() < 0.5
        assert abs(np.corrcoef(first, strengths.ravel())[0, 1]) < 5 / math.sqrt(first.size)


@pytest.mark.parametrize("make", [gaussian, masking, salt_and_pepper, speckle, poisson])
def test_every_strength_may_be_a_range_or_an_array(make):
    images = jax.ShapeDtypeStruct((2, 5, 4, 3), jnp.float32)
    key = jax.random.key(0)
    assert jax.eval_shape(make((0.1, 0.9)), key, images) == images
    traced = jax.eval_shape(lambda s, k, x: make(s)(k, x), jnp.float32(0.5), key, images)
    assert traced == images


def test_a_traced_strength_compiles_once():
    traces = []

    @jax.jit
    def corrupt(sigma, key, images):
        traces.append(sigma)
        return gaussian(sigma)(key, images)

    key = jax.random.key(0)
    half, none = (corrupt(jnp.float32(s), key, PICTURES) for s in (0.5, 0.0))
    np.testing.assert_array_equal(half, pictures(0)["gaussian"])
    np.testing.assert_array_equal(none, np.minimum(PICTURES + 0.5, 1))
    assert len(traces) == 1


@pytest.fixture(scope="module")
def shared_by_eight():
    """PICTURES corrupted on eight devices, two images each."""
    pmapped = jax.pmap(all_of_them, in_axes=(None, 0, 0))
    shared = pmapped(jax.random.key(0), PICTURES.reshape(8, 2, *SHAPE[1:]), POSITIONS.reshape(8, 2))
    return {name: out.reshape(16, *out.shape[2:]) for name, out in jax.device_get(shared).items()}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_devices_that_share_a_batch_corrupt_it_as_one_would(name, shared_by_eight):
    np.testing.assert_array_equal(shared_by_eight[name], pictures(0)[name])


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_batch_in_parts_is_the_batch(parts):
    """Vector and remainder loops must round alike: 286 values an image fill no whole vectors."""
    key = jax.random.key(0)
    images, places = np.split(PICTURES[..., :2], parts), np.split(POSITIONS, parts)
    pieces = [blind(key, *part) for part in zip(images, places, strict=True)]
    whole = blind(key, PICTURES[..., :2], POSITIONS)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_eager_is_jitted():
    """Bit for bit where nothing is rounded; elsewhere XLA may fuse a product into its sum."""
    key = jax.random.key(0)
    for name in ("masking", "salt_and_pepper", "gaussian"):
        eager = CORRUPTIONS[name](key, jnp.asarray(PICTURES))
        tolerance = 2.5e-7 if name == "gaussian" else 0
        np.testing.assert_allclose(eager, pictures(0)[name], rtol=0, atol=tolerance)


def test_compose_applies_in_order():
    add = Corruption("add", lambda key, image: image + 0.25)
    double = Corruption("double", lambda key, image: image * 2)
    key, images = jax.random.key(0), jnp.full((2, 3, 4, 1), 0.125)
    np.testing.assert_array_equal(compose(add, double)(key, images), images * 6)
    np.testing.assert_array_equal(compose(double, add)(key, images), images * 4)
    np.testing.assert_array_equal(compose()(key, images), images)
    assert repr(compose(add, compose(double, identity()))) == (
        "compose(add, compose(double, identity()))"
    )


def test_compose_draws_each_part_afresh():
    """Two noises of 0.05, then two masks of a half: one key would give 0.1 and a half."""
    sample = draws("gray")["compose"]
    lost = sample == 0
    assert (lost.all(axis=-1) == lost.any(axis=-1)).all()
    assert_rate(lost[..., 0], 0.75)
    assert_moments(sample[~lost], *clipped_normal(0.5, 0.05 * math.sqrt(2)))


def test_compose_knows_its_channels():
    noisy_gray = compose(grayscale(), masking(0.5))
    images = jax.ShapeDtypeStruct((2, 5, 4, 3), jnp.float32)
    assert noisy_gray.out_channels == 1
    assert jax.eval_shape(noisy_gray, jax.random.key(0), images).shape == (2, 5, 4, 1)
    assert compose(masking(0.5), gaussian(0.1)).out_channels is None


def test_ones_own_corruption():
    """It sees one image and that image's key, and its name is what is shown."""

    def shift(key, image):
        assert image.shape == (3, 4, 1)
        return image + jax.random.uniform(key)

    own, key, images = Corruption("shift()", shift), jax.random.key(5), np.zeros((4, 3, 4, 1))
    out = own(key, images, np.array([7, 8, 9, 7]))
    expected = [jax.random.uniform(jax.random.fold_in(key, i)) for i in (7, 8, 9, 7)]
    np.testing.assert_array_equal(out[:, 0, 0, 0], expected)
    assert repr(own) == "shift()"


@pytest.mark.parametrize(
    ("make", "strength", "rule"),
    [
        *[
            (make, strength, r"sigma={} must be a finite number at least 0,")
            for make in (gaussian, speckle)
            for strength in (-1, math.nan, math.inf, (0.5, 0.1), (0.1, math.inf), (-0.1, 0.5))
        ],
        *[
            (make, strength, r"p={} must be a finite number at least 0 and at most 1,")
            for make in (masking, salt_and_pepper)
            for strength in (-0.1, 1.1, math.nan, (0.9, 0.1), (0.5, 1.1))
        ],
        *[
            (poisson, strength, r"peak={} must be a finite number above 0 and at most 1e\+06,")
            for strength in (0, -1, 1e7, math.nan, (0, 10), (10, 5))
        ],
        *[
            (gaussian, strength, r"sigma={} must be a finite number .* or two in order")
            for strength in ((0.1, 0.2, 0.3), (0.1,), (), [0.1, 0.2], "0.5", None)
        ],
    ],
)
def test_refuses_strengths_that_mean_nothing(make, strength, rule):
    shown = "".join("\\" + c if c in "()[]." else c for c in str(strength))
    with pytest.raises(InputError, match=rule.replace("{}", shown)):
        make(strength)


def test_refuses_other_nonsense():
    with pytest.raises(InputError, match=r"mean=nan must be a finite number"):
        gaussian(0.5, mean=math.nan)
    with pytest.raises(InputError, match=r"RGB images, and these have 1 channels: choose"):
        grayscale()(jax.random.key(0), np.zeros((2, 4, 4, 1), np.float32))
