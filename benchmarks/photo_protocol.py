"""How denoisers of photographs are compared: the test sets, their noise, and what is measured.

White Gaussian noise of standard deviation sigma / 255 is added to images in [0, 1] and not clipped.
Outputs are clipped and rounded to 8 bits. Images are measured whole, without leaving out a border,
and figures are means over the images of a set. This is the protocol of DnCNN, FFDNet and DRUNet.

The noise of an image depends on its set and its name only, up to the factor sigma: every method
gets the same noisy images, in any order and on any machine.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from jaxdae import metrics
from jaxdae.errors import InputError, show
from jaxdae.image_io.pillow import find, read_uint8

Image = Float[np.ndarray, "height width channels"]
Bytes = UInt8[np.ndarray, "height width channels"]

REAL = "CC15"  # pairs of an image with camera noise and the mean of many shots
CLEAN, NOISY = "_mean", "_real"  # how the names of such a pair end


class TestSet(NamedTuple):
    """A set of test images.

    Fields:
      channels: 1 or 3.
      images: the number in the whole set.
    """

    channels: int
    images: int


SETS = {
    "Set12": TestSet(1, 12),
    "BSD68": TestSet(1, 68),
    "CBSD68": TestSet(3, 68),
    "Kodak24": TestSet(3, 24),
    "McMaster": TestSet(3, 18),
    REAL: TestSet(3, 15),
}


class Case(NamedTuple):
    """A test set with its noise.

    Fields:
      name: of the set.
      sigma: the standard deviation of the noise in 8-bit levels; 0 for the clean images; None for
        the camera's noise of `REAL`.
    """

    name: str
    sigma: float | None

    @property
    def key(self) -> str:
        """Such as Set12-25, or CC15."""
        return self.name if self.sigma is None else f"{self.name}-{self.sigma:g}"


class Photo(NamedTuple):
    """A test image.

    Fields:
      name: its file's name without the suffix; for `REAL` without `CLEAN`, too.
      clean: 8 bits.
      noisy: float32, nominally in [0, 1].
    """

    name: str
    clean: Bytes
    noisy: Image


def names(root: Path, name: str) -> list[str]:
    """The images of a set in the folder `root`, sorted.

    Raises:
      InputError: there are none.
    """
    stems = [path.stem for _, path in find(root / name)]
    if name == REAL:
        stems = [stem.removesuffix(CLEAN) for stem in stems if stem.endswith(CLEAN)]
    if not stems:
        raise InputError(f"{show(root / name)} holds no images: --photos is the folder of all sets")
    return stems


def read(root: Path, case: Case, name: str) -> Photo:
    """An image of a set, with its noise.

    Raises:
      InputError: it cannot be read, or does not have the channels of its set.
    """
    stem = f"{name}{CLEAN}" if case.sigma is None else name
    clean = _pixels(root, case.name, stem)
    if case.sigma is None:
        noisy = _pixels(root, case.name, f"{name}{NOISY}").astype(np.float32) / 255
        return Photo(name, clean, noisy)
    noise = case.sigma * standard_normal(f"{case.name}/{name}", clean.shape)
    return Photo(name, clean, (clean + noise) / np.float32(255))


def _pixels(root: Path, set_name: str, stem: str) -> Bytes:
    files = [path for _, path in find(root / set_name) if path.stem == stem]
    if len(files) != 1:
        raise InputError(f"{show(root / set_name)} must hold one image {stem}, not {len(files)}")
    pixels, channels = read_uint8(files[0]), SETS[set_name].channels
    if pixels.shape[2] != channels:
        raise InputError(
            f"{show(files[0])} has {pixels.shape[2]} channels, but the images of {set_name} have "
            f"{channels}"
        )
    return pixels


def standard_normal(name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Float32 numbers from N(0, 1), drawn with the CRC-32 of a name as NumPy's seed."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)


def to_bytes(image: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Clips an image to [0, 1] and rounds it to 8 bits."""
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def measure(photo: Photo, restored: Bytes) -> dict[str, float]:
    """The figures of a restored image.

    Returns:
      "psnr" in dB and "ssim" (uniform windows of 7x7), against the clean image; and "colour": the
      relative change of a channel's mean, against the noisy image, of the channel where it is
      largest.
    """
    found = metrics.of_image(restored, photo.clean)
    before = photo.noisy.mean((0, 1), dtype=np.float64)
    after = restored.mean((0, 1), dtype=np.float64) / 255
    colour = float(np.max(np.abs(after - before) / np.maximum(np.abs(before), 1e-6)))
    return {"psnr": found["psnr"], "ssim": found["ssim"], "colour": colour}


def summary(rows: Iterable[dict[str, float]]) -> dict[str, float | int | None]:
    """The figures of a set: means of PSNR and SSIM, and the extremes.

    Returns:
      "images"; "psnr" and "ssim", means; "lowest_psnr"; "colour", the largest. A PSNR that is
      infinite, as of equal images, is None.
    """
    rows = list(rows)
    psnr, ssim, colour = (np.array([row[name] for row in rows]) for name in rows[0])
    figures = {"psnr": psnr.mean(), "lowest_psnr": psnr.min(), "ssim": ssim.mean()}
    figures["colour"] = colour.max()
    finite = {name: float(x) if np.isfinite(x) else None for name, x in figures.items()}
    return {"images": len(rows), **finite}
