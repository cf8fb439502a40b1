"""Feeds damaged files to everything that reads files, and looks at what is raised.

    python -m tests.stress.fuzz --inputs 100000

A good file of each kind is mutated: bits and bytes changed, runs of bytes overwritten, cut out,
doubled or swapped in from another file, numbers replaced by the largest there are. Every reader
must return, or raise the one clear error, `InputError`, in one line; within 5 s; and in no more
than 500 MB above what the process held before. What else happens is kept, as FILE, for a test.
"""

import argparse
import collections
import gzip
import io
import json
import random
import resource
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxdae import data, pretrained
from jaxdae.checkpoint import Checkpoints
from jaxdae.config import read_config
from jaxdae.errors import InputError
from jaxdae.image_io import numpy_stacks as stacks
from jaxdae.image_io import pillow as images
from jaxdae.model import build
from jaxdae.recipes import DEFAULT

SECONDS, MEGABYTES = 5.0, 500
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 9, 7, 1), np.uint8)
NUMBERS = [b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\0" * 4, b"\xff" * 8, b"\x80" + b"\0" * 3]
WORDS = [b"1e999", b"-1", b"NaN", b"null", b"[]", b"{}", b'"', b"99999999999999999999", b"\\u0000"]


def mutate(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Changes a file's bytes in one to four ways."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        if not changed:
            break
        at = draw.randrange(len(changed))
        # Headers are short and say most: half of the changes go there.
        at = draw.randrange(min(len(changed), 64)) if draw.random() < 0.5 else at
        length = draw.choice([1, 2, 4, 8, 32, 256])
        match draw.randrange(8):
            case 0:
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at] = draw.randrange(256)
            case 2:
                changed[at : at + length] = draw.randbytes(length)
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                number = draw.choice(NUMBERS + WORDS)
                changed[at : at + len(number)] = number
            case 6:
                start = draw.randrange(len(other))
                changed[at : at + length] = other[start : start + length]
            case 7:
                del changed[at:]
    return bytes(changed)


class Target:
    """A kind of file: good ones, where a mutated one is put, and what reads it."""

    def __init__(self, seeds: list[bytes], path: Path, read: Callable[[], object]) -> None:
        self.seeds, self.path, self.read = seeds, path, read

    def feed(self, data: bytes) -> str:
        """What reading it came to: "read" or "refused".

        Raises:
          Exception: what it must not come to.
        """
        self.path.write_bytes(data)
        begun = time.monotonic()
        try:
            self.read()
            outcome = "read"
        except InputError as error:
            assert "\n" not in str(error), "an error of several lines"
            outcome = "refused"
        seconds = time.monotonic() - begun
        assert seconds < SECONDS, f"took {seconds:.1f} s"
        return outcome


def idx() -> list[bytes]:
    pixels = IMAGES[..., 0]
    header = struct.pack(">4I", 0x0803, *pixels.shape)
    plain, packed = header + pixels.tobytes(), io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(plain)
    return [plain, packed.getvalue()]


def npz() -> list[bytes]:
    files = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, x_train=IMAGES, x_test=IMAGES, y_train=np.arange(12), y_test=np.arange(12))
        files.append(file.getvalue())
    return files


def pictures(form: str) -> list[bytes]:
    files = []
    for mode in ("L", "RGB") if form != "GIF" else ("L",):
        file = io.BytesIO()
        Image.fromarray(IMAGES[0, ..., 0]).convert(mode).save(file, form)
        files.append(file.getvalue())
    return files


def kept(form: str) -> list[bytes]:
    """Pictures of all that a format holds and `jaxdae.image_io.pillow.read` keeps."""
    rgb = Image.fromarray(IMAGES[:3, ..., 0].transpose(1, 2, 0))
    gray, alpha, exif = rgb.getchannel(0), rgb.getchannel(1), Image.Exif()
    exif[0x0112] = 6
    clear = [Image.merge("LA", (gray, alpha)), Image.merge("RGBA", (*rgb.split(), alpha))]
    wide = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    plain: list[tuple[Image.Image, dict]] = [(gray, {}), (gray.convert("1"), {})]
    kinds = {
        "PNG": [*((x, {}) for x in clear), (wide, {}), (rgb.quantize(9), {"transparency": 2})],
        "JPEG": [(rgb, {"quality": 60, "progressive": True, "dpi": (90, 90)})],
        "BMP": [(rgb.quantize(9), {})],
        "GIF": [],
        "TIFF": [
            *((x, {"compression": "tiff_adobe_deflate"}) for x in (*clear, wide)),
            (rgb, {"compression": "packbits", "dpi": (90, 90)}),
        ],
        "WEBP": [(clear[1], {"lossless": True})],
        "PPM": [(wide, {})],
    }
    if form in ("PNG", "JPEG", "WEBP"):
        plain.append((rgb, {"exif": exif, "icc_profile": b"a profile"}))
    files = []
    for image, options in plain + kinds[form]:
        file = io.BytesIO()
        image.save(file, form, **options)
        files.append(file.getvalue())
    return files


