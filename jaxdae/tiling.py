"""Images of any size for a network of a fixed size, and large images for a network of any size.

    restored = tiled(network, images, (28, 28))           # images [n h w c]
    restored = unfit(network(fit(images, (28, 28))), images.shape[1:3])
    for tile in windows(images.shape[1:3], model.reach, model.stride):
        restored[:, *tile.kept] = network(images[:, *tile.read])[:, *tile.inside]

It runs in NumPy, because JAX compiles a program for each size of image. For large images, use
`Grid`, `cut` and `Blend` on one row of tiles at a time: only a few rows are in memory. `windows`
are tiles without a seam: their results are those of the whole image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxdae.errors import InputError

Size = tuple[int, int]  # (height, width)
Images = Float[np.ndarray, "n height width channels"]
Tiles = Float[np.ndarray, "tiles height width channels"]
ALL = slice(None)
Weights = Float[np.ndarray, "positions tile"]
Box = tuple[slice, slice]  # rows and columns
WINDOW_PIXELS = 3_600_000  # of a window: `photo` needs 240 bytes for each, 140 in bfloat16


@dataclass(frozen=True)
class Grid:
    """The positions of tiles: evenly spaced from edge to edge of an image, with an overlap.

    Fields:
      shape: (height, width) of the image, at least the tile's.
      tile: (height, width) of a tile.
      overlap: the pixels that neighbours share along each axis, at least; None for half a tile.

    Raises:
      InputError: an overlap that is negative or not smaller than the tile, or an image that is
        smaller than the tile.
    """

    shape: Size
    tile: Size
    overlap: Size | None = None

    def __post_init__(self) -> None:
        for side, tile, overlap in zip(self.shape, self.tile, self._overlap, strict=True):
            if not 0 <= overlap < tile <= side:
                raise InputError(
                    f"tiles of {tile} pixels with an overlap of {overlap} do not cover {side} "
                    "pixels: choose an overlap from 0 to the tile's side - 1, and pad the image"
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
        """The weights of a tile's pixels: by row of tiles and pixel row, by column likewise.

        A pixel's weight is the product of the two. Over all tiles that cover an image pixel, the
        weights sum to 1. They fall as a squared sine towards an edge inside the image, but not
        towards the image's own edge.
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
    """Pads images by reflection to at least the tile's size, equally before and after."""
    edges = [_split(max(0, t - side)) for t, side in zip(tile, images.shape[1:3], strict=True)]
    if not any(map(any, edges)):
        return images
    return np.pad(images, ((0, 0), *edges, (0, 0)), mode="reflect")


def crop(images: Shaped[np.ndarray, "n h2 w2 c"], size: Size) -> Shaped[np.ndarray, "n h w c"]:
    """The centre of images, of (height, width). It undoes `pad`."""
    top, left = (_split(side - s)[0] for side, s in zip(images.shape[1:3], size, strict=True))
    return images[:, top : top + size[0], left : left + size[1]]


def cut(images: Shaped[np.ndarray, "n h w c"], grid: Grid, row: int) -> Shaped[np.ndarray, "..."]:
    """One row of tiles: [n * columns, *tile, c], image by image."""
    height, width = grid.tile
    strip = images[:, grid.rows[row] : grid.rows[row] + height]
    windows = np.lib.stride_tricks.sliding_window_view(strip, width, axis=2)[:, :, grid.columns]
    tiles = windows.transpose(0, 2, 1, 4, 3)  # n columns height width c
    return np.ascontiguousarray(tiles).reshape(-1, height, width, images.shape[3])


class Blend:
    """Blends tiles into images, one row of tiles after the other, from the top.

    Args:
      grid: the positions of the tiles.
      count: the number of images.
    """

    def __init__(self, grid: Grid, count: int = 1) -> None:
        self.grid, self.count = grid, count
        self.row = 0
        self._band: Images | None = None  # pixel rows that the next row of tiles also covers

    def add(self, tiles: Tiles) -> Images:
        """Adds the next row of tiles, as `cut` gives it; returns the pixel rows now complete."""
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
    """Applies a function to overlapping tiles of images, and blends the results.

    Args:
      apply: maps tiles (m, *tile, channels) to (m, *tile, out channels).
      images: of any height and width. Smaller images than a tile are padded by reflection.
      tile: (height, width) of a tile.
      overlap: the pixels that neighbours share along each axis, at least; None for half a tile.

    Returns:
      Float32, of the images' height and width.

    Raises:
      InputError: an overlap that is negative or not smaller than the tile.
    """
    padded = pad(images, tile)
    grid = Grid(padded.shape[1:3], tile, overlap)
    blend = Blend(grid, len(images))
    rows = [blend.add(apply(cut(padded, grid, row))) for row in range(len(grid.rows))]
    return crop(np.concatenate(rows, 1), images.shape[1:3])


