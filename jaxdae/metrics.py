"""What is reported of a reconstruction in [0, 1] against the clean image: a figure for each."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
PerImage = Float[Array, " batch"]


def mse(output: Images, clean: Images) -> PerImage:
    """The mean squared error."""
    return jnp.mean((output - clean) ** 2, axis=(1, 2, 3))


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
    window = min(window, *(side - (side + 1) % 2 for side in clean.shape[1:3]))
    count = window * window
    unbiased = count / (count - 1) if count > 1 else 0.0

    def shifts(x: Array, axis: int) -> list[Array]:
        positions = x.shape[axis] - window + 1
        return [lax.slice_in_dim(x, i, i + positions, axis=axis) for i in range(window)]

    def mean(terms: list[Array]) -> Array:
        return sum(terms[1:], terms[0]) / window

    # Axis by axis, by the law of total variance: E[x^2] - E[x]^2 would cancel to noise in float32.
    x, y = output, clean
    variances = covariance = jnp.zeros_like(x)
    for axis in (1, 2):
        xs, ys = shifts(x, axis), shifts(y, axis)
        x, y = mean(xs), mean(ys)
        pairs = [(a - x, b - y) for a, b in zip(xs, ys, strict=True)]
        variances = mean(shifts(variances, axis)) + mean([a * a + b * b for a, b in pairs])
        covariance = mean(shifts(covariance, axis)) + mean([a * b for a, b in pairs])
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * x * y + c1) / (x * x + y * y + c1)
    structure = (2 * unbiased * covariance + c2) / (unbiased * variances + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))