def stacked() -> tuple[list[bytes], list[bytes]]:
    """Files of `jaxdae.image_io.numpy_stacks`: .npy, and .npz."""
    plain, packed = [], []
    for x in (IMAGES[..., 0], IMAGES / np.float32(255), np.asfortranarray(IMAGES)):
        file = io.BytesIO()
        np.save(file, x)
        plain.append(file.getvalue())
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, x=IMAGES[..., 0], y=np.arange(12), z=IMAGES / np.float32(255))
        packed.append(file.getvalue())
    return plain, packed


def restored(path: Path) -> None:
    """Reads a stack as the command that restores images does, and writes it as another."""
    with stacks.Stack(path) as stack, stacks.Writer(stack, path.with_name("new")) as writer:
        for array in stack.images:
            for some in stack.read(array, 5):
                writer.add(array, some)


def targets(place: Path) -> dict[str, Target]:
    """Everything that reads a file, in folders of `place`."""
    found = {}
    folder = place / "idx"
    folder.mkdir(parents=True)
    for stem in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (folder / stem).write_bytes(idx()[0])
    read_idx = lambda: data.load(f"idx:{folder}")  # noqa: E731
    found["IDX"] = Target(idx(), folder / "train-images-idx3-ubyte", read_idx)

    path = place / "images.npz"
    found["npz"] = Target(npz(), path, lambda: data.load(f"npz:{path}"))

    for form in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        split = place / form
        for part in ("train", "test"):
            (split / part).mkdir(parents=True)
            Image.fromarray(IMAGES[0, ..., 0]).save(split / part / "good.png")
        suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(form, form.lower())
        image = split / "train" / f"image.{suffix}"
        read = lambda split=split: data.load(f"folder:{split}")  # noqa: E731
        found[form] = Target(pictures(form), image, read)

    # Read, and written again, as experiments.denoise does.
    again = place / "again"
    again.mkdir()
    for form in images.FORMATS:
        image = again / f"image.{form.lower()}"
        write = lambda image=image: images.encode(images.read(image))  # noqa: E731
        found[f"denoise {form}"] = Target(kept(form), image, write)
    for suffix, files in zip(("npy", "npz"), stacked(), strict=True):
        file = again / f"stack.{suffix}"
        found[f"denoise {suffix}"] = Target(files, file, lambda file=file: restored(file))

    run = place / "run"
    run.mkdir()
    config = json.dumps(asdict(DEFAULT), indent=2).encode()
    found["config.json"] = Target([config], run / "config.json", lambda: read_config(run))

    model = build("strided", image_size=(8, 8), channels=1, features=(2,), latent_dim=2)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 1)))["params"]
    params = jax.tree.map(np.asarray, params)
    weights = place / "weights"
    pretrained.save("small", model, params, {"recipe": "none"}, weights)
    load = lambda: pretrained.load("small", weights)  # noqa: E731
    for suffix in ("npz", "json"):
        # Each in its own folder, the other file of the pair being good.
        pair = place / f"weights-{suffix}"
        pretrained.save("small", model, params, {"recipe": "none"}, pair)
        load = lambda pair=pair: pretrained.load("small", pair)  # noqa: E731
        file = pair / f"small.{suffix}"
        found[f"pretrained {suffix}"] = Target([file.read_bytes()], file, load)

    with Checkpoints(place / "saved") as checkpoints:
        checkpoints.save(1, params, {"history": [1.5, 2.5]}, loss=1.0)
    reading = Checkpoints(place / "saved")
    meta = place / "saved" / "1" / "meta" / "metadata"
    restore = lambda: reading.restore(params)  # noqa: E731
    found["checkpoint metadata"] = Target([meta.read_bytes()], meta, restore)
    return found


def trial(inputs: int, seed: int, place: Path, keep: Path | None = None, say=print):
    """Counts the outcomes of each kind; what must not be is kept as a file and counted as WRONG."""
    draw = random.Random(seed)
    warnings.simplefilter("ignore")
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    kinds = targets(place)
    # Restoring a checkpoint takes thirty times as long as reading an image: fewer of those.
    weights = [0.05 if name == "checkpoint metadata" else 1 for name in kinds]
    everything = [seed for target in kinds.values() for seed in target.seeds]
    for name, target in kinds.items():  # whole, all can be read
        for good in target.seeds:
            assert target.feed(good) == "read", name
    memory = megabytes()
    for number, name in enumerate(draw.choices(list(kinds), weights, k=inputs), 1):
        target = kinds[name]
        bad = mutate(draw.choice(target.seeds), draw.choice(everything), draw)
        try:
            outcomes[name][target.feed(bad)] += 1
            assert megabytes() - memory < MEGABYTES, "took too much memory"
        except Exception as error:
            outcomes[name]["WRONG"] += 1
            memory = megabytes()
            where = ""
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                file = keep / f"{name.replace(' ', '-')}-{number}"
                file.write_bytes(bad)
                where = f" ({file})"
            say(f"WRONG: {name}: {type(error).__name__}: {error}{where}")
            say("".join(traceback.format_tb(error.__traceback__)[-2:]))
        if number % 10_000 == 0:
            say(f"{number} inputs, {megabytes() - memory:.0f} MB more than at the start")
    return outcomes


def megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="for what goes wrong")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jaxdae-fuzz-") as place:
        outcomes = trial(flags.inputs, flags.seed, Path(place), flags.keep)
    for name, counts in outcomes.items():
        print(f"{name:20}", ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return int(any(counts["WRONG"] for counts in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(command())
