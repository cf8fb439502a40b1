"""Corruptions: what is done to a clean image before the network sees it.

    corruption = gaussian(0.5)
    noisy = corruption(key, images)                       # one key for the batch
    noisy = corruption(key, images, positions)            # the images' places in the global batch
    noisy = compose(masking(0.25), gaussian(0.2))(key, images)

A corruption maps images in [0, 1], (batch, height, width, channels), to the network's input. Each
image has its own key, `fold_in(key, position)`; the position is its place in the batch unless
given. So an image's noise does not depend on the other images of the batch. Devices that share a
batch pass the positions that they hold, and compiled programs then give the same bits as on one
device. (Uncompiled programs round differently: XLA fuses a multiplication and an addition.)

Keys are threefry, JAX's default. With `rbg` keys the numbers would depend on how the batch is
divided.

A strength may be a pair, `gaussian((0.1, 1.0))`: it is then drawn uniformly from that range for
each image, which trains a blind denoiser. A strength may also be a JAX array, which may be traced,
so that one compiled program serves many strengths; its value is not checked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdae import camera as cameras
from jaxdae import jpeg, kernels
from jaxdae.errors import InputError
from jaxdae.image_io.pillow import LUMA
from jaxdae.random import fold_in, unrolled

Image = Float[Array, "height width channels"]
Images = Float[Array, "batch height width channels"]
Strength = float | Array | tuple[float, float]
QUALITIES = (70, 101)  # of JPEG


def example_keys(key: Key[Array, ""], positions: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """The key of each example: `key` folded with the example's position."""
    return jax.vmap(fold_in, (None, 0))(key, positions)


@dataclass(frozen=True)
class Corruption:
    """A corruption of single images, applied to a batch with a key for each image.

    Make your own with `Corruption("name", function)`. The function maps (key, image) to an image
    and can be traced by JAX.

    Fields:
      name: how it is shown.
      corrupt: (key, image) to image, (height, width, channels) in [0, 1].
      out_channels: the channels of the result, if it changes their number.
      level: the same key to the standard deviation of the noise, if it has one: what a network
        that takes a noise level is told in training.
    """

    name: str
    corrupt: Callable[[Key[Array, ""], Image], Image]
    out_channels: int | None = None
    level: Callable[[Key[Array, ""]], Float[Array, ""]] | None = None

    def __call__(
        self,
        key: Key[Array, ""],
        images: Images,
        positions: Int[Array, " batch"] | None = None,
    ) -> Images:
        """Corrupts clean images.

        Args:
          key: one key for the whole batch.
          images: clean images in [0, 1].
          positions: each image's place in the global batch; its place in `images` if not given.

        Returns:
          The network's input, in [0, 1], of the same dtype.
        """
        positions = jnp.arange(len(images)) if positions is None else positions
        return jax.vmap(self.corrupt)(example_keys(key, positions), images)

    def levels(
        self, key: Key[Array, ""], batch: int, positions: Int[Array, " batch"] | None = None
    ) -> Float[Array, " batch"] | None:
        """The noise level of each image that a call with the same key corrupts.

        Args:
          key, positions: as of a call.
          batch: the number of images.

        Returns:
          Standard deviations for images in [0, 1]; None if the corruption has no noise level.
        """
        if self.level is None:
            return None
        positions = jnp.arange(batch) if positions is None else positions
        return jax.vmap(self.level)(example_keys(key, positions))

    def __repr__(self) -> str:
        return self.name


def identity() -> Corruption:
    """No corruption: a plain autoencoder."""
    return Corruption("identity()", lambda key, image: image)


def gaussian(sigma: Strength, mean: float = 0.5, clip: bool = True) -> Corruption:
    """Adds N(mean, sigma^2) to every value, and clips to [0, 1] unless told not to.

    The tutorial of the strided network has mean 0.5; that of the max-pool network has mean 0 and
    sigma 0.4. Papers on photographs have mean 0, and do not clip: results with and without clipping
    cannot be compared.
    """
    _check("sigma", sigma, 0, math.inf)
    if not math.isfinite(mean):
        raise InputError(f"mean={mean} must be a finite number, such as 0.5")

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        key, strength = _strength(key, sigma, image.dtype)

        def add(x: Array, noise: Array) -> Array:
            noisy = x + mean + strength * noise
            return jnp.clip(noisy, 0, 1) if clip else noisy

        return _with_normal(key, image, add)

    def level(key: Key[Array, ""]) -> Array:
        return _strength(key, sigma, jnp.float32)[1]

    unclipped = "" if clip else ", clip=False"
    name = f"gaussian(sigma={sigma}, mean={mean}{unclipped})"
    return Corruption(name, corrupt, level=level)


