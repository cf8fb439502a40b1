"""Corruption processes: what is done to a clean image before the network sees it.

    corruption = gaussian(0.5)
    noisy = corruption(key, images)                       # a key for the batch
    noisy = corruption(key, images, positions)            # ... of these places in the batch
    noisy = compose(masking(0.25), gaussian(0.2))(key, images)

A corruption is a frozen value that maps images in [0, 1], (batch, height, width, channels), to the
input images of the network. Every image is corrupted by its own key, `fold_in(key, position)`, its
position being its place in the batch unless given. So what happens to an image does not depend on
who shares the batch, and a batch that many devices share, each passing the positions it holds, is
corrupted bit for bit as it would be on one, by compiled programs. (Uncompiled, the noise is added
in another rounding: XLA contracts a multiplication and an addition into one operation.)

Keys are threefry, JAX's default: with `rbg` keys the draws of `vmap` depend on the batch's
division.

A strength given as a pair, `gaussian((0.1, 1.0))`, is drawn for each image uniformly from that
range: training on it makes a blind denoiser. A strength that is a JAX array may be traced, so that
one compiled program serves many; it is not checked.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdae import kernels
from jaxdae.errors import InputError
from jaxdae.image_io.pillow import LUMA
from jaxdae.random import fold_in, unrolled

Image = Float[Array, "height width channels"]
Images = Float[Array, "batch height width channels"]
Strength = float | Array | tuple[float, float]


def example_keys(key: Key[Array, ""], positions: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """A key for each example: `key` folded with its position."""
    return jax.vmap(fold_in, (None, 0))(key, positions)


@dataclass(frozen=True)
class Corruption:
    """A corruption of single images, applied to a batch with a key for each.

    Make one's own with `Corruption("name", function)`, where function maps (key, image) to an
    image of one fixed shape and traces under JAX.
    """

    name: str
    corrupt: Callable[[Key[Array, ""], Image], Image]
    # The channels it gives, for a corruption that changes their number.
    out_channels: int | None = None
    # The clean part of an image, where it is not the whole: see `paired`.
    clean: Callable[[Image], Image] | None = None

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
          positions: what each image's key is folded with; its place in `images` if not given.

        Returns:
          The input images in [0, 1], float of the same type.
        """
        positions = jnp.arange(len(images)) if positions is None else positions
        return jax.vmap(self.corrupt)(example_keys(key, positions), images)

    def __repr__(self) -> str:
        return self.name


def pair(
    corruption: Callable[..., Images],
    key: Key[Array, ""],
    images: Images,
    positions: Int[Array, " batch"] | None = None,
) -> tuple[Images, Images]:
    """The input images, and the clean ones to restore from them; the rest as in a call."""
    part = getattr(corruption, "clean", None)
    return corruption(key, images, positions), images if part is None else part(images)


def identity() -> Corruption:
    """No corruption: a plain autoencoder."""
    return Corruption("identity()", lambda key, image: image)


def paired(channels: int, noisy_channels: int) -> Corruption:
    """No synthetic corruption: images that hold their noisy version behind the clean one.

    Args:
      channels: of the clean image, the first of each image.
      noisy_channels: of the noisy image, the rest.
    """
    return Corruption(
        "paired()",
        lambda key, image: image[..., channels:],
        out_channels=noisy_channels,
        clean=lambda image: image[..., :channels],
    )


def gaussian(sigma: Strength, mean: float = 0.5) -> Corruption:
    """Adds N(mean, sigma^2) to every value and clips to [0, 1].

    Mean 0.5 is the setting of the strided network's tutorial; mean 0 with sigma 0.4 that of the
    max-pool network's.
    """
    _check("sigma", sigma, 0, math.inf)
    if not math.isfinite(mean):
        raise InputError(f"mean={mean} must be a finite number, such as 0.5")

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        key, strength = _strength(key, sigma, image.dtype)
        return _with_normal(
            key, image, lambda x, noise: jnp.clip(x + mean + strength * noise, 0, 1)
        )

    return Corruption(f"gaussian(sigma={sigma}, mean={mean})", corrupt)


def masking(p: Strength) -> Corruption:
    """Sets each pixel (all its channels) to 0 with probability p: Vincent et al. (2008)."""
    _check("p", p, 0, 1)

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        key, strength = _strength(key, p, image.dtype)
        lost = jax.random.uniform(unrolled(key), (*image.shape[:2], 1)) < strength
        return jnp.where(lost, 0, image)

    return Corruption(f"masking(p={p})", corrupt)


def salt_and_pepper(p: Strength) -> Corruption:
    """Sets each pixel, with probability p, to 0 or to 1 (all its channels), a fair coin each."""
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
    """Rec. 601 luma, (0.299, 0.587, 0.114) of RGB: undoing it is colourisation. 3 channels to 1."""

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        if image.shape[-1] != 3:
            raise InputError(
                f"grayscale takes RGB images, and these have {image.shape[-1]} channels: "
                "choose a data set in colour, or another corruption"
            )
        return image @ jnp.array(LUMA, image.dtype)[:, None]

    return Corruption("grayscale()", corrupt, out_channels=1)


def compose(*corruptions: Corruption) -> Corruption:
    """Applies corruptions in the order given, each with a key of its own."""

    def corrupt(key: Key[Array, ""], image: Image) -> Image:
        for i, corruption in enumerate(corruptions):
            image = corruption.corrupt(jax.random.fold_in(key, i), image)
        return image

    channels = [c.out_channels for c in corruptions if c.out_channels]
    name = f"compose({', '.join(c.name for c in corruptions)})"
    clean = corruptions[0].clean if corruptions else None
    return Corruption(name, corrupt, channels[-1] if channels else None, clean)


def _with_normal(key: Key[Array, ""], image: Image, make: Callable[[Array, Array], Array]) -> Image:
    """What is made of an image's values and of as many normal ones.

    As one row: on a CPU, XLA makes a loop of the last axis that is longer than 1, and of 28 columns
    one whose vectors are a quarter full, which takes twice the time.
    """
    row = image.reshape(-1)
    return make(row, kernels.normal(key, row.size, image.dtype)).reshape(image.shape)


def _strength(key: Key[Array, ""], strength: Strength, dtype) -> tuple[Key[Array, ""], Array]:
    """The key to go on with, and the strength: as it is, or drawn from its range."""
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
