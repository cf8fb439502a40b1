"""Supervised denoising: clean images are corrupted, and the network restores them.

Vincent, Larochelle, Bengio and Manzagol, "Extracting and composing robust features with denoising
autoencoders" (2008).
"""

from collections.abc import Callable
from dataclasses import dataclass

from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxdae.corruption import Corruption
from jaxdae.losses import Loss, mean_squared_error
from jaxdae.objectives.base import Apply, Example, Images, restoration_loss


@dataclass(frozen=True)
class Supervised:
    """Restores corrupted images.

    Fields:
      corruption: what is done to the clean images.
      criterion: the loss between outputs and clean images.
      teacher: corrupted images to restored ones, by a better network. If given, its results are
        the target instead of the clean images (distillation). Both lead to the mean of the clean
        images that a corrupted one may come from; the teacher's result is near that mean already,
        so its gradients have less noise.
      estimates: the network learns to estimate its noise level, too: see `restoration_loss`.
    """

    corruption: Corruption
    criterion: Loss = mean_squared_error
    teacher: Callable[[Images], Images] | None = None
    estimates: bool = False

    def prepare(
        self, key: Key[Array, ""], data: Images, positions: Int[Array, " batch"] | None = None
    ) -> Example:
        inputs = self.corruption(key, data, positions)
        target = data if self.teacher is None else lax.stop_gradient(self.teacher(inputs))
        told = isinstance(self.corruption, Corruption)  # any other function has no noise level
        sigma = self.corruption.levels(key, len(data), positions) if told else None
        return Example(inputs, target, sigma=sigma)

    def loss(self, apply: Apply, example: Example) -> Float[Array, " batch"]:
        return restoration_loss(apply, example, self.criterion, self.estimates)
