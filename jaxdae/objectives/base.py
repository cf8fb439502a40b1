"""What an objective is: how examples are made from data, and what a network's loss on them is."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxdae.losses import Loss, image_mean, takes_logits

Images = Float[Array, "batch height width channels"]
Apply = Callable[..., Any]  # model.apply with its variables: (images, sigma, method=...) to outputs


class Example(NamedTuple):
    """A batch to learn from. Every field has the batch as its first axis, or is None.

    Fields:
      input: the images that the network is given.
      target: what it should make of them: images, or labels.
      mask: for an objective that judges only some values of the target: the weight of each value
        in its loss. `image_loss` weighs all values alike, and takes no mask.
      sigma: the noise level of each image, for a network that takes one.
    """

    input: Images
    target: Any
    mask: Images | None = None
    sigma: Float[Array, " batch"] | None = None


class Objective(Protocol):
    """What is learnt. The two functions are pure, and work on any part of a batch."""

    def prepare(
        self, key: Key[Array, ""], data: Any, positions: Int[Array, " batch"] | None = None
    ) -> Example:
        """Makes a batch of examples. It runs outside the gradient.

        Args:
          key: one key for the whole batch.
          data: a batch of the data set, images in [0, 1].
          positions: each example's place in the global batch, which its own key is folded with; its
            place in `data` if not given.
        """

    def loss(self, apply: Apply, example: Example) -> Float[Array, " batch"]:
        """The loss of each example. It runs inside the gradient."""


def image_loss(apply: Apply, example: Example, loss: Loss) -> Float[Array, " batch"]:
    """A loss of the network's outputs, or logits, against the whole target.

    Raises:
      ValueError: the example has a mask.
    """
    if example.mask is not None:
        raise ValueError("image_loss weighs all values alike: an objective with a mask has its own")
    options = {"method": "logits"} if takes_logits(loss) else {}
    return loss(apply(example.input, example.sigma, **options), example.target)


def restoration_loss(
    apply: Apply, example: Example, loss: Loss, estimates: bool
) -> Float[Array, " batch"]:
    """`image_loss` of a network that also learns to estimate the noise level, if it `estimates`.

    Where the example does not say the noise level, the network is told its own estimate. The loss
    of the estimate adds its gradient only: the value stays that of the restored images. Neither
    loss changes the other's weights.
    """
    if not estimates:
        return image_loss(apply, example, loss)
    level = apply(example.input, method="noise_level")
    if example.sigma is None:
        example = example._replace(sigma=lax.stop_gradient(level))
    extra = noise_level_loss(level, example.input - example.target)
    return image_loss(apply, example, loss) + extra - lax.stop_gradient(extra)


def noise_level_loss(level: Images, noise: Images) -> Float[Array, " batch"]:
    """The loss of an estimate of the noise's standard deviation at each pixel.

    The mean of |n|, for normal n, is sqrt(2 / pi) sigma. So the squared distance to
    sqrt(pi / 2) |noise| is least at sigma. Its logarithm makes all noise levels weigh alike.

    Args:
      level: the estimate, (batch, height, width, 1).
      noise: noisy minus clean images.
    """
    return jnp.log(image_mean((level - (jnp.pi / 2) ** 0.5 * jnp.abs(noise)) ** 2) + 1e-6)
