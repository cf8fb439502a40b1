"""The flags of `denoise`, and the rules between them."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxdae.errors import InputError, show
from jaxdae.image_io.limits import SMALL_PIXELS

METRICS = "metrics.csv"


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    inputs: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="INPUT [INPUT ...]")]
    ]
    """Image files, stacks, folders, or patterns in quotes."""
    out: Path
    """Folder to write to."""
    model: str | None = None
    """A network that comes with jaxdae (photo, photo-gray, digits-blind, digits-unet,
    digits-sigma-0.5, digits-sigma-1.0), the folder of a finished run, or a model's .npz or
    .safetensors file. By default each image decides: digits-blind for gray images of 28x28,
    photo-gray for other gray images, photo for colour."""
    strength: float = 1.0
    """Multiplies the noise level: below 1 more detail stays, above 1 more noise goes."""
    sigma: float | None = None
    """The noise level, for images in [0, 1]. By default the network estimates it."""
    blend: float = 0.0
    """The share of the input that is mixed back into the result, from 0 to 1."""
    tile: bool = False
    """Denoise images of other sizes in overlapping tiles."""
    fit: bool = False
    """Scale images of other sizes to the network's size and back."""
    noise_sigma: float | None = None
    """For a demonstration: first add Gaussian noise of this standard deviation to the images, which
    are in [0, 1]. Its mean is that of the model's training. The noise of an image depends only on
    its path and --seed."""
    seed: int = 0
    """Seed of the noise."""
    reference: Path | None = None
    """Clean images to compare with: a file for one input, or a folder with files of the same names.
    With --noise-sigma the default is the inputs. The errors are written to metrics.csv in --out."""
    side_by_side: Path | None = None
    """Folder for pictures that show each input beside its result (and its reference)."""
    max_pixels: int = SMALL_PIXELS
    """Read images of up to so many pixels in any case. Larger ones are refused if their file is far
    too small for them (a decompression bomb), or if they do not fit the memory."""
    overwrite: bool = False
    """Replace existing files in --out."""
    skip_existing: bool = False
    """Keep existing files in --out, and denoise only the other inputs."""
    progress: bool = True
    """Show a progress bar, if the output is a terminal."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder: the next run starts sooner."""

    @property
    def compares(self) -> bool:
        """True if there are clean images to compare with."""
        return self.reference is not None or self.noise_sigma is not None


def check(arguments: Arguments) -> None:
    """Raises an `InputError` if the flags contradict each other or have wrong values."""
    if not arguments.inputs:
        raise InputError("there are no inputs: give image files, folders, or patterns in quotes")
    for one, other in (("tile", "fit"), ("overwrite", "skip_existing")):
        if getattr(arguments, one) and getattr(arguments, other):
            raise InputError(
                f"--{one} and --{other.replace('_', '-')} exclude each other: give one of them"
            )
    sigma = arguments.noise_sigma
    if sigma is not None and not 0 <= sigma < math.inf:
        raise InputError(
            f"--noise-sigma {sigma} must be finite and at least 0: give a number such as 0.5"
        )
    for flag in ("sigma", "strength"):
        value = getattr(arguments, flag)
        if value is not None and not 0 <= value < math.inf:
            example = 0.1 if flag == "sigma" else 0.7
            raise InputError(
                f"--{flag} {value} must be finite and at least 0: give a number such as {example}"
            )
    if not 0 <= arguments.blend <= 1:
        raise InputError(
            f"--blend {arguments.blend} must be from 0 to 1: give a number such as 0.2"
        )
    for flag in ("tile", "fit"):
        if getattr(arguments, flag) and arguments.model is None:
            raise InputError(
                f"--{flag} is for networks of one size, but none is named: leave it out, or name "
                "one, such as --model digits-blind"
            )
    for flag, least in (("seed", 0), ("max_pixels", 1)):
        value = getattr(arguments, flag)
        if value < least:
            name = flag.replace("_", "-")
            raise InputError(f"--{name} {value} must be at least {least}: choose another")
    for flag in ("out", "side_by_side"):
        path = getattr(arguments, flag)
        if path is not None and os.path.lexists(path) and not path.is_dir():
            what = f"--{flag.replace('_', '-')} {show(path)}"
            raise InputError(f"{what} is not a folder: name a new folder or an existing one")
    side = arguments.side_by_side
    if side is not None and os.path.realpath(side) == os.path.realpath(arguments.out):
        raise InputError(f"--side-by-side {show(side)} is also --out: choose another folder")
    if arguments.skip_existing and arguments.compares:
        raise InputError(
            f"with --skip-existing {METRICS} would miss the skipped images: give --overwrite, or "
            "leave out --reference and --noise-sigma"
        )
