"""What is reported of a reconstruction in [0, 1] against the clean image: a figure for each."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxdae.losses import image_mean

Images = Float[Array, "batch height width channels"]
PerImage = Float[Array, " batch"]
BAND = 256  # rows of a large image at a time


def mse(output: Images, clean: Images) -> PerImage:
    """The mean squared error."""
    return image_mean((output - clean) ** 2)


def psnr(output: Images, clean: Images) -> PerImage:
    """The peak signal-to-noise ratio in dB, 10 log10(1 / MSE); infinite for equal images."""
    return -10 * jnp.log10(mse(output, clean))


def ssim(output: Images, clean: Images, *, window: int = 7) -> PerImage:
    """The structural similarity, in [-1, 1]: Wang, Bovik, Sheikh, Simoncelli (2004).

    As scikit-image's `structural_similarity(..., data_range=1, channel_axis=-1)`: a uniform
    window, sample variances (of n - 1), K1 = 0.01, K2 = 0.03, averaged over the positions where
    the window lies inside the image. On an image smaller than the window, the largest odd window
    that fits it.
    """
    batch, height, width, _ = clean.shape
    window = min(window, *(side - (side + 1) % 2 for side in (height, width)))
    count = window * window
    unbiased = count / (count - 1) if count > 1 else 0.0
    down, along = _moving_average(height, window), _moving_average(width, window)

    def mean(x: Float[Array, "images height width"]) -> Float[Array, "images across down"]:
        x = jnp.matmul(x, along, precision="highest").swapaxes(1, 2)
        return jnp.matmul(x, down, precision="highest")

    # Every channel is an image of its own.
    output, clean = (jnp.moveaxis(x, 3, 1).reshape(-1, height, width) for x in (output, clean))
    # About each image's own mean: about zero, E[x^2] - E[x]^2 of a pale image cancels to noise.
    x0, y0 = (image_mean(image)[:, None, None] for image in (output, clean))
    a, b = output - x0, clean - y0
    a_mean, b_mean, squares, product = jnp.split(
        mean(jnp.concatenate([a, b, a * a + b * b, a * b])), 4
    )
    variances = squares - a_mean**2 - b_mean**2
    covariance = product - a_mean * b_mean
    x, y = a_mean + x0, b_mean + y0
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * x * y + c1) / (x * x + y * y + c1)
    structure = (2 * unbiased * covariance + c2) / (unbiased * variances + c2)
    return image_mean(luminance * structure).reshape(batch, -1).mean(1)


def _moving_average(side: int, window: int) -> Float[np.ndarray, "side positions"]:
    """The matrix that averages a line over every window inside it."""
    first, pixel = np.arange(side - window + 1), np.arange(side)[:, None]
    return ((first <= pixel) & (pixel < first + window)).astype(np.float32) / window


def of_image(
    output: Shaped[np.ndarray, "height width channels"],
    clean: Shaped[np.ndarray, "height width channels"],
    *,
    window: int = 7,
) -> dict[str, float]:
    """All three of one image, in NumPy and float64: no size of it is a program to compile.

    It is gone through in bands of rows, so that a large one takes little memory.

    Args:
      output, clean: each floating point in [0, 1], uint8 or uint16.

    Returns:
      "mse", "psnr" (dB) and "ssim", as the functions of these names define them.
    """
    height, width, channels = clean.shape
    window = min(window, *(side - (side + 1) % 2 for side in (height, width)))
    squares = similarity = 0.0
    for top in range(0, height, BAND):
        rows = slice(top, min(height, top + BAND + window - 1))
        for channel in range(channels):
            a, b = (_in_unit(x[rows, :, channel]) for x in (output, clean))
            squares += float(((a - b)[:BAND] ** 2).sum())
            if len(a) >= window:
                similarity += float(_similarity(a, b, window).sum())
    error = squares / clean.size
    positions = (height - window + 1) * (width - window + 1) * channels
    return {
        "mse": error,
        "psnr": -10 * float(np.log10(error)) if error else float("inf"),
        "ssim": similarity / positions,
    }


def _in_unit(x: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return x.astype(np.float64) / (np.iinfo(x.dtype).max if x.dtype.kind == "u" else 1)


def _similarity(
    a: Float[np.ndarray, "height width"], b: Float[np.ndarray, "height width"], window: int
) -> Float[np.ndarray, "down across"]:
    """The structural similarity at every position of the window inside an image."""

    def mean(x: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "down across"]:
        for _ in range(2):  # along the rows, then turned around, along the columns
            sums = np.pad(x, ((1, 0), (0, 0))).cumsum(0)
            x = ((sums[window:] - sums[:-window]) / window).T
        return x

    count = window * window
    unbiased = count / (count - 1) if count > 1 else 0.0
    x, y = mean(a), mean(b)
    variances = mean(a * a + b * b) - x * x - y * y
    covariance = mean(a * b) - x * y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * x * y + c1) / (x * x + y * y + c1)
    return luminance * (2 * unbiased * covariance + c2) / (unbiased * variances + c2)
