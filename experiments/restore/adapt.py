"""Images into what a network takes, and back: colours, sizes, depths."""

import hashlib
import unicodedata
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from jaxdae.errors import InputError
from jaxdae.image_io.pillow import LUMA

BAND = 256  # rows of a large image at a time


CACHED_PIXELS = 64 * 28 * 28  # what a CPU's caches hold of a network's work


BYTES = np.dtype(np.uint8)


Images = Shaped[np.ndarray, "n height width channels"]


Values = Float[np.ndarray, "n height width channels"]


# Images into what a network takes, and back
class Rules:
    """How images of any size and colour become what a network takes.

    Args:
      model: the network.
      name: what the user calls it.
      sizes: what is done with images of another size.
    """

    def __init__(self, model: Any, name: str, sizes: Literal["refuse", "fit", "tile"]) -> None:
        height, width, self.inputs = model.image_shape
        self.size = height, width
        self.outputs = model.out_channels or self.inputs
        self.name, self.sizes = name, sizes

    def channels(self, channels: int) -> int:
        """The channels of the result for an image of so many.

        Raises:
          InputError: the network makes nothing of it.
        """
        if channels == self.inputs:
            return self.outputs
        if {channels, self.inputs, self.outputs} <= {1, 3}:
            return max(channels, self.outputs) if self.inputs == 1 else channels
        rule = f"has {channels} channels, and {self.name} takes {self.inputs}"
        raise InputError(f"{rule}: give one with that many, or another --model")

    def check_size(self, height: int, width: int) -> None:
        """Raises an `InputError` if images of another size are to be refused."""
        if (height, width) != self.size and self.sizes == "refuse":
            raise InputError(
                f"is {width}x{height}, and {self.name} takes {self.size[1]}x{self.size[0]}: --tile "
                "restores it in overlapping tiles, --fit scales it to that size and back"
            )

    def colours_in(self, x: Values) -> Values:
        """Images as the network's inputs, the channels of an image one after the other if apart."""
        channels = x.shape[3]
        if channels == self.inputs:
            return x
        if self.inputs == 1 == self.outputs:
            return np.moveaxis(x, 3, 1).reshape(-1, *x.shape[1:3], 1)
        if self.inputs == 1:
            return x @ np.array(LUMA, np.float32)[:, None]
        return np.repeat(x, self.inputs, 3)

    def colours_out(self, x: Values, channels: int) -> Values:
        """The network's results for images of so many channels, as images."""
        if channels == self.inputs or self.inputs != self.outputs:
            return x
        if self.inputs == 1:
            return np.moveaxis(x.reshape(-1, channels, *x.shape[1:3]), 1, 3)
        return x.mean(3, keepdims=True)


class Work:
    """Images of one size on their way through a network.

    Args:
      images: uint8, uint16, or floating point in [0, 1].
      dtype: the type of the result.

    Raises:
      InputError: the rules say no.
    """

    def __init__(self, rules: Rules, images: Images, dtype: np.dtype) -> None:
        from jaxdae import tiling

        self.rules, self.images, self.dtype = rules, images, dtype
        self.count, height, width, self.channels = images.shape
        rules.check_size(height, width)
        channels = rules.channels(self.channels)
        other = (height, width) != rules.size
        self.tiled, self.fitted = other and rules.sizes == "tile", other and rules.sizes == "fit"
        shape = (height, width)
        self.shape = (self.count, height, width, channels)  # of the result
        self.groups = 1
        if self.tiled:
            self._padded = tiling.pad(images, rules.size)
            self._grid = tiling.Grid(self._padded.shape[1:3], rules.size)
            self._blend = tiling.Blend(self._grid, self.count)
            self.groups, shape = len(self._grid.rows), self._grid.shape
            self._row = 0
        self.result = np.empty((self.count, *shape, channels), dtype)
        self.left = self.groups

    def inputs(self) -> Iterator[Values]:
        """What the network is to be given, group by group."""
        from jaxdae import tiling

        for row in range(self.groups):
            if self.tiled:
                images = to_float(tiling.cut(self._padded, self._grid, row))
            else:
                images = to_float(self.images)
                images = tiling.fit(images, self.rules.size) if self.fitted else images
            yield self.rules.colours_in(images)

    def take(self, outputs: Values) -> None:
        """Takes what the network made of the next group."""
        from jaxdae import tiling

        outputs = self.rules.colours_out(outputs, self.channels)
        size = self.images.shape[1:3]
        if self.tiled:
            complete = self._blend.add(outputs)
            rows = slice(self._row, self._row + complete.shape[1])
            self.result[:, rows] = from_float(complete, self.dtype)
            self._row = rows.stop
        else:
            for rows in bands(size[0]):
                part = tiling.unfit(outputs, size, rows) if self.fitted else outputs[:, rows]
                self.result[:, rows] = from_float(part, self.dtype)
        self.left -= 1
        if not self.left:
            self.result = tiling.crop(self.result, size)


def to_float(images: Images) -> Values:
    """Images in [0, 1], float32."""
    if images.dtype.kind == "f":
        return images.astype(np.float32, copy=False)
    return images.astype(np.float32) / np.float32(np.iinfo(images.dtype).max)


def from_float(images: Values, dtype: np.dtype) -> Images:
    """Images in [0, 1] as another type, rounded if it is one of whole numbers."""
    images = np.clip(images, 0, 1)
    if dtype.kind == "f":
        return images.astype(dtype)
    return np.rint(images * np.float32(np.iinfo(dtype).max)).astype(dtype)


def to_bytes(image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
    """An image as uint8, rounded if it is of more than 8 bits."""
    if image.dtype == BYTES:
        return image
    rounded = np.empty(image.shape, BYTES)
    for rows in bands(len(image)):
        rounded[rows] = from_float(to_float(image[rows]), BYTES)
    return rounded


def bands(height: int) -> Iterator[slice]:
    """The rows of an image, some at a time: what is float32 then takes little memory."""
    return (slice(first, first + BAND) for first in range(0, height, BAND))


def add_noise(
    images: Images, name: str, first: int, sigma: float, mean: float, seed: int
) -> Values:
    """Images in [0, 1] with noise N(mean, sigma^2), clipped.

    The noise of an image depends on its path below --out, its place in its stack and the seed, and
    on no other image.
    """
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(text).digest()
    noisy = np.array(to_float(images), order="C", copy=images.dtype.kind == "f" or None)
    for i, image in enumerate(noisy, first):
        rng = np.random.default_rng([seed, i, *digest])
        for rows in bands(len(image)):
            part = image[rows]
            noise = rng.standard_normal(part.shape, np.float32)
            part += noise * np.float32(sigma) + np.float32(mean)
            np.clip(part, 0, 1, out=part)
    return noisy
