"""How well a run of the colorize recipe colours its test images, against guesses without a network.

    python -m benchmarks.colorize runs/colorize-grayscale

Compared with the colours of the test images are:

  gray: the gray image as it is;
  constant tint: gray plus one colour for all pixels, the best for the training images;
  tint by gray level: gray plus a colour for each of 256 levels of gray, the best for them;
  network: what the network makes of the gray image;
  its colour on gray: the network's colour alone, under the gray values that it was given.

The errors are means of squares over all pixels of all test images: mse of RGB in [0, 1], luma mse
of the gray values (Y of YCbCr, Rec. 601), which the network draws anew from its latent vector, and
chroma mse of the colour alone (Cb and Cr). PSNR is that of the mse, SSIM the mean over images.

RUN holds, in the end, beside what the run wrote: colorize.json and figures/colorize.png.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float, UInt8

from experiments.common import cli
from jaxdae.errors import InputError
from jaxdae.files import write_whole
from jaxdae.image_io.pillow import LUMA

PROGRAM = "python -m benchmarks.colorize"
GUESSES = ("gray", "constant tint", "tint by gray level", "network", "its colour on gray")
SHOWN = 27  # images of the figure
BATCH = 500
Bytes = UInt8[np.ndarray, "n height width 3"]
Images = Float[np.ndarray, "n height width 3"]
Gray = Float[np.ndarray, "n height width"]
Guess = Callable[[Bytes, Gray], Images]


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    folder: tyro.conf.Positional[Path]
    """Folder of a finished run of --recipe colorize."""
    figures: bool = True
    """Draw the figure."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed, in one line.
    """
    return cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())


def run(arguments: Arguments) -> None:
    """Evaluates, prints the table, and writes the files.

    Raises:
      InputError: there is no finished run, or one that undoes something else.
    """
    from experiments.runs.finished import load_run
    from jaxdae.evaluation import reconstruct

    folder = arguments.folder
    loaded = load_run(folder)
    if loaded.config.corruption != "grayscale":
        raise InputError(
            f"the run in {folder} undoes {loaded.task}, and colours nothing: give a run of "
            "--recipe colorize"
        )
    images = loaded.dataset.test.images
    outputs = reconstruct(loaded.model, loaded.params, loaded.task, images)[2]
    tint, by_level = tints(loaded.dataset.train.images)
    guesses = colourings(images, outputs, tint, by_level)
    result = {name: errors(guess, images / np.float32(255)) for name, guess in guesses.items()}
    report(result, len(images))
    text = json.dumps({"images": len(images), "tint": list(tint), "test": result}, indent=2)
    write_whole(folder / "colorize.json", text + "\n")
    if arguments.figures:
        (folder / "figures").mkdir(exist_ok=True)
        draw(guesses, images, folder / "figures" / "colorize.png")
    print(f"all in {folder}/colorize.json{' and figures/colorize.png' * arguments.figures}")


def luma(images: Images) -> Gray:
    """The gray values of colours, in [0, 1] if they are."""
    return images @ np.array(LUMA, images.dtype)


def tints(images: Bytes) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "256 3"]]:
    """What to add to gray for the least squared error over all pixels of `images`.

    Returns:
      One colour for all pixels, and one for each level of gray in 1/255: the means of what the
      pixels (of that level) differ from their gray values by. A level that is nowhere has the
      colour of all pixels.
    """
    sums, counts = np.zeros((256, 3)), np.zeros(256)
    for i in range(0, len(images), BATCH):
        colours = np.asarray(images[i : i + BATCH]).reshape(-1, 3) / 255
        gray = luma(colours)
        level = np.rint(255 * gray).astype(int)
        counts += np.bincount(level, minlength=256)
        for channel in range(3):
            sums[:, channel] += np.bincount(level, colours[:, channel] - gray, minlength=256)
    tint = sums.sum(0) / counts.sum()
    seen = counts[:, None] > 0
    return tint, np.where(seen, sums / np.maximum(counts, 1)[:, None], tint)


def colourings(
    images: Bytes,
    outputs: Images,
    tint: Float[np.ndarray, "3"],
    by_level: Float[np.ndarray, "256 3"],
) -> dict[str, Images]:
    """Each guess at the colours of `images` from their gray values, float32 in [0, 1].

    Args:
      images: of which no guess but by `outputs` knows more than the gray values.
      outputs: what the network made of the gray images, in [0, 1].
      tint, by_level: what `tints` returned for other images.
    """
    gray = luma(images / np.float32(255))[..., None]
    level = np.rint(255 * gray[..., 0]).astype(int)
    added = [
        np.zeros(3),
        tint,
        by_level.astype(np.float32)[level],
        outputs - gray,
        outputs - luma(outputs)[..., None],
    ]
    return {
        name: np.clip(gray + np.asarray(colour, np.float32), 0, 1)
        for name, colour in zip(GUESSES, added, strict=True)
    }


def errors(guess: Images, truth: Images) -> dict[str, float | None]:
    """The errors of coloured images.

    Returns:
      "mse", "psnr" (dB; None where nothing differs), "ssim", and the mean squared errors of "luma"
      (Y, in [0, 1]) and "chroma" (Cb and Cr, in [-0.5, 0.5]).
    """
    import jax

    from jaxdae import metrics

    similarity = jax.jit(metrics.ssim)
    ssim, sums = 0.0, np.zeros(3)
    for i in range(0, len(truth), BATCH):
        a, b = guess[i : i + BATCH], truth[i : i + BATCH]
        ssim += float(np.asarray(similarity(a, b), np.float64).sum())
        difference = (a - b).astype(np.float64)
        y = luma(difference)
        # A difference of colours is YCbCr-converted as a colour is: the conversion is linear.
        blue, red = (difference[..., 2] - y) / 1.772, (difference[..., 0] - y) / 1.402
        sums += (difference**2).sum() / 3, (y**2).sum(), (blue**2 + red**2).sum() / 2
    mse, light, chroma = (float(total) for total in sums / truth[..., 0].size)
    return {
        "mse": mse,
        "psnr": -10 * float(np.log10(mse)) if mse else None,
        "ssim": ssim / len(truth),
        "luma_mse": light,
        "chroma_mse": chroma,
    }


def report(result: Mapping[str, Mapping[str, Any]], count: int) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("colours", title=f"{count:,} test images, coloured")
    styles = {
        "mse": "{:.5f}",
        "psnr": "{:.2f} dB",
        "ssim": "{:.4f}",
        "luma_mse": "{:.5f}",
        "chroma_mse": "{:.5f}",
    }
    for name in styles:
        table.add_column(name.replace("_", " "), justify="right")
    for label, row in result.items():
        shown = (
            "inf" if row[name] is None else style.format(row[name])
            for name, style in styles.items()
        )
        table.add_row(label, *shown)
    Console(highlight=False, soft_wrap=True, markup=False).print(table)


def draw(guesses: Mapping[str, Images], images: Bytes, path: Path) -> None:
    """Draws images evenly from all, in groups of rows: gray, the network's colours, the true."""
    from jaxdae import figures

    chosen = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).round().astype(int)
    rows = {
        "gray": guesses["gray"],
        "network": guesses["network"],
        "on gray": guesses["its colour on gray"],
        "true": images / np.float32(255),
    }
    groups = [
        {label: row[part] for label, row in rows.items()}
        for part in np.array_split(chosen, max(1, len(chosen) // 9))
    ]
    figures.image_rows(path, groups, "Test images: gray, as the network colours them, and true")


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input, 130 interrupted."""

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Nothing heavy is imported before the command line is known to be good.
        cli.prepare_jax(1, arguments.cache)
        run(arguments)

    return cli.status(work, "mend that, and try again")


if __name__ == "__main__":
    sys.exit(main())
