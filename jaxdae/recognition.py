"""Classification accuracy of restored digits: do they still show the right digit?

    read_digits(images)               # int32 [n], by the classifier that comes with the package
    digit_recovery(images, labels)    # the classification accuracy, in [0, 1]

The pixel error does not answer that. The classifier was trained on clean digits only, so it favours
the artefacts of no denoiser.
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
from jaxdae.pretrained import load

SHIPPED = "digit-classifier"
BATCH = 100

Reader = Callable[[Float[np.ndarray, "n height width channels"]], Int[np.ndarray, " n"]]


def read_digits(images: Float[np.ndarray, "n 28 28 1"]) -> Int[np.ndarray, " n"]:
    """Classifies images of digits with the classifier that comes with the package.

    Args:
      images: floating point in [0, 1], light digits on a dark ground, as in MNIST.

    Returns:
      The digits, int32, 0 to 9.

    Raises:
      InputError: images of another shape, type or range.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (28, 28, 1):
        raise InputError(f"images of shape {images.shape} must be (n, 28, 28, 1): resize them")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images of {images.dtype} must be floating point in [0, 1]: divide bytes by 255"
        )
    if len(images) and not (images.min() >= 0 and images.max() <= 1):  # True for NaN, too
        raise InputError(
            f"images in [{images.min():g}, {images.max():g}] must be in [0, 1]: rescale them"
        )
    return _reader()(images)


def digit_recovery(images: Float[np.ndarray, "n 28 28 1"], labels: Int[np.ndarray, " n"]) -> float:
    """The classification accuracy: the share of images that `read_digits` reads as their label.

    The clean test digits of MNIST do not reach 1, because the classifier errs on some.

    Args:
      images: see `read_digits`.
      labels: the right digits, 0 to 9.

    Returns:
      A number in [0, 1].

    Raises:
      InputError: images that `read_digits` does not take, or not one label for each image.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) != len(images) or not len(labels):
        raise InputError(
            f"labels of shape {labels.shape} for {len(images)} images, but each image needs one: "
            "give as many, at least one"
        )
    return float(np.mean(read_digits(images) == labels))


def reader(model: nn.Module, params: Any) -> Reader:
    """Makes a function from images in [0, 1] to their most likely classes, int32 [n].

    Args:
      model: a module from images to logits, such as `DigitClassifier`.
      params: its parameters.
    """

    @jax.jit
    def likeliest(batch: Images) -> Int[Array, " batch"]:
        logits: Any = model.apply({"params": params}, batch)
        return logits.argmax(-1)

    def read(images):
        classes = [np.zeros(0, np.int32)]
        for i in range(0, len(images), BATCH):
            batch = images[i : i + BATCH].astype(np.float32)
            # A full last batch, because another size would be compiled again.
            filled = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
            classes.append(np.asarray(likeliest(jnp.asarray(filled)))[: len(batch)])
        return np.concatenate(classes)

    return read


@cache
def shipped() -> tuple[Any, Any]:
    """The classifier that comes with the package, and its parameters."""
    return load(SHIPPED)


@cache
def _reader() -> Reader:
    return reader(*shipped())