class Window(NamedTuple):
    """A tile of an image, for a network whose outputs depend on nearby pixels only.

    Fields:
      read: the pixels that the network gets.
      kept: the pixels whose results are right, and of no other window.
      inside: the kept pixels, counted from the first pixel read.
    """

    read: Box
    kept: Box
    inside: Box


def windows(size: Size, reach: int, stride: int = 1, most: int = WINDOW_PIXELS) -> list[Window]:
    """Tiles of one shape that give the same results as the whole image, row by row.

    A window overlaps its neighbours by twice the reach. It begins at a multiple of the stride, and
    its sides leave the remainder of the image's: the network pads all windows alike, and the last
    ones where it pads the image. Their number is the one that reads the fewest pixels in all.

    Args:
      size: (height, width) of the image.
      reach, stride: the network's.
      most: the pixels of a window, at most, unless the reach needs more. A smaller image is one
        window.
    """
    plans = []  # pixels in all, pixels of a window, the windows of each axis
    for rows in _plans(size[0], reach, stride):
        for columns in _plans(size[1], reach, stride):
            pixels = rows[0] * columns[0]
            plans.append((pixels * len(rows[1]) * len(columns[1]), pixels, rows, columns))
            if pixels <= most:
                break
    small = [plan for plan in plans if plan[1] <= most]
    _, _, *axes = min(small) if small else min(plans, key=lambda plan: plan[1])
    down, along = (_parts(side, *axis, reach) for side, axis in zip(size, axes, strict=True))
    return [
        Window((r, c), (r_kept, c_kept), (r_inside, c_inside))
        for r, r_kept, r_inside in down
        for c, c_kept, c_inside in along
    ]


def _plans(side: int, reach: int, stride: int) -> Iterator[tuple[int, list[int]]]:
    """The length of the windows along an axis and where they begin: one window, two, and so on.

    None is shorter than four times the reach: less than half of its results would be kept.
    """
    yield side, [0]
    shortest, count, length = 4 * reach + stride, 2, side
    while length > shortest + stride:
        shared = -(-(side + 2 * reach * (count - 1)) // count)  # all windows have the same
        length = max(shared, shortest)
        length += (side - length) % stride
        while (length - 2 * reach) // stride * stride * (count - 1) < side - length:
            length += stride
        if length >= side:
            return
        steps = (side - length) // stride
        yield length, [steps * i // (count - 1) * stride for i in range(count)]
        count += 1


def _parts(
    side: int, length: int, starts: list[int], reach: int
) -> list[tuple[slice, slice, slice]]:
    """The pixels of each window along an axis: read, kept and inside."""
    middles = [(start + length + following) // 2 for start, following in pairwise(starts)]
    return [
        (slice(start, start + length), slice(low, high), slice(low - start, high - start))
        for start, low, high in zip(starts, [0, *middles], [*middles, side], strict=True)
    ]


def fit(images: Images, size: Size) -> Images:
    """Scales images to the largest size that fits into (height, width), and centres them there.

    The aspect ratio is kept, up to rounding to pixels. Scaling is linear, without aliasing. The
    rest is filled with one colour for each image, the median of its outermost pixels.

    Returns:
      Float32, [n height width c].
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


def unfit(images: Images, size: Size, rows: slice = ALL) -> Images:
    """Undoes `fit`: cuts out the centre, and scales it to (height, width).

    Args:
      size: the size of the images before `fit`.
      rows: the pixel rows to compute, because the result can be far larger than the images.

    Returns:
      Float32, [n height width c], or only `rows` of it.
    """
    return resize(crop(images, _inner(size, images.shape[1:3])), size, rows)


def resize(images: Images, size: Size, rows: slice = ALL) -> Images:
    """Scales images to (height, width): linear interpolation, averages where they shrink.

    It equals `jax.image.resize(..., "linear")`.

    Args:
      rows: the pixel rows of the result to compute.

    Returns:
      Float32, [n height width c], or only `rows` of it.
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
    """The matrix that resamples a line with a triangle kernel; None if the length stays.

    The triangle is two pixels wide, of the old line or the new one, whichever pixels are larger.
    """
    if old == new:
        return None
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(centres[:, None] - np.arange(old)) / max(1, old / new)
    kernel = np.maximum(0, 1 - distance)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def _inner(size: Size, outer: Size) -> Size:
    """The largest (height, width) inside `outer` with the aspect ratio of `size`."""
    scale = min(outer[0] / size[0], outer[1] / size[1])
    height, width = (
        min(o, max(1, round(side * scale))) for o, side in zip(outer, size, strict=True)
    )
    return height, width


def _split(total: int) -> tuple[int, int]:
    """Pixels before and after, as equal as possible."""
    return total // 2, total - total // 2
