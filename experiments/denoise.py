"""Restores images of your own: files, folders of them, and stacks.

    python -m experiments.denoise noisy/ --model digits-blind --out restored
    python -m experiments.denoise "photos/**/*.png" --model runs/mine --tile --out restored
    python -m experiments.denoise stack.npz --model digits-unet --out restored

INPUTS are image files (png, jpg, bmp, gif, tif, webp, pgm, ppm), .npy and .npz stacks, folders
with all that is below them, and patterns in quotes. --out holds a file for each, of the same name,
below the folder or the fixed part of the pattern that it was found in. What lies in --out is no
input.

A file comes out in the format, size and depth (8 or 16 bits) that it had: upright, with its alpha,
colour profile, resolution and EXIF. JPEG is compressed as strongly as before, WebP without loss;
palettes and 1-bit images become gray or RGB. What its format could not hold (colours in a GIF), or
what would be lost (several frames, 16 bits in colour, CMYK), is refused.

A stack is [n h w] or [n h w c], uint8, uint16 or floating point in [0, 1]. All arrays of a .npz
that have three or four axes are restored; the others are copied.

A network takes images of one size. Others are refused, or taken with

  --tile  in overlapping tiles of that size, blended; shorter sides are continued by reflection;

  --fit   scaled to fit into that size, the ratio of the sides kept, in its middle, the rest in the
  colour of the border; what was restored is scaled back.

A network for gray restores each channel of an RGB image apart. One for RGB takes gray as three
equal channels, and the mean of what it makes of them is the result. One that makes RGB of gray
takes the gray values of RGB.

A file that cannot be restored is named, and the others are restored: the exit status is 2 then.
"""

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdae.errors import InputError, show

from . import program
from .common import cli
from .common.guard import Guard
from .restore.arguments import METRICS, Arguments, check
from .restore.job import SAID, Job, write_whole
from .restore.sources import check_references, left_to_do, sources

PROGRAM = program("denoise")


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed or done, in one line.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    check(arguments)
    return arguments


def noise_mean(card: Mapping[str, Any], name: str) -> float:
    """The mean of the noise that a model was trained to remove.

    Raises:
      InputError: it removes something else.
    """
    recipe = card.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    mean, corruption = recipe.get("mean"), recipe.get("corruption", "gaussian")
    if corruption != "gaussian" or not isinstance(mean, int | float):
        undone = corruption if corruption != "gaussian" else "other things"
        raise InputError(
            f"--noise-sigma adds gaussian noise, and --model {name} was trained to undo {undone}: "
            "leave it out, or choose another --model"
        )
    return float(mean)


def run(arguments: Arguments) -> int:
    """Restores, and prints what came of it: 0 all is done, 2 some files could not be restored.

    Raises:
      InputError: what keeps all from being restored.
    """
    begun = time.perf_counter()
    files = sources(arguments)
    check_references(arguments, files)
    todo = left_to_do(arguments, files)
    out = arguments.out
    if not todo:
        print(f"all {len(files):,} results exist in {out}/: nothing to do")
        return 0
    warnings.simplefilter("ignore")  # of image files, which are read or refused
    cli.prepare_jax(1, arguments.cache)
    from .runs.models import load_model

    loaded = load_model(arguments.model)
    mean = None
    if arguments.noise_sigma is not None:
        mean = noise_mean(loaded.card, arguments.model)
    try:
        write_whole(probe := out / ".writable", b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--out {show(out)} cannot be written to ({error}): choose another"
        ) from None
    # What it was trained for, and beyond that, what is known to go wrong.
    told = ["about"] + ["limits"] * (arguments.tile or arguments.fit)
    about = " ".join(" ".join(str(loaded.card.get(key, "")).split()) for key in told).strip()
    if about:
        print(f"{arguments.model}: {about}", flush=True)
    with Guard(lambda: f": every file in {out} is whole; --skip-existing goes on with the others"):
        job = Job(arguments, todo, loaded, mean)
        job.run()
    report(job, len(todo), time.perf_counter() - begun)
    if job.failed:
        more = f", the first {SAID} named above" if job.failed > SAID else ""
        print(
            f"error: {job.failed:,} of {len(todo):,} files could not be restored{more}: mend or "
            "remove them, and run this again",
            file=sys.stderr,
        )
    return 2 if job.failed else 0


def report(job: Job, files: int, seconds: float) -> None:
    """Prints what was done, if anything was."""
    if not job.images:
        return
    if job.rows:
        means = {name: total / job.images for name, total in job.sums.items()}
        changes = [
            f"{name} {style.format(means[f'{name}_before'])} -> "
            f"{style.format(means[f'{name}_after'])}"
            for name, style in (("mse", "{:.5f}"), ("psnr", "{:.2f}"), ("ssim", "{:.4f}"))
        ]
        print(f"{', '.join(changes)}: means; each image's in {job.arguments.out / METRICS}")
    done = counted(files - job.failed, "file")
    images = "" if done == counted(job.images, "file") else f"{counted(job.images, 'image')} of "
    print(f"{images}{done} restored in {seconds:.1f} s; all in {job.arguments.out}/")


def counted(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input or files that could not be restored, 130 or 143 stopped."""

    def work() -> int:
        return run(parse(sys.argv[1:] if argv is None else argv))

    return cli.status(work, "mend that, and go on with --skip-existing")


if __name__ == "__main__":
    sys.exit(main())
