"""A data set: a training and a test split of images of one shape."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxdae.errors import InputError


@dataclass(frozen=True, eq=False)
class Split:
    """Images, channels last and in [0, 255], with their labels if there are any.

    Training images may be other than an array: `jaxdae.data.folder.Crops`.
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
    """A training and a test split whose images have one shape.

    Fields:
      name: where it comes from.
      train, test: the splits.
      noisy_channels: of pairs, the last so many of the images' channels are the noisy image.
      sha256: what tells it from others, if that is known without reading it.

    Raises `InputError` if a split is empty, if the splits' image shapes differ, if images are not
    uint8 [n h w c], or if a label is missing.
    """

    name: str
    train: Split
    test: Split
    noisy_channels: int = 0
    sha256: str | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the clean images."""
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
                    f"{what}, but must be uint8 [n h w c], none 0: convert or add some"
                )
            if y is not None and y.shape != x.shape[:1]:
                raise InputError(f"{what}, but labels {list(y.shape)}: give one for each, or none")
            if x.shape[1:] != self.train.images.shape[1:]:
                was = list(self.train.images.shape[1:])
                raise InputError(f"{what}, but training images {was}: resize one of them")
