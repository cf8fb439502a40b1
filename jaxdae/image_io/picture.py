"""An image file in memory, whatever its format."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt, UInt8


class Picture(NamedTuple):
    """The pixels of an image file, and what else is written back.

    Fields:
      pixels: uint8 or uint16 [h w c], upright; c is 1 for gray and 3 for RGB.
      alpha: the opacity, 255 for opaque; None if the file has no alpha channel.
      format: the file's, by Pillow's name.
      options: how the file is written again: colour profile, EXIF, resolution, compression.
    """

    pixels: UInt[np.ndarray, "h w c"]
    alpha: UInt8[np.ndarray, "h w"] | None = None
    format: str = "PNG"
    options: Mapping[str, Any] = {}
