"""Random patches of images of any size."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64, UInt8

from jaxdae.data.decoded_cache import Pixels, StoredImage, readers
from jaxdae.random import stream


def texture(patches: UInt8[np.ndarray, "k s s c"]) -> Int64[np.ndarray, " k"]:
    """How much neighbours differ in each patch: sums of differences, of every other pixel."""
    some = patches[:, ::2, ::2].astype(np.int16)
    return sum(abs(np.diff(some, axis=axis)).sum((1, 2, 3), np.int64) for axis in (1, 2))


def turned(patch: UInt8[np.ndarray, "s s c"], way: int) -> UInt8[np.ndarray, "s s c"]:
    """A patch mirrored and turned in one of eight ways; 0 leaves it."""
    patch = patch[:, ::-1] if way & 4 else patch
    return np.rot90(patch, way & 3)


class Crops:
    """Square patches of images of any size, used as an array uint8 [n side side c].

    An image gives as many patches an epoch as fit into it side by side. `patches` cuts them at
    random positions, a pure function of (seed, epoch, patch). Indexing with an array of indices
    cuts them side by side instead, without overlap. A slice gives `Crops` with fewer patches.

    Args:
      images: each at least `side` pixels high and wide, all of the same number of channels.
      side: of a patch, in pixels.
      numbers: the patches to use, by their numbers among all patches; None for all.
      turns: `patches` mirrors and turns each patch at random: one of eight ways.
      candidates: `patches` draws so many positions for each patch, at least 1, and takes the one
        with the most texture, the largest mean difference of neighbours. Large smooth areas, such
        as skies, have little to learn from.
      judged_by: the patches whose texture decides, of the same places in other images: of pairs,
        the clean ones. These patches' own if not given.

    Fields:
      counts: the number of patches of each image, in an epoch.
    """

    def __init__(
        self,
        images: Sequence[Pixels | StoredImage],
        side: int,
        numbers: np.ndarray | None = None,
        *,
        turns: bool = False,
        candidates: int = 1,
        judged_by: "Crops | None" = None,
    ) -> None:
        self.images, self.side = images, side
        self.turns, self.candidates, self.judged_by = turns, candidates, judged_by
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
        self._drawn: tuple[Any, list[np.ndarray], np.ndarray | None] | None = None  # last epoch's

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
            return self.replace(numbers=self._numbers[rows])
        numbers = self._numbers[np.asarray(rows)]
        return self._cut(self._grid[numbers], numbers)

    def replace(self, **values: Any) -> "Crops":
        """The same patches, with other values of some arguments."""
        kept = {name: getattr(self, name) for name in ("turns", "candidates", "judged_by")}
        return Crops(self.images, self.side, **{"numbers": self._numbers, **kept, **values})

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(len(self))].astype(dtype or np.uint8, copy=False)

    def patches(self, seed: int, epoch: int, rows: np.ndarray) -> UInt8[np.ndarray, "k s s c"]:
        """The random patches of an epoch, at some indices.

        The result depends on the arguments alone, not on earlier calls.
        """
        if self._drawn is None or self._drawn[0] != (seed, epoch):
            self._drawn = (seed, epoch), self._corners(seed, epoch), self._ways(seed, epoch)
        _, drawn, ways = self._drawn
        numbers = self._numbers[rows]
        corners, *others = (each[numbers] for each in drawn)
        if others:
            judge = self.judged_by or self
            most = texture(judge._cut(corners, numbers))
            for other in others:
                found = texture(judge._cut(other, numbers))
                corners = np.where((found > most)[:, None], other, corners)
                most = np.maximum(found, most)
        out = self._cut(corners, numbers)
        if ways is not None:
            for patch, way in zip(out, ways[numbers], strict=True):
                patch[...] = turned(patch, int(way)).copy()
        return out

    def _corners(self, seed: int, epoch: int) -> list[np.ndarray]:
        """The (top, left) of every patch of an epoch, for each candidate."""
        key = jax.random.fold_in(stream(seed, "crop"), epoch)
        positions = (self._sizes[self._image] - self.side + 1).astype(np.uint64)
        corners = []
        for i in range(self.candidates):
            key = jax.random.fold_in(key, i) if i else key
            bits = np.asarray(jax.random.bits(key, (len(self._image), 2), np.uint32), np.uint64)
            # Multiply and shift: uniform in [0, positions) to within 2**-32 (Lemire 2019).
            corners.append(((bits * positions) >> np.uint64(32)).astype(np.int64))
        return corners

    def _ways(self, seed: int, epoch: int) -> np.ndarray | None:
        """Which of the eight ways every patch of an epoch is turned, if they are."""
        if not self.turns:
            return None
        key = jax.random.fold_in(stream(seed, "turn"), epoch)
        return np.asarray(jax.random.bits(key, (len(self._image),), np.uint8)) % 8

    def _cut(self, corners: np.ndarray, numbers: np.ndarray) -> UInt8[np.ndarray, "k s s c"]:
        """Patches by their numbers among all; `corners` holds (top, left) of each."""
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def cut(i: int) -> None:
            top, left = corners[i]
            image = self.images[self._image[numbers[i]]]
            if isinstance(image, StoredImage):
                image.read_patch(int(top), int(left), out[i])
            else:
                out[i] = image[top : top + self.side, left : left + self.side]

        stored = isinstance(self.images[0], StoredImage)
        list((readers().map if stored else map)(cut, range(len(numbers))))
        return out
