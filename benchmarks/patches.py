"""Cuts photographs into small patches in colour: a data set for the colorize recipe.

    python -m benchmarks.patches PHOTOS --out patches --longest 160 --stride 4 --per-photo 300
    python -m experiments.run --recipe colorize --dataset folder:patches

A whole photograph goes to training or to the test: one in six to the test, as the SHA-256 of its
file name says, whatever other photographs there are, or those that --test-photos names. What is no
photograph in colour is skipped, and counted: files that are no images, images in gray or smaller
than a patch, copies of an earlier one.

OUT holds, in the end: train/ and test/, a PNG file for each patch, and patches.json, which says how
they were cut and from what.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import UInt8

from experiments.common import cli
from jaxdae.errors import InputError, show
from jaxdae.files import write_whole
from jaxdae.image_io.numpy_stacks import MAX_BYTES
from jaxdae.image_io.pillow import LUMA, SUFFIXES, read_uint8

PROGRAM = "python -m benchmarks.patches"
GRAY = 1.0  # of 255: channels that differ by less from each other, on average, show no colour
Pixels = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    photos: tyro.conf.Positional[tuple[Path, ...]]
    """Photographs, or folders of them, sub-folders included."""
    out: Path
    """Folder to write to, new or empty."""
    size: int = 32
    """Height and width of a patch, in pixels."""
    longest: int | None = 256
    """First scale a photograph down until its longer side has no more pixels than this, so that a
    patch holds more than texture; None: leave it as it is."""
    stride: int | None = None
    """Pixels from a patch to the next, along both axes; as many as --size if not given, so that
    patches lie side by side."""
    per_photo: int | None = None
    """Patches of each photograph at the most, drawn from all; all of them if not given."""
    min_contrast: float = 0.0
    """Leave out patches whose gray values, in [0, 1], have a smaller standard deviation: 0.02
    leaves out plain sky."""
    test_photos: tuple[str, ...] = ()
    """File names of the photographs for the test, all others being for training."""
    seed: int = 0
    """Decides which patches --per-photo draws."""


class Photo(NamedTuple):
    """A photograph that patches were cut from.

    Fields:
      name: its file name.
      split: "train" or "test".
      sha256: of its file.
      patches: uint8 [n size size 3].
    """

    name: str
    split: str
    sha256: str
    patches: UInt8[np.ndarray, "n size size 3"]


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed or done, in one line.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    _check(arguments)
    return arguments


def _check(arguments: Arguments) -> None:
    lows = {"size": 1, "longest": arguments.size, "stride": 1, "per_photo": 1, "seed": 0}
    for name, low in lows.items():
        value = getattr(arguments, name)
        if value is not None and value < low:
            what = f"{low}, the --size of a patch" if name == "longest" else low
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {what}")
    if not 0 <= arguments.min_contrast < 0.5:
        raise InputError(
            f"--min-contrast {arguments.min_contrast} must be at least 0, less than 0.5, which no "
            "patch exceeds"
        )
    if not arguments.photos:
        raise InputError("no photographs: name files, or folders of them")
    for path in arguments.photos:
        if not path.exists():
            raise InputError(f"{show(path)} does not exist: name photographs, or their folder")
    out = arguments.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {out} must be a new or empty folder: choose another name")


def run(arguments: Arguments, report: Callable[[str], None] = print) -> None:
    """Cuts all photographs, and only then writes.

    Raises:
      InputError: there is nothing to cut, nothing for one of the splits, or too much for memory.
    """
    skipped: Counter[str] = Counter()
    cut: list[Photo] = []
    seen: set[str] = set()
    names: set[str] = set()
    total = 0
    for path in _files(arguments.photos):
        names.add(path.name)
        try:
            photo = _cut(path, arguments, seen)
        except _Skipped as reason:
            skipped[str(reason)] += 1
            continue
        total += photo.patches.nbytes
        if total > MAX_BYTES:
            raise InputError(
                f"more than {MAX_BYTES} bytes of patches: choose a smaller --per-photo or --longest"
            )
        cut.append(photo)
    if unknown := [name for name in arguments.test_photos if name not in names]:
        raise InputError(f"--test-photos {show(unknown[0])} is no file name among the photographs")
    left_out = "; skipped: " + ", ".join(f"{what} ({n})" for what, n in skipped.items())
    left_out = left_out if skipped else ""
    if not cut:
        raise InputError(f"no photograph to cut{left_out}: add some in colour")
    for split in ("train", "test"):
        if not any(photo.split == split for photo in cut):
            raise InputError(
                f"no photograph of {len(cut)} falls to the {split} split{left_out}: add some, or "
                "name those for the test with --test-photos"
            )
    _write(arguments, cut, dict(skipped))
    counts = []
    for split, what in (("train", "training"), ("test", "the test")):
        photos = [photo for photo in cut if photo.split == split]
        patches = sum(len(photo.patches) for photo in photos)
        counts.append(f"{patches:,} patches of {len(photos):,} photographs for {what}")
    report(f"{' and '.join(counts)}{left_out}; all in {arguments.out}/")


class _Skipped(Exception):
    """A file that no patches are cut from; the message says what it is, for many of them."""


def _files(places: Sequence[Path]) -> Iterator[Path]:
    """Every file, in order: those named, and those below the folders that are not hidden."""
    for place in places:
        if not place.is_dir():
            yield place
            continue
        for parent, folders, files in os.walk(place):
            folders[:] = sorted(folder for folder in folders if folder[0] != ".")
            yield from (Path(parent, file) for file in sorted(files) if file[0] != ".")


def _cut(path: Path, arguments: Arguments, seen: set[str]) -> Photo:
    """The patches of one photograph; `seen` gathers the digests of photographs.

    Raises:
      _Skipped: it is no photograph in colour, or none of its patches is left.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise _Skipped("not images")
    try:
        pixels = read_uint8(path)
        data = path.read_bytes()
    except (InputError, OSError):
        raise _Skipped("unreadable") from None
    if pixels.shape[2] != 3 or np.ptp(pixels, axis=2).mean() < GRAY:
        raise _Skipped("in gray")
    content = hashlib.sha256(pixels.tobytes()).hexdigest()
    if content in seen:
        raise _Skipped("copies")
    seen.add(content)
    pixels = shrink(pixels, arguments.longest)
    if min(pixels.shape[:2]) < arguments.size:
        raise _Skipped("too small")
    digest = hashlib.sha256(os.fsencode(path.name)).digest()
    test = int.from_bytes(digest[:8], "big") % 6 == 0
    if arguments.test_photos:
        test = path.name in arguments.test_photos
    # Which patches are drawn from a photograph does not depend on the others.
    rng = np.random.default_rng([arguments.seed, *digest])
    size, stride = arguments.size, arguments.stride or arguments.size
    rows, columns = ((side - size) // stride + 1 for side in pixels.shape[:2])
    if rows * columns * size**2 * 3 > MAX_BYTES:
        raise InputError(
            f"{show(path)} makes {rows * columns} patches, more than {MAX_BYTES} bytes: choose a "
            "larger --stride or a smaller --longest"
        )
    patches = windows(pixels, size, stride)
    if arguments.min_contrast:
        contrast = [(patch / 255 @ np.array(LUMA)).std() for patch in patches]
        patches = patches[np.array(contrast) >= arguments.min_contrast]
    if not len(patches):
        raise _Skipped("of too little contrast")
    patches = patches[rng.permutation(len(patches))[: arguments.per_photo]]
    split = "test" if test else "train"
    return Photo(path.name, split, hashlib.sha256(data).hexdigest(), patches)


def shrink(pixels: Pixels, longest: int | None) -> Pixels:
    """A photograph scaled down, without aliasing, until no side exceeds `longest`."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if longest is None or max(height, width) <= longest:
        return pixels
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def windows(pixels: Pixels, size: int, stride: int) -> UInt8[np.ndarray, "n size size 3"]:
    """All patches of a photograph, row by row, `stride` pixels from one to the next."""
    seen = np.lib.stride_tricks.sliding_window_view(pixels, (size, size), axis=(0, 1))
    patches = np.moveaxis(seen[::stride, ::stride], 2, -1)
    return np.ascontiguousarray(patches.reshape(-1, size, size, 3))


def _write(arguments: Arguments, cut: Sequence[Photo], skipped: dict[str, int]) -> None:
    from PIL import Image

    for split in ("train", "test"):
        (arguments.out / split).mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(cut):
        for i, patch in enumerate(photo.patches):
            # The first patch of every photograph comes before the second of any.
            path = arguments.out / photo.split / f"{i:05}-{number:05}.png"
            Image.fromarray(patch).save(path, compress_level=1)
    options: dict[str, Any] = asdict(arguments)
    del options["photos"], options["out"]
    photos = [
        {"number": i, **photo._asdict(), "patches": len(photo.patches)}
        for i, photo in enumerate(cut)
    ]
    about = {**options, "skipped": skipped, "photos": photos}
    write_whole(arguments.out / "patches.json", json.dumps(about, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input, 130 interrupted."""

    def work() -> None:
        run(parse(sys.argv[1:] if argv is None else argv))

    return cli.status(work, "mend that, or choose another --out")


if __name__ == "__main__":
    sys.exit(main())
