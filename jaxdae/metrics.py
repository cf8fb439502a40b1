"""Quality of restored images: MSE, PSNR and SSIM, for each image against its clean one.

psnr(output, clean)          # float32 [batch], in JAX: differentiable, and works under jit
of_image(output, clean)      # one image of any size, in NumPy: nothing is compiled
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxdae.losses import image_mean

Images = Float[Array, "batch height width channels"]
PerImage = Float[Array, " batch"]
Planes = Float[Any, "planes height width"]  # of NumPy or of JAX
TILE = 64  # side, in pixels, of the parts of an image that `of_image` handles one by one


def mse(output: Images, clean: Images) -> PerImage:
    """The mean squared error, for images in [0, 1]."""
    return image_mean((output - clean) ** 2)


def psnr(output: Images, clean: Images) -> PerImage:
    """The peak signal-to-noise ratio in dB, 10 log10(1 / MSE). It is infinite for equal images."""
    return -10 * jnp.log10(mse(output, clean))


def ssim(output: Images, clean: Images, *, window: int = 7) -> PerImage:
    """The structural similarity, in [-1, 1], for images in [0, 1].

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment", 2004, as scikit-image computes
    it: `structural_similarity(..., data_range=1, channel_axis=-1)`. The window is uniform, the
    variances have n - 1 in the denominator, K1 = 0.01, K2 = 0.03. The result is the mean over all
    windows inside the image and over channels.

    Args:
      window: the side of the window, in pixels. A smaller image gets the largest odd window that
        fits.
    """
    batch, height, width, _ = clean.shape
    a, b = (jnp.moveaxis(x, 3, 1).reshape(-1, height, width) for x in (output, clean))
    with jax.default_matmul_precision("highest"):
        similarity = _similarity(a, b, _fitting(window, height, width))
    return image_mean(similarity).reshape(batch, -1).mean(1)


def of_image(
    output: Shaped[np.ndarray, "height width channels"],
    clean: Shaped[np.ndarray, "height width channels"],
    *,
    window: int = 7,
) -> dict[str, float]:
    """All three metrics of one image, in float64.

    It runs in NumPy, because JAX compiles a program for each size of image. It handles a tile
    at a time, so that a large image takes little memory.

    Args:
      output, clean: each floating point in [0, 1], uint8 or uint16.

    Returns:
      "mse", "psnr" in dB, and "ssim".
    """
    height, width, channels = clean.shape
    window = _fitting(window, height, width)
    squares = similarity = 0.0
    for top, left in itertools.product(range(0, height, TILE), range(0, width, TILE)):
        # The windows that begin in this tile reach into the next ones.
        rows, columns = (slice(first, first + TILE + window - 1) for first in (top, left))
        a, b = (np.moveaxis(_to_float(x[rows, columns]), 2, 0) for x in (output, clean))
        squares += float(((a - b)[:, :TILE, :TILE] ** 2).sum())
        if min(a.shape[1:]) >= window:
            similarity += float(_similarity(a, b, window).sum())
    error = squares / clean.size
    windows = (height - window + 1) * (width - window + 1) * channels
    return {
        "mse": error,
        "psnr": -10 * float(np.log10(error)) if error else float("inf"),
        "ssim": similarity / windows,
    }


def _fitting(window: int, height: int, width: int) -> int:
    """The window, or the largest odd one that fits the image."""
    return min(window, *(side - (side + 1) % 2 for side in (height, width)))


def _to_float(x: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Float64 in [0, 1]."""
    return x.astype(np.float64) / (np.iinfo(x.dtype).max if x.dtype.kind == "u" else 1)


def _similarity(a: Planes, b: Planes, window: int) -> Planes:
    """SSIM of every window inside a plane: [planes width-window+1 height-window+1].

    It uses only what arrays of NumPy and of JAX have in common, and averages by products of
    matrices, which is the fastest way in XLA on a CPU.
    """
    height, width = a.shape[-2:]
    down = _window_means(height, window).astype(a.dtype)
    across = _window_means(width, window).astype(a.dtype)

    def mean(x: Planes) -> Planes:
        return (x @ across).swapaxes(1, 2) @ down

    def plane_mean(x: Planes) -> Planes:
        ones = np.ones(height * width, x.dtype)
        return (x.reshape(len(x), -1) @ ones / len(ones))[:, None, None]

    # Relative to each plane's mean, because E[x^2] - E[x]^2 of a bright plane loses all digits.
    a0, b0 = plane_mean(a), plane_mean(b)
    a, b = a - a0, b - b0
    a_mean, b_mean = mean(a), mean(b)
    variances = mean(a * a + b * b) - a_mean**2 - b_mean**2
    covariance = mean(a * b) - a_mean * b_mean
    count = window * window
    unbiased = count / (count - 1) if count > 1 else 0.0
    x, y = a_mean + a0, b_mean + b0
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * x * y + c1) / (x * x + y * y + c1)
    return luminance * (2 * unbiased * covariance + c2) / (unbiased * variances + c2)


@functools.lru_cache(maxsize=8)
def _window_means(side: int, window: int) -> Float[np.ndarray, "side positions"]:
    """The matrix that averages a line over every window inside it."""
    first, pixel = np.arange(side - window + 1), np.arange(side)[:, None]
    return ((first <= pixel) & (pixel < first + window)) / window