def masking(p: Strength) -> Corruption:
    """Sets each pixel (all its channels) to 0 with probability p: Vincent et al. (2008)."""
    _check("p", p, 0, 1)

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        key, strength = _strength(key, p, image.dtype)
        lost = jax.random.uniform(unrolled(key), (*image.shape[:2], 1)) < strength
        return jnp.where(lost, 0, image)

    return Corruption(f"masking(p={p})", corrupt)


def salt_and_pepper(p: Strength) -> Corruption:
    """Sets each pixel (all its channels), with probability p, to 0 or to 1, equally likely."""
    _check("p", p, 0, 1)

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        key, strength = _strength(key, p, image.dtype)
        draw = jax.random.uniform(unrolled(key), (*image.shape[:2], 1))
        return jnp.where(draw < strength / 2, 0, jnp.where(draw < strength, 1, image))

    return Corruption(f"salt_and_pepper(p={p})", corrupt)


def speckle(sigma: Strength) -> Corruption:
    """Multiplies every value by N(1, sigma^2) and clips to [0, 1]."""
    _check("sigma", sigma, 0, math.inf)

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        key, strength = _strength(key, sigma, image.dtype)
        return _with_normal(key, image, lambda x, noise: jnp.clip(x * (1 + strength * noise), 0, 1))

    return Corruption(f"speckle(sigma={sigma})", corrupt)


def poisson(peak: Strength) -> Corruption:
    """Shot noise: Poisson(peak * x) / peak, clipped to [0, 1]; peak photons in a white pixel."""
    _check("peak", peak, 0, 1e6, exclusive=True)

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        key, strength = _strength(key, peak, image.dtype)
        photons = jax.random.poisson(key, strength * image.astype(jnp.float32))
        return jnp.clip(photons.astype(image.dtype) / strength, 0, 1)

    return Corruption(f"poisson(peak={peak})", corrupt)


def grayscale() -> Corruption:
    """RGB to gray, by Rec. 601 luma (0.299, 0.587, 0.114). Undoing it is colourisation."""

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        if image.shape[-1] != 3:
            raise InputError(
                f"grayscale takes RGB images, and these have {image.shape[-1]} channels: "
                "choose a data set in colour, or another corruption"
            )
        return image @ jnp.array(LUMA, image.dtype)[:, None]

    return Corruption("grayscale()", corrupt, out_channels=1)


def sensor(compressed: float = 0.5, blur: bool = False) -> Corruption:
    """What a camera does: noise in linear light, its colours interpolated, gamma, 8 bits, JPEG.

    `jaxdae.camera` describes the steps and where their ranges come from. Each image has a camera of
    its own: gains, read noise, white balance, place of the colour filter, and how far the camera
    smooths the noise. RGB images have a mosaic of colours; with another number of channels, each
    channel has noise of its own, without white balance. Values that a camera would clip are
    clipped, as displayed.

    Args:
      compressed: the share of images that go through JPEG (`jaxdae.jpeg`), of quality 70 to 100,
        and half of them with chroma at half size.
      blur: interpolate the colours of the image, too, which blurs its edges; a network then learns
        to sharpen. Else those of the noise alone: photographs were interpolated before.

    Raises:
      InputError: `compressed` is no share.
    """
    _check("compressed", compressed, 0, 1)

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        keys = jax.random.split(key, 5)
        camera = cameras.draw_camera(keys[0])
        out = cameras.shoot(keys[1], image.astype(jnp.float32), camera, blur)
        out = jpeg.to_bytes(out).astype(jnp.float32) / 255
        if image.shape[-1] in (1, 3) and not (isinstance(compressed, Real) and compressed == 0):
            quality = jax.random.randint(keys[2], (), *QUALITIES)
            small = jpeg.compress(out, quality, jax.random.bernoulli(keys[3]))
            out = jnp.where(jax.random.uniform(keys[4]) < compressed, small, out)
        return out.astype(image.dtype)

    return Corruption(f"sensor(compressed={compressed}, blur={blur})", corrupt)


def compressed(sigma: Strength = 0.0) -> Corruption:
    """White noise N(0, sigma^2), 8 bits, and JPEG of quality 70 to 100 (`jaxdae.jpeg`).

    Half of the images have chroma at half size.

    Raises:
      InputError: sigma is no noise level.
    """
    white = gaussian(sigma, mean=0.0)

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        keys = jax.random.split(key, 3)
        noisy = white.corrupt(keys[0], image)
        quality = jax.random.randint(keys[1], (), *QUALITIES)
        return jpeg.compress(noisy, quality, jax.random.bernoulli(keys[2])).astype(image.dtype)

    return Corruption(f"compressed(sigma={sigma})", corrupt)


