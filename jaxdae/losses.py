"""What training minimises: a loss for each image, from the logits and the clean images."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Loss = Callable[[Images, Images], Float[Array, " batch"]]


def mean_squared_error(logits: Images, clean: Images) -> Float[Array, " batch"]:
    """The mean over pixels of (sigmoid(logits) - clean)^2."""
    return image_mean((nn.sigmoid(logits) - clean) ** 2)


def binary_cross_entropy(logits: Images, clean: Images) -> Float[Array, " batch"]:
    """The mean over pixels of -clean log p - (1 - clean) log(1 - p), p = sigmoid(logits), in nats.

    Computed from the logits, so nothing saturates. Its minimiser is the conditional mean, like
    the squared error's; its minimum is not zero but the entropy of the gray values.
    """
    return image_mean(optax.sigmoid_binary_cross_entropy(logits, clean))


def image_mean(x: Images) -> Float[Array, " batch"]:
    """The mean over each image's values, as a product: XLA's reductions are slow on a CPU."""
    x = x.reshape(len(x), -1)
    return jnp.dot(x, jnp.ones(x.shape[1], x.dtype), precision="highest") / x.shape[1]


LOSSES: dict[str, Loss] = {"mse": mean_squared_error, "bce": binary_cross_entropy}
