"""Random patches of images of any size."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from jaxdae.data.decoded_cache import Pixels, StoredImage, readers
from jaxdae.random import stream


class Crops:
    """Square patches of images of any size, used as an array uint8 [n side side c].

    An image gives as many patches an epoch as fit into it side by side. `patches` cuts them at
    random positions, a pure function of (seed, epoch, patch). Indexing with an array of indices
    cuts them side by side instead, without overlap. A slice gives `Crops` with fewer patches.

    Args:
      images: each at least `side` pixels high and wide, all of the same number of channels.
      side: of a patch, in pixels.
      numbers: the patches to use, by their numbers among all patches; None for all.

    Fields:
      counts: the number of patches of each image, in an epoch.
    """

    def __init__(
        self,
        images: Sequence[Pixels | StoredImage],
        side: int,
        numbers: np.ndarray | None = None,
    ) -> None:
        self.images, self.side = images, side
        self._sizes = np.array([image.shape[:2] for image in images], np.int64)
        fit = self._sizes // side  # rows and columns of patches
        self.counts = fit.prod(1)
        self._image = np.repeat(np.arange(len(images)), self.counts)
        within = np.arange(len(self._image)) - np.repeat(
            np.cumsum(self.counts) - self.counts, self.counts
        )
        columns = fit[self._image, 1]
        self._grid = np.stack([within // columns, within % columns], 1) * side
        self._numbers = np.arange(len(self._image)) if numbers is None else numbers
        self._drawn: tuple[Any, np.ndarray] | None = None  # the positions of the last epoch

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def size(self) -> int:
        """The number of values: n * side * side * c."""
        return prod(self.shape)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(patches an epoch, side, side, channels)."""
        return len(self._numbers), self.side, self.side, self.images[0].shape[2]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return Crops(self.images, self.side, self._numbers[rows])
        return self._cut(self._grid, np.asarray(rows))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(len(self))].astype(dtype or np.uint8, copy=False)

    def patches(self, seed: int, epoch: int, rows: np.ndarray) -> UInt8[np.ndarray, "k s s c"]:
        """The random patches of an epoch, at some indices.

        The result depends on the arguments alone, not on earlier calls.
        """
        drawn = self._drawn
        if drawn is None or drawn[0] != (seed, epoch):
            key = jax.random.fold_in(stream(seed, "crop"), epoch)
            bits = np.asarray(jax.random.bits(key, (len(self._image), 2), np.uint32), np.uint64)
            positions = (self._sizes[self._image] - self.side + 1).astype(np.uint64)
            # Multiply and shift: uniform in [0, positions) to within 2**-32 (Lemire 2019).
            self._drawn = drawn = (
                (seed, epoch),
                ((bits * positions) >> np.uint64(32)).astype(np.int64),
            )
        return self._cut(drawn[1], rows)

    def _cut(self, corners: np.ndarray, rows: np.ndarray) -> UInt8[np.ndarray, "k s s c"]:
        """Patches at some indices; `corners` holds (top, left) of every patch."""
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        numbers = self._numbers[rows]

        def cut(i: int) -> None:
            top, left = corners[numbers[i]]
            image = self.images[self._image[numbers[i]]]
            if isinstance(image, StoredImage):
                image.read_patch(int(top), int(left), out[i])
            else:
                out[i] = image[top : top + self.side, left : left + self.side]

        stored = isinstance(self.images[0], StoredImage)
        list((readers().map if stored else map)(cut, range(len(numbers))))
        return out
