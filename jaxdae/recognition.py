"""Which digit an image shows: a small classifier, to ask what denoising has kept.

    read_digits(images)               # int32 (n,), by the classifier that comes with the package
    digit_recovery(images, labels)    # the share that is still read right

The error of the pixels does not say whether a restored image still shows the digit that it did. A
classifier that was trained on clean digits, and on nothing else, does: it judges all denoisers
alike and favours the artefacts of none.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxdae.errors import InputError
from jaxdae.model import Images

SHIPPED = "digit-classifier"


BATCH = 100


Reader = Callable[[Float[np.ndarray, "n height width channels"]], Int[np.ndarray, " n"]]


def read_digits(images: Float[np.ndarray, "n 28 28 1"]) -> Int[np.ndarray, " n"]:
    """The digit that each image shows, int32 in 0 to 9, as the shipped classifier reads it.

    Args:
      images: float in [0, 1], the digit light on dark, as in MNIST.

    Raises:
      InputError: the images have another shape, type or range.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (28, 28, 1):
        raise InputError(f"images of shape {images.shape} must be (n, 28, 28, 1): resize them")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"images of {images.dtype} must be float in [0, 1]: divide bytes by 255")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):  # nan is not in range either
        raise InputError(
            f"images in [{images.min():g}, {images.max():g}] must be in [0, 1]: rescale them"
        )
    return _reader()(images)


def digit_recovery(images: Float[np.ndarray, "n 28 28 1"], labels: Int[np.ndarray, " n"]) -> float:
    """The share of images that are still read as the right digit, in [0, 1].

    Of the clean test digits of MNIST this is the classifier's own accuracy, not 1.

    Args:
      images: what `read_digits` takes.
      labels: the digit that each should show.

    Raises:
      InputError: the images do not suit `read_digits`, or there is not one label for each.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) != len(images) or not len(labels):
        raise InputError(
            f"labels of shape {labels.shape} for {len(images)} images: give one for each, and at "
            "least one"
        )
    return float(np.mean(read_digits(images) == labels))


def reader(model: nn.Module, params: Any) -> Reader:
    """Makes the function from images in [0, 1] to the likeliest class of each, int32.

    Args:
      model: a `DigitClassifier`, or what else makes logits of images.
    """

    @jax.jit
    def likeliest(batch: Images) -> Int[Array, " batch"]:
        logits: Any = model.apply({"params": params}, batch)
        return logits.argmax(-1)

    def read(images):
        classes = [np.zeros(0, np.int32)]
        for i in range(0, len(images), BATCH):
            batch = images[i : i + BATCH].astype(np.float32)
            # What fills the last batch saves the compilation of another size.
            filled = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
            classes.append(np.asarray(likeliest(jnp.asarray(filled)))[: len(batch)])
        return np.concatenate(classes)

    return read


@cache
def shipped() -> tuple[Any, Any]:
    """The classifier that comes with the package, and its parameters."""
    from jaxdae.pretrained import load  # which imports this module

    return load(SHIPPED)


@cache
def _reader() -> Reader:
    return reader(*shipped())