def one_of(*corruptions: Corruption, shares: Sequence[float] | None = None) -> Corruption:
    """Applies one of the corruptions to each image.

    Args:
      shares: how often each is taken, in any unit; all alike if not given.

    Raises:
      InputError: there is not one share of at least 0 for each, or all are 0.
    """
    weights = [1.0] * len(corruptions) if shares is None else list(shares)
    if len(weights) != len(corruptions) or not min(weights) >= 0 < sum(weights) < math.inf:
        raise InputError(
            f"shares={shares} must be {len(corruptions)} numbers of at least 0, not all 0"
        )

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        key, chosen = jax.random.split(key)
        ends = jnp.cumsum(jnp.array(weights)) / sum(weights)
        which = (jax.random.uniform(chosen) >= ends[:-1]).sum()
        return jax.lax.switch(which, [c.corrupt for c in corruptions], key, image)

    return Corruption(f"one_of({', '.join(c.name for c in corruptions)})", corrupt)


def photo() -> Corruption:
    """What photographs suffer from, for a network for all of them.

    A half of the images get a camera's noise, `sensor`; a quarter white noise up to sigma 50/255,
    unclipped; a quarter white noise up to 25/255, compressed as JPEG. White noise alone makes
    networks that fail on real photographs: Guo et al., "Toward convolutional blind denoising of
    real photographs" (2019).
    """
    white = gaussian((0.0, 50 / 255), 0.0, clip=False)
    made = one_of(sensor(), white, compressed((0.0, 25 / 255)), shares=(2, 1, 1))
    return Corruption("photo()", made.corrupt)


def compose(*corruptions: Corruption) -> Corruption:
    """Applies corruptions in the given order, each with its own key."""

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        for i, corruption in enumerate(corruptions):
            image = corruption.corrupt(jax.random.fold_in(key, i), image)
        return image

    channels = [c.out_channels for c in corruptions if c.out_channels]
    name = f"compose({', '.join(c.name for c in corruptions)})"
    return Corruption(name, corrupt, channels[-1] if channels else None)


class Entry(NamedTuple):
    """A corruption that a configuration can name.

    Fields:
      make: the configuration's values to the corruption.
      reads: the names of those values, in the order that `make` takes them.
    """

    make: Callable[..., Corruption]
    reads: tuple[str, ...] = ()


CORRUPTIONS: dict[str, Entry] = {
    "gaussian": Entry(gaussian, ("sigma", "mean", "clip")),
    "identity": Entry(identity),
    "grayscale": Entry(grayscale),
    "masking": Entry(masking, ("strength",)),
    "salt_and_pepper": Entry(salt_and_pepper, ("strength",)),
    "speckle": Entry(speckle, ("sigma",)),
    "poisson": Entry(poisson, ("strength",)),
    "sensor": Entry(sensor),
    "photo": Entry(photo),
}
NOISE_LEVELS = tuple(name for name, entry in CORRUPTIONS.items() if "sigma" in entry.reads)


def _with_normal(key: Key[Array, ""], image: Image, make: Callable[[Array, Array], Array]) -> Image:
    """Combines an image's values with as many normal numbers.

    It works on one row of values. On a CPU, XLA vectorises the last axis; with 28 columns its
    vectors would be a quarter full, which takes twice the time.
    """
    row = image.reshape(-1)
    return make(row, kernels.normal(key, row.size, image.dtype)).reshape(image.shape)


def _strength(key: Key[Array, ""], strength: Strength, dtype) -> tuple[Key[Array, ""], Array]:
    """The key for the noise, and the strength: as given, or drawn from its range."""
    if not isinstance(strength, tuple):
        return key, jnp.asarray(strength, dtype)
    key, drawn = jax.random.split(key)
    low, high = strength
    return key, jax.random.uniform(drawn, (), dtype, low, high)


def _check(name: str, strength: Strength, low: float, high: float, exclusive: bool = False) -> None:
    if isinstance(strength, jax.Array):
        return
    ends: tuple[Any, ...] = strength if isinstance(strength, tuple) else (strength,)
    inside = all(
        isinstance(end, Real) and low <= float(end) <= high and not (exclusive and end == low)
        for end in ends
    )
    counted = len(ends) == (2 if isinstance(strength, tuple) else 1)
    fits = inside and counted and math.inf not in ends and ends[0] <= ends[-1]
    if not fits:
        rule = f"above {low}" if exclusive else f"at least {low}"
        rule += f" and at most {high:g}" if math.isfinite(high) else ""
        raise InputError(
            f"{name}={strength} must be a finite number {rule}, or two in order, low and high: "
            f"such as {name}=0.5"
        )
