"""Converts images to the network's inputs and back: channels, sizes and number types."""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from jaxdae.errors import InputError
from jaxdae.image_io.pillow import LUMA

BAND = 256  # rows of a large image that are converted at once
ALL = slice(None)
UINT8 = np.dtype(np.uint8)
Images = Shaped[np.ndarray, "n height width channels"]
Values = Float[np.ndarray, "n height width channels"]


class Rules:
    """The rules by which images of any size and number of channels become a network's inputs.

    Args:
      model: the network.
      name: of the network in messages.
      sizes: how to treat images of another size than the network's.
    """

    def __init__(self, model: Any, name: str, sizes: Literal["refuse", "fit", "tile"]) -> None:
        self.size: Any = None if model.image_size is None else tuple(model.image_size)
        self.inputs, self.outputs = model.channels, model.outputs
        self.reach, self.stride = model.reach, model.stride
        self.name, self.sizes = name, sizes
        if self.size is None and sizes != "refuse":
            raise InputError(f"--{sizes} has no use: {name} takes images of any size: leave it out")

    def channels(self, channels: int) -> int:
        """The number of channels of the result, from the number of channels of an image.

        Raises:
          InputError: the network takes no such images.
        """
        if channels == self.inputs:
            return self.outputs
        if {channels, self.inputs, self.outputs} <= {1, 3}:
            return max(channels, self.outputs) if self.inputs == 1 else channels
        rule = f"has {channels} channels, but {self.name} takes {self.inputs}"
        raise InputError(f"{rule}: give an image with that many, or choose another --model")

    def check_size(self, height: int, width: int) -> None:
        """Raises an `InputError` if the size is refused."""
        if self.size and (height, width) != self.size and self.sizes == "refuse":
            raise InputError(
                f"is {width}x{height}, but {self.name} takes {self.size[1]}x{self.size[0]}: give "
                "--tile to denoise it in overlapping tiles, or --fit to scale it to that size and "
                "back"
            )

    def to_inputs(self, x: Values) -> Values:
        """Images as the network's inputs. If each channel is denoised alone, each is an input."""
        channels = x.shape[3]
        if channels == self.inputs:
            return x
        if self.inputs == 1 == self.outputs:
            return np.moveaxis(x, 3, 1).reshape(-1, *x.shape[1:3], 1)
        if self.inputs == 1:
            return x @ np.array(LUMA, np.float32)[:, None]
        return np.repeat(x, self.inputs, 3)

    def from_outputs(self, x: Values, channels: int) -> Values:
        """The network's outputs as images.

        Args:
          channels: of the images that the inputs came from.
        """
        if channels == self.inputs or self.inputs != self.outputs:
            return x
        if self.inputs == 1:
            return np.moveaxis(x.reshape(-1, channels, *x.shape[1:3]), 1, 3)
        return x.mean(3, keepdims=True)


