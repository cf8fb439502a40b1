"""Images of other sizes than a network takes: in overlapping tiles, or scaled to fit.

    restored = tiled(network, images, (28, 28))           # [n h w c] of any height and width
    restored = unfit(network(fit(images, (28, 28))), images.shape[1:3])

All of it is arithmetic on NumPy arrays in the host's memory, channels last: an image of another
size is no other program to compile. Large images go through `Grid`, `cut` and `Blend` one row of
tiles at a time, in memory for a few of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxdae.errors import InputError

Size = tuple[int, int]
Images = Float[np.ndarray, "n height width channels"]
Tiles = Float[np.ndarray, "tiles height width channels"]
EVERY = slice(None)
Weights = Float[np.ndarray, "positions tile"]


@dataclass(frozen=True)
class Grid:
    """Where the tiles of an image lie: evenly, from edge to edge, each over its neighbours.

    Fields:
      shape: (height, width) of the image, none less than the tile's.
      tile: (height, width) of a tile.
      overlap: how many pixels neighbours share along each axis, at least; half a tile if None.
    """

    shape: Size
    tile: Size
    overlap: Size | None = None

    def __post_init__(self) -> None:
        for side, tile, overlap in zip(self.shape, self.tile, self._overlap, strict=True):
            if not 0 <= overlap < tile <= side:
                raise InputError(
                    f"tiles of {tile} pixels with an overlap of {overlap} do not cover {side}: "
                    "choose an overlap of at least 0 and less than the tile, in a padded image"
                )

    @property
    def _overlap(self) -> Size:
        return self.overlap or (self.tile[0] // 2, self.tile[1] // 2)

    @cached_property
    def rows(self) -> Int[np.ndarray, " rows"]:
        """The first pixel row of each row of tiles."""
        return _starts(self.shape[0], self.tile[0], self._overlap[0])

    @cached_property
    def columns(self) -> Int[np.ndarray, " columns"]:
        """The first pixel column of each column of tiles."""
        return _starts(self.shape[1], self.tile[1], self._overlap[1])

    @cached_property
    def weights(self) -> tuple[Weights, Weights]:
        """What a tile's pixels count for, by their row and by their column in it.

        The product of the two, over all tiles that cover a pixel, sums to one. They fall smoothly
        to the edge that lies on a neighbour (a squared sine), and not to the image's own.
        """
        sides = zip((self.rows, self.columns), self.tile, self.shape, strict=True)
        rows, columns = (_weights(*side) for side in sides)
        return rows, columns


def _starts(side: int, tile: int, overlap: int) -> Int[np.ndarray, " positions"]:
    count = 1 + -(-(side - tile) // (tile - overlap))
    return np.rint(np.linspace(0, side - tile, count)).astype(int)


def _weights(starts: Int[np.ndarray, " positions"], tile: int, side: int) -> Weights:
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    covered = starts[:, None] + np.arange(tile)
    total = np.bincount(covered.ravel(), np.tile(window, len(starts)), minlength=side)
    return window / total[covered]


def pad(images: Shaped[np.ndarray, "n h w c"], tile: Size) -> Shaped[np.ndarray, "n h2 w2 c"]:
    """Images with no side shorter than the tile's: continued by reflection on all sides."""
    edges = [_split(max(0, t - side)) for t, side in zip(tile, images.shape[1:3], strict=True)]
    return (
        np.pad(images, ((0, 0), *edges, (0, 0)), mode="reflect") if any(map(any, edges)) else images
    )


def crop(images: Shaped[np.ndarray, "n h2 w2 c"], size: Size) -> Shaped[np.ndarray, "n h w c"]:
    """The middle of images, of (height, width): what `pad` was given of what it returned."""
    top, left = (_split(side - s)[0] for side, s in zip(images.shape[1:3], size, strict=True))
    return images[:, top : top + size[0], left : left + size[1]]


def cut(images: Shaped[np.ndarray, "n h w c"], grid: Grid, row: int) -> Shaped[np.ndarray, "..."]:
    """One row of tiles of images: [n * columns, *tile, c], the columns of an image together."""
    height, width = grid.tile
    strip = images[:, grid.rows[row] : grid.rows[row] + height]
    windows = np.lib.stride_tricks.sliding_window_view(strip, width, axis=2)[:, :, grid.columns]
    tiles = windows.transpose(0, 2, 1, 4, 3)  # n columns height width c
    return np.ascontiguousarray(tiles).reshape(-1, height, width, images.shape[3])


