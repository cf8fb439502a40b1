"""What is reported of a reconstruction in [0, 1] against the clean image: a figure for each."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdae.losses import image_mean

Images = Float[Array, "batch height width channels"]
PerImage = Float[Array, " batch"]


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
