"""Makes the folder that the networks for photographs are trained on.

    python -m benchmarks.photo_data PHOTOS OUT
    python -m experiments.run --recipe photo-gaussian --dataset folder:OUT

PHOTOS holds folders of photographs. Those above a megapixel are halved, which makes their patches
sharper. OUT/test gets the centres, 256 pixels a side, of every sixteenth photograph, and OUT/train
all others.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from jaxdae.image_io.pillow import find

HELD_OUT = 16  # one of so many
CENTRE = 256  # pixels a side
LARGE = 1_000_000  # pixels


def make(photos: Path, out: Path) -> None:
    """Writes OUT/train and OUT/test, as lossless WebP."""
    files = find(photos)
    for part in ("train", "test"):
        (out / part).mkdir(parents=True)
    for number, (name, path) in enumerate(files):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        if image.width * image.height > LARGE:
            image = image.reduce(2)
        held_out = number % HELD_OUT == HELD_OUT // 2
        if held_out:
            left, top = ((side - CENTRE) // 2 for side in image.size)
            image = image.crop((left, top, left + CENTRE, top + CENTRE))
        target = out / ("test" if held_out else "train")
        image.save(target / f"{Path(name).parent.name}-{path.stem}.webp", lossless=True, method=0)


def main(argv: Sequence[str] | None = None) -> None:
    photos, out = map(Path, sys.argv[1:] if argv is None else argv)
    make(photos, out)


if __name__ == "__main__":
    main()
