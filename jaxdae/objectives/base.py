"""What an objective is: how examples are made from data, and what a network's loss on them is."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Int, Key

from jaxdae.losses import Loss, takes_logits

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
