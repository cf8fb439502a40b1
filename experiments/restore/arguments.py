"""What `denoise` is asked: its flags, and the rules between them."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxdae.errors import InputError, show

METRICS = "metrics.csv"


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Image files, stacks, folders, or patterns in quotes."""
    out: Path
    """Folder to write to."""
    model: str = "digits-blind"
    """A network that comes with the package (digits-blind, digits-unet, digits-sigma-0.5, digits-sigma-1.0), the folder of a
    finished run, or a model's .npz file."""
    tile: bool = False
    """Restore images of other sizes in overlapping tiles."""
    fit: bool = False
    """Restore images of other sizes scaled to the network's."""
    noise_sigma: float | None = None
    """For a demonstration, first add noise of this standard deviation to images in [0, 1], with the
    mean that the model was trained for; which noise depends on the file's path and --seed alone."""
    seed: int = 0
    """Decides the noise."""
    reference: Path | None = None
    """Clean images to compare with: a file for one input, or a folder with files of the same names;
    with --noise-sigma, the inputs themselves if not given. Errors go to metrics.csv in --out."""
    side_by_side: Path | None = None
    """Folder for pictures of each input beside its result (and its reference)."""
    overwrite: bool = False
    """Replace files that exist in --out."""
    skip_existing: bool = False
    """Leave files that exist in --out, and go on with the others."""
    progress: bool = True
    """Show a progress bar, if the terminal can."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


def check(arguments: Arguments) -> None:
    if not arguments.inputs:
        raise InputError("no inputs: name image files, folders of them, or patterns in quotes")
    for one, other in (("tile", "fit"), ("overwrite", "skip_existing")):
        if getattr(arguments, one) and getattr(arguments, other):
            words = f"--{one} and --{other.replace('_', '-')}"
            raise InputError(f"{words} exclude each other: give one of them")
    sigma = arguments.noise_sigma
    if sigma is not None and not 0 <= sigma < math.inf:
        raise InputError(f"--noise-sigma {sigma} must be a finite number, at least 0, such as 0.5")
    if arguments.seed < 0:
        raise InputError(f"--seed {arguments.seed} must be at least 0")
    for flag in ("out", "side_by_side"):
        path = getattr(arguments, flag)
        if path is not None and os.path.lexists(path) and not path.is_dir():
            what = f"--{flag.replace('_', '-')} {show(path)}"
            raise InputError(f"{what} is no folder: name a folder, new or not")
    side = arguments.side_by_side
    if side is not None and os.path.realpath(side) == os.path.realpath(arguments.out):
        raise InputError(f"--side-by-side {show(side)} is --out: choose another folder")
    if arguments.skip_existing and compares(arguments):
        raise InputError(
            f"--skip-existing would leave {METRICS} without the images that are skipped: take "
            "--overwrite, or neither --reference nor --noise-sigma"
        )


def compares(arguments: Arguments) -> bool:
    """Whether there are clean images to compare with."""
    return arguments.reference is not None or arguments.noise_sigma is not None
