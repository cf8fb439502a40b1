"""What a camera does to light: the parts of the corruption `sensor`.

    light = to_linear(image)               # what is displayed, to light
    raw = light / camera.balance           # to what the sensor's pixels count

- The noise of a pixel has variance `gain * signal + read ** 2`: photons and electronics. Foi,
  Trimeche, Katkovnik and Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting for
  single-image raw-data" (2008), whose normal approximation of the Poisson part it takes.
- Gains, read noise and white balance are drawn from ranges measured on real cameras (those of the
  Darmstadt Noise Dataset): Brooks, Mildenhall, Xue, Chen, Sharlet and Barron, "Unprocessing images
  for learned raw denoising" (2019).
- A sensor pixel measures one colour (Bayer, 1976). Interpolation of the others correlates the
  noise of neighbours.
- A camera's own noise reduction smooths noise. What is left is coarse: in the photographs of Nam,
  Hwang, Matsushita and Kim, "A holistic approach to cross-channel image noise modeling" (2016), the
  noise of pixels that lie two apart is still correlated. The range is a choice.
- Displayed values are sRGB's: IEC 61966-2-1 (1999).

The colour matrix and the tone curve of that paper are left out: they differ from camera to camera.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdae import kernels

Image = Float[Array, "height width channels"]
GAINS = (1e-4, 0.012)  # of the shot noise, log-uniform
READ = (2.18, 1.20, 0.26)  # log read ** 2 = slope * log gain + offset + N(0, 0.26^2)
RED, BLUE = (1.9, 2.4), (1.5, 1.9)  # white balance, uniform
SMOOTHING = (0.0, 1.5)  # in pixels, uniform
TAPS = 4  # pixels that smoothing reaches


class Camera(NamedTuple):
    """What a camera was set to.

    Fields:
      gain: variance of the noise for a signal of 1, without the read noise.
      read: standard deviation of the read noise; a signal of 1 fills a pixel.
      balance: white balance of red, green and blue: what light is divided by in the sensor.
      phase: row and column, 0 or 1, of the red pixels.
      smoothing: standard deviation, in pixels, of the Gaussian that the noise is smoothed with.
    """

    gain: Float[Array, ""]
    read: Float[Array, ""]
    balance: Float[Array, "3"]
    phase: Int[Array, "2"]
    smoothing: Float[Array, ""] | float = 0.0


def draw_camera(key: Key[Array, ""]) -> Camera:
    """A camera's settings, from the ranges above."""
    keys = jax.random.split(key, 6)
    low, high = jnp.log(jnp.array(GAINS))
    gain = jax.random.uniform(keys[0], minval=low, maxval=high)
    slope, offset, spread = READ
    read = slope * gain + offset + spread * jax.random.normal(keys[1])
    red, blue = (
        jax.random.uniform(key, minval=ends[0], maxval=ends[1])
        for key, ends in zip(keys[2:4], (RED, BLUE), strict=True)
    )
    phase = jax.random.bernoulli(keys[4], shape=(2,)).astype(jnp.int32)
    balance = jnp.stack([red, jnp.ones(()), blue])
    smoothing = jax.random.uniform(keys[5], minval=SMOOTHING[0], maxval=SMOOTHING[1])
    return Camera(jnp.exp(gain), jnp.exp(read / 2), balance, phase, smoothing)


def to_linear(image: Array) -> Array:
    """sRGB values in [0, 1], as displayed, to light."""
    return jnp.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def to_display(light: Array) -> Array:
    """Light to sRGB values. Undoes `to_linear`; light is clipped to [0, 1]."""
    light = jnp.clip(light, 0, 1)
    bright = 1.055 * jnp.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.where(light <= 0.0031308, light * 12.92, bright)


def noise(key: Key[Array, ""], signal: Array, gain: Array, read: Array) -> Array:
    """Noise for a signal of at least 0: normal, of mean 0 and variance gain * signal + read^2."""
    row = signal.reshape(-1)
    drawn = kernels.normal(key, row.size, row.dtype)
    return (jnp.sqrt(gain * row + read**2) * drawn).reshape(signal.shape)


def smooth(image: Image, deviation: Float[Array, ""] | float) -> Image:
    """An image convolved with a Gaussian, cut off after `TAPS` pixels; border pixels repeat.

    Args:
      deviation: the Gaussian's standard deviation in pixels, at least 0; 0 leaves the image.
    """
    places = jnp.arange(-TAPS, TAPS + 1)
    weights = jnp.exp(-(places**2) / (2 * jnp.maximum(deviation, 1e-3) ** 2))
    weights = weights / weights.sum()
    for axis in (0, 1):
        side = image.shape[axis]
        padded = jnp.pad(image, [(TAPS, TAPS) if i == axis else (0, 0) for i in range(3)], "edge")
        parts = (jax.lax.slice_in_dim(padded, i, i + side, axis=axis) for i in range(2 * TAPS + 1))
        image = sum((w * part for w, part in zip(weights, parts, strict=True)), jnp.zeros(()))
    return image


def bayer(size: tuple[int, int], phase: Int[Array, "2"]) -> Float[Array, "height width 3"]:
    """The colour filter: 1 where a pixel measures red, green, blue; else 0."""
    rows, columns = ((jnp.arange(side) + phase[axis]) % 2 for axis, side in enumerate(size))
    rows, columns = rows[:, None], columns[None]
    colours = (rows + columns == 0, rows + columns == 1, rows + columns == 2)
    return jnp.stack(colours, -1).astype(jnp.float32)


def mosaic(image: Float[Array, "height width 3"], phase: Int[Array, "2"]) -> Array:
    """The colour that each pixel measures: (height, width)."""
    height, width = image.shape[:2]
    return (image * bayer((height, width), phase)).sum(-1)


def demosaic(
    measured: Float[Array, "height width"], phase: Int[Array, "2"]
) -> Float[Array, "height width 3"]:
    """All colours of each pixel, by bilinear interpolation. The sides must be 2 at least."""
    height, width = measured.shape
    mask = bayer((height, width), phase)
    both = jnp.stack([measured[..., None] * mask, mask])
    padded = jnp.pad(both, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = jnp.zeros_like(both)
    for i in range(3):
        for j in range(3):
            # A pixel takes its own colour, or the mean of the neighbours that measured it. Those of
            # green lie at its sides.
            weight = jnp.array([1.0, i == 1 or j == 1, 1])
            total += weight * padded[:, i : i + height, j : j + width]
    return total[0] / total[1]  # at the border, of the pixels that there are


def shoot(key: Key[Array, ""], image: Image, camera: Camera, blur: bool = False) -> Image:
    """A photograph of what an image shows: the image with a camera's noise.

    Args:
      image: float32 in [0, 1], as displayed. Of RGB, each pixel measures one colour; otherwise each
        channel is measured, without white balance.
      blur: interpolate the colours of the image, too; else those of the noise alone.

    Returns:
      As displayed, in [0, 1].
    """
    light, (gain, read, balance, phase, smoothing) = to_linear(image), camera
    if image.shape[-1] != 3 or min(image.shape[:2]) < 2:  # no neighbours to interpolate from
        return to_display(light + smooth(noise(key, light, gain, read), smoothing))
    raw = light / balance
    signal = mosaic(raw, phase)
    grain = noise(key, signal, gain, read)
    raw = (demosaic(signal, phase) if blur else raw) + smooth(demosaic(grain, phase), smoothing)
    return to_display(raw * balance)
