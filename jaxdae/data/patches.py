"""Patches of pictures of any size, drawn by key."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from jaxdae.data.decoded_cache import Pixels, StoredPicture, readers
from jaxdae.random import stream


class Crops:
    """Square patches of pictures of any size, as an array uint8 [n side side c].

    In each epoch a picture gives as many patches as fit into it without overlap, from random places
    that are a pure function of (seed, epoch, patch): `patches`. Indexing, by an array of numbers,
    takes them from those that do not overlap instead; by a slice, it leaves some patches out.

    Args:
      pictures: each at least `side` in height and width, of as many channels.
      side: of a patch, in pixels.
      numbers: which patches of all; every one if not given.
    """

    def __init__(
        self,
        pictures: Sequence[Pixels | StoredPicture],
        side: int,
        numbers: np.ndarray | None = None,
    ) -> None:
        self.pictures, self.side = pictures, side
        self._sides = np.array([picture.shape[:2] for picture in pictures], np.int64)
        fit = self._sides // side
        self.counts = fit.prod(1)
        self._picture = np.repeat(np.arange(len(pictures)), self.counts)
        place = np.arange(len(self._picture)) - np.repeat(
            np.cumsum(self.counts) - self.counts, self.counts
        )
        columns = fit[self._picture, 1]
        self._grid = np.stack([place // columns, place % columns], 1) * side
        self._numbers = np.arange(len(self._picture)) if numbers is None else numbers
        self._drawn: tuple[Any, np.ndarray] | None = None

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def size(self) -> int:
        """Values in the patches of an epoch."""
        return prod(self.shape)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(patches of an epoch, side, side, channels)."""
        return len(self._numbers), self.side, self.side, self.pictures[0].shape[2]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return Crops(self.pictures, self.side, self._numbers[rows])
        return self._cut(self._grid, np.asarray(rows))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(len(self))].astype(dtype or np.uint8, copy=False)

    def patches(self, seed: int, epoch: int, rows: np.ndarray) -> UInt8[np.ndarray, "k s s c"]:
        """Patches of an epoch, by number: the same for the same arguments, whatever came before."""
        drawn = self._drawn
        if drawn is None or drawn[0] != (seed, epoch):
            key = jax.random.fold_in(stream(seed, "crop"), epoch)
            bits = np.asarray(jax.random.bits(key, (len(self._picture), 2), np.uint32), np.uint64)
            room = (self._sides[self._picture] - self.side + 1).astype(np.uint64)
            self._drawn = drawn = (seed, epoch), ((bits * room) >> np.uint64(32)).astype(np.int64)
        return self._cut(drawn[1], rows)

    def _cut(self, places: np.ndarray, rows: np.ndarray) -> UInt8[np.ndarray, "k s s c"]:
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        numbers = self._numbers[rows]

        def cut(i: int) -> None:
            top, left = places[numbers[i]]
            picture = self.pictures[self._picture[numbers[i]]]
            if isinstance(picture, StoredPicture):
                picture.patch(int(top), int(left), out[i])
            else:
                out[i] = picture[top : top + self.side, left : left + self.side]

        stored = isinstance(self.pictures[0], StoredPicture)
        list((readers().map if stored else map)(cut, range(len(numbers))))
        return out