class Blend:
    """Puts the tiles of `count` images together again, given row by row of them, from the top."""

    def __init__(self, grid: Grid, count: int = 1) -> None:
        self.grid, self.count = grid, count
        self.row = 0
        self._band: Images | None = None  # pixel rows that more tiles may cover, from this one's

    def add(self, tiles: Tiles) -> Images:
        """Takes the next row of tiles, and returns the pixel rows that are complete by it."""
        grid, (height, width) = self.grid, self.grid.tile
        down, along = (weights.astype(np.float32) for weights in grid.weights)
        tiles = tiles.reshape(self.count, len(grid.columns), height, width, -1)
        band = np.zeros((self.count, height, grid.shape[1], tiles.shape[-1]), np.float32)
        for i, first in enumerate(grid.columns):
            band[:, :, first : first + width] += along[i][:, None] * tiles[:, i]
        band *= down[self.row][:, None, None]
        if self._band is not None:
            band[:, : self._band.shape[1]] += self._band
        first, self.row = grid.rows[self.row], self.row + 1
        if self.row == len(grid.rows):
            return band
        complete = grid.rows[self.row] - first
        self._band = band[:, complete:]
        return band[:, :complete]


def tiled(
    apply: Callable[[Tiles], Tiles], images: Images, tile: Size, overlap: Size | None = None
) -> Images:
    """Restores images of any size with a function of tiles, whose results are blended.

    Args:
      apply: maps (m, *tile, channels) to (m, *tile, other channels).
      images: those shorter than a tile are continued by reflection for it.
      overlap: how many pixels neighbours share along each axis, at least; half a tile if None.

    Returns:
      Float32, of the images' height and width.

    Raises:
      InputError: an overlap that is negative or as large as a tile.
    """
    padded = pad(images, tile)
    grid = Grid(padded.shape[1:3], tile, overlap)
    blend = Blend(grid, len(images))
    rows = [blend.add(apply(cut(padded, grid, row))) for row in range(len(grid.rows))]
    return crop(np.concatenate(rows, 1), images.shape[1:3])


def fit(images: Images, size: Size) -> Images:
    """Images scaled to the largest that fit into (height, width), in its middle, float32.

    The ratio of their sides is kept, to a pixel. Scaling is linear, without aliasing. What is left
    at the sides has one colour for each image: the median of its outermost pixels.
    """
    inner = _inner(images.shape[1:3], size)
    scaled = resize(images, inner)
    n, channels = len(images), images.shape[3]
    lines = (images[:, [0, -1]], images[:, :, [0, -1]])
    edge = np.concatenate([line.reshape(n, -1, channels) for line in lines], axis=1)
    colour = np.median(edge, axis=1)[:, None, None].astype(np.float32)
    fitted = np.broadcast_to(colour, (n, *size, channels)).copy()
    crop(fitted, inner)[...] = scaled
    return fitted


def unfit(images: Images, size: Size, rows: slice = EVERY) -> Images:
    """What `fit` put in the middle, scaled back to (height, width), float32.

    Args:
      rows: only these of the result, which can be far larger than the images.
    """
    return resize(crop(images, _inner(size, images.shape[1:3])), size, rows)


def resize(images: Images, size: Size, rows: slice = EVERY) -> Images:
    """Images at (height, width), float32: linear interpolation, averages where they shrink.

    As `jax.image.resize(..., "linear")`, which has the same kernel. `rows`: only these of it.
    """
    down, along = (_resampling(old, new) for old, new in zip(images.shape[1:3], size, strict=True))
    n, _, width, channels = images.shape
    if down is None:
        images = images[:, rows]
    else:
        down = down[rows]
        images = down @ images.reshape(n, -1, width * channels).astype(np.float32, copy=False)
        images = images.reshape(n, len(down), width, channels)
    if along is not None:
        images = np.matmul(along, images)
    return images.astype(np.float32, copy=False)


def _resampling(old: int, new: int) -> Float[np.ndarray, "new old"] | None:
    """The matrix that resamples a line with a triangle, as wide as the pixels of the coarser."""
    if old == new:
        return None
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(centres[:, None] - np.arange(old)) / max(1, old / new)
    kernel = np.maximum(0, 1 - distance)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def _inner(size: Size, outer: Size) -> Size:
    """The largest (height, width) inside `outer` with the ratio of `size`, to a pixel."""
    scale = min(outer[0] / size[0], outer[1] / size[1])
    height, width = (
        min(o, max(1, round(side * scale))) for o, side in zip(outer, size, strict=True)
    )
    return height, width


def _split(total: int) -> tuple[int, int]:
    """Half before, the rest after."""
    return total // 2, total - total // 2
