"""Restores ten thousand image files by the command: seconds, memory, and equal results.

    python -m benchmarks.denoise_files

Writes the test images of MNIST as PNG files with noise N(0.5, 0.5^2), and restores them twice by
`experiments.denoise`, each time in its own process: first with an empty cache of compiled programs,
then with a full one. Core seconds are summed over all cores; on a busy machine they say more than
the wall time.
"""

import argparse
import filecmp
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.time_to_quality import whole_process
from benchmarks.timing import machine, markdown, not_a_file
from jaxdae.files import write_whole

SIGMA = 0.5
SHOWN = {"wall_seconds": 1, "core_seconds": 1, "peak_megabytes": 0}  # with their digits


def write_digits(folder: Path, count: int) -> None:
    """Writes noisy digits as PNG files of 8 bits."""
    import numpy as np
    from PIL import Image

    from jaxdae.corruption import gaussian
    from jaxdae.data import load
    from jaxdae.evaluation import corrupted

    noisy = corrupted(gaussian(SIGMA), load("mnist").test.images[:count])[1]
    for i, image in enumerate(np.rint(noisy[..., 0] * 255).astype(np.uint8)):
        Image.fromarray(image).save(folder / f"{i:05}.png")


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 the second run gave other bytes, 2 bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--model", default="digits-blind")
    parser.add_argument("--write", type=Path, help="a JSON file for what came of it")
    flags = parser.parse_args(argv)
    if not 1 <= flags.images <= 10_000:
        print(f"error: --images {flags.images} must be from 1 to 10000", file=sys.stderr)
        return 2
    if error := not_a_file("--write", flags.write):
        print(error, file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory(prefix="jaxdae-files-") as name:
        place = Path(name)
        digits, outs = place / "digits", [place / "first", place / "second"]
        digits.mkdir()
        write_digits(digits, flags.images)
        command = [sys.executable, "-m", "experiments.denoise", str(digits), "--model", flags.model]
        for out in outs:
            words = [*command, "--out", str(out)]
            rows.append(whole_process(words, place / "cache", place / "log"))
        identical = same(*outs)
    about = {"images": flags.images, "model": flags.model, **machine()}
    print(f"{flags.images:,} images of 28x28, --model {flags.model}; {about['device']}")
    columns = ("run", "wall seconds", "processor seconds", "most memory, MB")
    table = [
        (what, *(f"{row[name]:,.{digits}f}" for name, digits in SHOWN.items()))
        for what, row in zip(("first run", "later run"), rows, strict=True)
    ]
    print(markdown(columns, table))
    print("the same bytes both times" if identical else "NOT the same bytes both times")
    if flags.write:
        result = {"machine": about, "runs": rows, "identical": identical}
        write_whole(flags.write, json.dumps(result, indent=1) + "\n")
    return int(not identical)


if __name__ == "__main__":
    sys.exit(main())
