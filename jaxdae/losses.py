"""Losses: one number for each image, from a network's outputs and the target images.

A loss with the attribute `on = "logits"` takes the network's output before its nonlinearity, as a
cross-entropy does. All others take the output itself.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Loss = Callable[[Images, Images], Float[Array, " batch"]]


def mean_squared_error(outputs: Images, target: Images) -> Float[Array, " batch"]:
    """The mean of (outputs - target)^2 over each image's values."""
    return image_mean((outputs - target) ** 2)


def log_mean_squared_error(outputs: Images, target: Images) -> Float[Array, " batch"]:
    """The logarithm of each image's mean squared error: minus its PSNR, but for a factor.

    Every noise level then weighs alike: a squared error is governed by the noisiest images. The
    error of an image counts as 1e-5 (50 dB) at least, so that images without noise do not govern.
    """
    return jnp.log(mean_squared_error(outputs, target) + 1e-5)


def binary_cross_entropy(logits: Images, target: Images) -> Float[Array, " batch"]:
    """The mean of -target log p - (1 - target) log(1 - p), p = sigmoid(logits), in nats.

    It takes logits, so nothing saturates. Its minimiser is the conditional mean, as for the squared
    error. Its minimum is the entropy of the gray values, not zero.
    """
    return image_mean(optax.sigmoid_binary_cross_entropy(logits, target))


binary_cross_entropy.on = "logits"  # type: ignore[attr-defined]


def takes_logits(loss: Loss) -> bool:
    """True if the loss takes the network's output before its nonlinearity."""
    return getattr(loss, "on", "outputs") == "logits"


def image_mean(x: Images) -> Float[Array, " batch"]:
    """The mean over each image's values, as a matrix product: XLA's reductions are slow on CPUs."""
    x = x.reshape(len(x), -1)
    return jnp.dot(x, jnp.ones(x.shape[1], x.dtype), precision="highest") / x.shape[1]


LOSSES: dict[str, Loss] = {
    "mse": mean_squared_error,
    "log_mse": log_mean_squared_error,
    "bce": binary_cross_entropy,
}
