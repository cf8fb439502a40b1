"""Denoises your own images: files, folders and stacks.

    python -m experiments.denoise photo.jpg --out clean
    python -m experiments.denoise "photos/**/*.png" --strength 0.7 --out clean
    python -m experiments.denoise stack.npz --model runs/mine --out clean

An INPUT is an image file (png, jpg, bmp, gif, tif, webp, pgm, ppm), a .npy or .npz stack, a folder
(with all its subfolders) or a pattern in quotes. Each result has the name of its input, and its
path in --out is the path below the folder or below the fixed part of the pattern. Files that lie in
--out are not denoised.

A result keeps the format, the size and the bit depth (8 or 16) of its input. It is upright, and
keeps alpha, colour profile, resolution and EXIF. JPEG is compressed as strongly as before, WebP
without loss. Palettes and 1-bit images become gray or RGB. A file is refused if its format cannot
hold the result (colours in a GIF), or if something would be lost (several frames, 16 bits in
colour, CMYK).

A stack has the shape [n h w] or [n h w c], and the type uint8, uint16 or floating point in [0, 1].
In a .npz all arrays with three or four axes are denoised; the others are copied.

Without --model, each image decides which network denoises it: photo for colour, photo-gray for
gray images, digits-blind for gray images of 28x28, such as handwritten digits. The networks for
photographs take any size. They estimate the noise, unless --sigma gives it.

Other networks, such as those for digits, take images of one size only. Other images are refused
then, unless you give

  --tile  to denoise overlapping tiles of that size and blend them; small images are first extended
  by reflection;

  --fit   to scale an image into that size with its aspect ratio kept (the margins get the colour of
  its border), and the result back.

A network for gray images denoises each channel of an RGB image alone. A network for RGB gets a gray
image as three equal channels, and the result is the mean of its outputs. A network that makes RGB
from gray gets the gray values of an RGB image. An RGB image whose channels are equal everywhere
counts as gray for these networks, and where --model is not given; its result is RGB again.

If a file cannot be denoised, the command prints why, denoises the others, and its exit status is 2.
"""

import sys
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxdae.errors import InputError, show
from jaxdae.files import write_whole

from . import program
from .common import cli
from .common.guard import Guard
from .restore.arguments import METRICS, Arguments, check

if TYPE_CHECKING:
    from .restore.job import Job

PROGRAM = program("denoise")


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: the command line is wrong, or asks for what is not possible.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    check(arguments)
    return arguments


def run(arguments: Arguments) -> int:
    """Denoises, and prints a summary.

    Returns:
      0, or 2 if some files could not be denoised.

    Raises:
      InputError: nothing can be denoised.
    """
    begun = time.perf_counter()
    from .restore.sources import check_references, left_to_do, sources

    files = sources(arguments)
    check_references(arguments, files)
    todo = left_to_do(arguments, files)
    out = arguments.out
    if not todo:
        print(f"all {len(files):,} results exist in {out}/: nothing to do")
        return 0
    warnings.simplefilter("ignore")  # of Pillow: a file is either read or refused
    cli.prepare_jax(1, arguments.cache)
    from .restore.job import MAX_ERRORS, Job
    from .restore.networks import Networks, announce

    networks = Networks(arguments)
    try:
        write_whole(probe := out / ".writable", b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--out {show(out)} cannot be written ({error}): choose another folder"
        ) from None
    if networks.named is not None:
        announce(networks.named)
    note = f": every file in {out} is complete; --skip-existing continues with the others"
    with Guard(lambda: note):
        job = Job(arguments, todo, networks)
        job.run()
    summarize(job, len(todo), time.perf_counter() - begun)
    if job.failed:
        first = f", the first {MAX_ERRORS} are named above" if job.failed > MAX_ERRORS else ""
        print(
            f"error: {job.failed:,} of {len(todo):,} files could not be denoised{first}: fix or "
            "remove them, and run this again",
            file=sys.stderr,
        )
    return 2 if job.failed else 0


def summarize(job: "Job", files: int, seconds: float) -> None:
    """Prints what was done, if anything was."""
    if not job.images:
        return
    if job.sums:
        means = {name: total / job.images for name, total in job.sums.items()}
        changes = [
            f"{name} {style.format(means[f'{name}_before'])} -> "
            f"{style.format(means[f'{name}_after'])}"
            for name, style in (("mse", "{:.5f}"), ("psnr", "{:.2f}"), ("ssim", "{:.4f}"))
        ]
        path = job.arguments.out / METRICS
        print(f"means: {', '.join(changes)}; {path} has those of each image")
    done = counted(files - job.failed, "file")
    images = "" if done == counted(job.images, "file") else f"{counted(job.images, 'image')} of "
    used = job.networks.used
    shares = [f" ({counted(network.images, 'image')})" * (len(used) > 1) for network in used]
    by = ", ".join(network.name + share for network, share in zip(used, shares, strict=True))
    print(f"{images}{done} denoised in {seconds:.1f} s by {by}; results in {job.arguments.out}/")


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 file, 2 files."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 wrong input or files that could not be denoised, 130, 143 stopped."""

    def work() -> int:
        return run(parse(sys.argv[1:] if argv is None else argv))

    return cli.status(work, "fix this, and continue with --skip-existing")


if __name__ == "__main__":
    sys.exit(main())