class Work:
    """Images of one size that are being denoised.

    Args:
      images: uint8, uint16, or floating point in [0, 1].
      dtype: the type of the result.
      blend: the share of the images in the result.

    Raises:
      InputError: the rules refuse them.
    """

    def __init__(self, rules: Rules, images: Images, dtype: np.dtype, blend: float = 0) -> None:
        from jaxdae import tiling

        self.rules, self.images, self.dtype, self.blend = rules, images, dtype, blend
        self.count, height, width, self.channels = images.shape
        rules.check_size(height, width)
        channels = rules.channels(self.channels)
        other = rules.size is not None and (height, width) != rules.size
        self.tiled, self.fitted = other and rules.sizes == "tile", other and rules.sizes == "fit"
        shape = (height, width)
        self.shape = (self.count, height, width, channels)  # of the result
        self._windows = [tiling.Window((ALL, ALL), (ALL, ALL), (ALL, ALL))]
        self._source = images
        if self.tiled:
            self._source = tiling.pad(images, rules.size)
            self._grid = tiling.Grid(self._source.shape[1:3], rules.size)
            self._blend = tiling.Blend(self._grid, self.count)
            shape = self._grid.shape
            self._row = 0
        elif rules.reach is not None:
            self._windows = tiling.windows(shape, rules.reach, rules.stride)
        self.groups = len(self._grid.rows) if self.tiled else len(self._windows)
        self.result = np.empty((self.count, *shape, channels), dtype)
        self.left = self.groups

    def inputs(self) -> Iterator[Values]:
        """The inputs of the network, in groups of one size."""
        from jaxdae import tiling

        for group in range(self.groups):
            if self.tiled:
                images = to_float(tiling.cut(self._source, self._grid, group))
            else:
                images = to_float(self._source[:, *self._windows[group].read])
                images = tiling.fit(images, self.rules.size) if self.fitted else images
            yield self.rules.to_inputs(images)

    def take(self, outputs: Values) -> None:
        """Takes the outputs of the next group. `result` is complete when `left` is 0."""
        from jaxdae import tiling

        outputs = self.rules.from_outputs(outputs, self.channels)
        size = self.images.shape[1:3]
        if self.tiled:
            complete = self._blend.add(outputs)
            rows = slice(self._row, self._row + complete.shape[1])
            self._store(complete, rows)
            self._row = rows.stop
        elif self.fitted:
            for rows in bands(size[0]):
                self._store(tiling.unfit(outputs, size, rows), rows)
        else:
            window = self._windows[self.groups - self.left]
            kept = outputs[:, *window.inside]
            top = window.kept[0].start or 0
            for rows in bands(kept.shape[1]):
                part = kept[:, rows]
                below = slice(top + rows.start, top + rows.start + part.shape[1])
                self._store(part, below, window.kept[1])
        self.left -= 1
        if not self.left:
            self.result = tiling.crop(self.result, size)

    def _store(self, images: Values, rows: slice, columns: slice = ALL) -> None:
        """Writes a part of the result."""
        if self.blend:
            source = to_float(self._source[:, rows, columns])
            images = (1 - self.blend) * np.clip(images, 0, 1) + self.blend * source
        self.result[:, rows, columns] = from_float(images, self.dtype)


def to_float(images: Images) -> Values:
    """Images as float32 in [0, 1]."""
    if images.dtype.kind == "f":
        return images.astype(np.float32, copy=False)
    return images.astype(np.float32) / np.float32(np.iinfo(images.dtype).max)


def from_float(images: Values, dtype: np.dtype) -> Images:
    """Images in [0, 1] as another type; clipped, and rounded for integers."""
    images = np.clip(images, 0, 1)
    if dtype.kind == "f":
        return images.astype(dtype)
    return np.rint(images * np.float32(np.iinfo(dtype).max)).astype(dtype)


def to_uint8(image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
    """An image as uint8, rounded if it has more than 8 bits."""
    if image.dtype == UINT8:
        return image
    rounded = np.empty(image.shape, UINT8)
    for rows in bands(len(image)):
        rounded[rows] = from_float(to_float(image[rows]), UINT8)
    return rounded


def is_gray(images: Images) -> bool:
    """True if all channels of all images are equal."""
    first = images[..., :1]
    return all((images[:, rows] == first[:, rows]).all() for rows in bands(images.shape[1]))


def bands(height: int) -> Iterator[slice]:
    """The rows of an image in bands, so that the float32 copy of a band needs little memory."""
    return (slice(first, first + BAND) for first in range(0, height, BAND))


def add_noise(
    images: Images, name: str, first: int, sigma: float, mean: float, seed: int
) -> Values:
    """Adds noise N(mean, sigma^2) to images in [0, 1], and clips them.

    The noise of an image depends only on its name, its index in its stack and the seed.

    Args:
      name: path of the file's result, relative to --out.
      first: index of the first image in its stack.
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


def noise_mean(card: Mapping[str, Any], name: str, takes_noise_level: bool = False) -> float:
    """The mean of the noise that a model was trained to remove, from its model card.

    It is 0 for a model that takes a noise level and was trained to remove something else.

    Raises:
      InputError: the model takes none, and was not trained to remove Gaussian noise.
    """
    recipe = card.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    mean, corruption = recipe.get("mean"), recipe.get("corruption", "gaussian")
    if corruption != "gaussian" or not isinstance(mean, int | float):
        if takes_noise_level:
            return 0.0
        removes = corruption if corruption != "gaussian" else "something else"
        raise InputError(
            f"--noise-sigma adds gaussian noise, but --model {name} was trained to remove "
            f"{removes}: leave it out, or choose another --model"
        )
    return float(mean)
