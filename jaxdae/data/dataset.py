"""A data set: a training split and a test split of images of one shape."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxdae.errors import InputError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Fields:
      images: uint8 [n h w c], an array or what is indexed like one: `jaxdae.data.patches.Crops`,
        `jaxdae.data.decoded_cache.StoredImages`.
      labels: the class of each image, or None.
    """

    images: Any
    labels: Int32[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training split and a test split.

    Fields:
      name: the name it was loaded by.
      train, test: the splits.
      noisy_channels: for pairs, how many of an image's channels, the last ones, are the noisy
        image; otherwise 0.
      sha256: a fingerprint of all images, if it is known without reading them.

    Raises:
      InputError: a split is empty, images are not uint8 [n h w c], the two splits' images differ
        in shape, or the number of labels is not the number of images.
    """

    name: str
    train: Split
    test: Split
    noisy_channels: int = 0
    sha256: str | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a clean image."""
        _, h, w, c = self.train.images.shape
        return h, w, c - self.noisy_channels

    def __post_init__(self) -> None:
        for part, x, y in (
            ("training", self.train.images, self.train.labels),
            ("test", self.test.images, self.test.labels),
        ):
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
            if x.shape[1:] != self.train.images.shape[1:]:
                expected = list(self.train.images.shape[1:])
                raise InputError(f"{what}, but training images {expected}: resize one of them")


def take(split: Split, rows: slice | np.ndarray) -> Split:
    """The images and labels at some indices."""
    return Split(split.images[rows], None if split.labels is None else split.labels[rows])
