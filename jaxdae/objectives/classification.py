"""Classification: the digit that an image shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxdae.objectives.base import Apply, Example, Images


class Labelled(NamedTuple):
    """Images with the class of each."""

    images: Images
    labels: Int[Array | np.ndarray, " batch"]


@dataclass(frozen=True)
class Classification:
    """Learns classes by the cross-entropy; see `jaxdae.model.DigitClassifier`.

    Fields:
      augment: (key, images, positions) to images: shifts, noise, whatever the classifier should
        not mind. A `jaxdae.corruption.Corruption` is such a function.
    """

    augment: Callable[..., Images]

    def prepare(
        self, key: Key[Array, ""], data: Labelled, positions: Int[Array, " batch"] | None = None
    ) -> Example:
        return Example(self.augment(key, data.images, positions), data.labels)

    def loss(self, apply: Apply, example: Example) -> Float[Array, " batch"]:
        logits = apply(example.input)
        return optax.softmax_cross_entropy_with_integer_labels(logits, example.target)
