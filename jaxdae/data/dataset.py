"""A data set: a training split and a test split of images of one shape."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxdae.errors import InputError


@dataclass(frozen=True, eq=False)
class Split:
    """Images, with their labels or noisy versions if there are any.

    Fields:
      images: uint8 [n h w c], an array or what is indexed like one: `jaxdae.data.patches.Crops`,
        `jaxdae.data.decoded_cache.StoredImages`.
      labels: the class of each image, or None.
      noisy: the noisy version of each image, like `images`, or None.
    """

    images: Any
    labels: Int32[np.ndarray, " n"] | None = None
    noisy: Any = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: slice | np.ndarray) -> "Split":
        """Some of the images, with their labels and their noisy versions."""
        labels, noisy = (None if x is None else x[rows] for x in (self.labels, self.noisy))
        return Split(self.images[rows], labels, noisy)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training split and a test split.

    Fields:
      name: the name it was loaded by.
      train, test: the splits.
      sha256: a fingerprint of all images, if it is known without reading them.

    Raises:
      InputError: a split is empty, images are not uint8 [n h w c], the two splits' images differ
        in shape, or there is not one label, or one noisy version of its shape, for each image.
    """

    name: str
    train: Split
    test: Split
    sha256: str | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        _, h, w, c = self.train.images.shape
        return h, w, c

    def __post_init__(self) -> None:
        for part, split in (("training", self.train), ("test", self.test)):
            x, y, noisy = split.images, split.labels, split.noisy
            what = f"{self.name!r}: {part} images are {x.dtype} {list(x.shape)}"
            if x.ndim != 4 or x.dtype != np.uint8 or x.size == 0:
                raise InputError(
                    f"{what}, but must be uint8 [n h w c] with no side of 0: convert them, or add "
                    "images"
                )
            if y is not None and y.shape != x.shape[:1]:
                raise InputError(
                    f"{what}, but labels {list(y.shape)}: give one label for each image, or none"
                )
            if noisy is not None and (noisy.dtype, noisy.shape) != (x.dtype, x.shape):
                raise InputError(
                    f"{what}, but their noisy versions {noisy.dtype} {list(noisy.shape)}: give one "
                    "of the same shape for each image"
                )
            if x.shape[1:] != self.train.images.shape[1:]:
                expected = list(self.train.images.shape[1:])
                raise InputError(f"{what}, but training images {expected}: resize one of them")
