"""Learning from pairs: a noisy image and a clean one of the same scene."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Array, Float, Int, Key

from jaxdae.losses import Loss, mean_squared_error
from jaxdae.objectives.base import Apply, Example, Images, restoration_loss


class Pair(NamedTuple):
    """Noisy images and their clean versions, (batch, height, width, channels) each."""

    noisy: Images
    clean: Images


@dataclass(frozen=True)
class Paired:
    """Restores noisy images to their clean versions; nothing is drawn.

    Fields:
      criterion: the loss between outputs and clean images.
      estimates: the network learns to estimate its noise level, too: see `restoration_loss`.
    """

    criterion: Loss = mean_squared_error
    estimates: bool = False

    def prepare(
        self, key: Key[Array, ""], data: Pair, positions: Int[Array, " batch"] | None = None
    ) -> Example:
        return Example(data.noisy, data.clean)

    def loss(self, apply: Apply, example: Example) -> Float[Array, " batch"]:
        return restoration_loss(apply, example, self.criterion, self.estimates)

    def __str__(self) -> str:
        return "paired()"
