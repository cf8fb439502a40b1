"""Writes a trained network as files that other programs read.

    python -m experiments.export digits-blind --format stablehlo onnx safetensors --out exported
    python -m experiments.export runs/default-sigma0.5 --part encoder decoder --out exported

  stablehlo: the function, for jax on a CPU, on CUDA and on a TPU, without flax or jaxdae; of the
    version that wrote it, or of the half year after;
  onnx: the function, for onnxruntime and whatever else reads ONNX;
  safetensors: the parameters by their paths, for any language; MODEL of all commands, too.

The function is from float32 images in [0, 1], (batch, height, width, channels), to such images, for
a batch of any size. ONNX and safetensors files hold the model card as JSON: "card" in the metadata.

What OUT holds in the end, NAME.FORMAT and NAME-PART.FORMAT, has been compared with the network on
1,000 images, in batches of 1, 7 and 512: noisy test images of MNIST, or random images (fewer, if
large) for a network that takes others.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float

from jaxdae.errors import InputError

from . import program
from .common import cli

if TYPE_CHECKING:
    from .runs.models import Loaded

PROGRAM = program("export")
BATCHES = (1, 7, 512)
IMAGES = 1000
ALLOWED = 1e-5  # of the largest value that comes out, or of 1 if that is less
Format = Literal["stablehlo", "onnx", "safetensors"]
Part = Literal["whole", "encoder", "decoder"]
Array = Float[np.ndarray, "n *shape"]


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
    """A network that comes with the package, such as digits-blind or digits-unet; the folder of a finished run; a
    network's .npz or .safetensors file."""
    out: Path
    """Folder to write to; no file in it is overwritten."""
    format: tuple[Format, ...] = ("stablehlo", "onnx", "safetensors")
    """What to write."""
    part: tuple[Part, ...] = ("whole",)
    """What of an autoencoder: the whole, from images to their latent, or from there to images. A
    safetensors file always holds the whole."""
    check: bool = True
    """Compare with the network, before a file comes to its place; ONNX wants onnxruntime for it."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


class Different(Exception):
    """A file that would not hold the network."""


class Example(NamedTuple):
    """What goes into a part of the network, and what comes out of it."""

    given: Array
    expected: Array


class File(NamedTuple):
    """What is to be written."""

    path: Path
    format: Format
    part: Part

    @property
    def temporary(self) -> Path:
        """Where it is until it is known to be good."""
        return self.path.with_name(f".{self.path.name}.tmp")


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed or written, in one line.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    for name in ("format", "part"):
        if not getattr(arguments, name):
            raise InputError(f"--{name} is empty: give one or several, as --help lists them")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"--out {arguments.out} is a file: give a folder")
    for file in files(arguments):
        if file.path.exists():
            raise InputError(f"{file.path} exists: remove it, or choose another --out")
    return arguments


def files(arguments: Arguments) -> list[File]:
    """All that is to be written."""
    path = Path(arguments.model).expanduser()
    name = path.resolve().name if path.is_dir() else path.stem if path.is_file() else path.name
    found = []
    for kind in dict.fromkeys(arguments.format):
        parts: tuple[Part, ...] = ("whole",) if kind == "safetensors" else arguments.part
        for part in dict.fromkeys(parts):
            suffix = "" if part == "whole" else f"-{part}"
            found.append(File(arguments.out / f"{name}{suffix}.{kind}", kind, part))
    return found


def run(arguments: Arguments) -> int:
    """Writes all files or none.

    Returns:
      0; 1 if one computes something else than the network.

    Raises:
      InputError: there is no such model, it has no such part, or a package is missing.
    """
    from jaxdae.export import function, need

    from .runs.models import load_model

    loaded, wanted = load_model(arguments.model, "MODEL"), files(arguments)
    for file in wanted:
        function(loaded.model, loaded.params, file.part)  # there is such a part
    need("this export", *packages(arguments))
    contents = [content(file, loaded) for file in wanted]
    examples = {
        file.part: example(loaded, file.part)
        for file in wanted
        if arguments.check and file.format != "safetensors"
    }
    lines = []
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        for file, written in zip(wanted, contents, strict=True):
            file.temporary.write_bytes(written)
            line = f"{file.path}: {len(written):,} bytes"
            if arguments.check:
                line += f"; {check(file, loaded, examples)}"
            lines.append(line)
        for file in wanted:
            os.replace(file.temporary, file.path)
    except Different as error:
        print(f"error: {error}: nothing was written; --no-check writes it", file=sys.stderr)
        return 1
    finally:
        for file in wanted:
            file.temporary.unlink(missing_ok=True)
    print("\n".join(lines))
    return 0


def packages(arguments: Arguments) -> list[str]:
    """The optional packages that this takes."""
    wanted = {
        "stablehlo": ["flatbuffers"],
        "onnx": ["onnx", *["onnxruntime"] * arguments.check],
        "safetensors": ["safetensors"],
    }
    return [package for kind in dict.fromkeys(arguments.format) for package in wanted[kind]]


def content(file: File, loaded: "Loaded") -> bytes:
    """All of a file.

    Raises:
      InputError: the network has no such part, or a package is missing.
    """
    from jaxdae import export

    if file.format == "stablehlo":
        return export.to_stablehlo(loaded.model, loaded.params, file.part)
    if file.format == "onnx":
        return export.to_onnx(loaded.model, loaded.params, loaded.card, file.part)
    return export.to_safetensors(loaded.params, loaded.card)


def check(file: File, loaded: "Loaded", examples: Mapping[Part, Example]) -> str:
    """What comes of a comparison with the network, read as other programs read it.

    Raises:
      Different: it is not the same function, or the same parameters.
    """
    if file.format == "safetensors":
        from jaxdae.export import from_safetensors
        from jaxdae.files import tree_sha256

        if tree_sha256(from_safetensors(file.temporary)[1]) != tree_sha256(loaded.params):
            raise Different(f"{file.path} would hold other parameters than the network")
        return "the same parameters to the bit"
    images, expected = examples[file.part]
    call = reader(file)
    batches = sorted({min(batch, len(images)) for batch in BATCHES})
    found = [difference(call, images, expected, batch) for batch in batches]
    worst, allowed = np.max(found), ALLOWED * max(1, np.abs(expected).max())
    if not worst <= allowed:  # nor if it is not a number
        raise Different(
            f"{file.path} would differ from the network by {worst:.1e}, more than the "
            f"{allowed:.1e} of rounding"
        )
    each = ", ".join(f"{d:.1e} ({batch})" for d, batch in zip(found, batches, strict=True))
    return f"largest difference from the network, by batch size: {each}"


def reader(file: File) -> Callable[[Array], Any]:
    """What a file computes."""
    if file.format == "stablehlo":
        import jax
        from jax import export

        return jax.jit(export.deserialize(bytearray(file.temporary.read_bytes())).call)
    from onnxruntime import InferenceSession

    session = InferenceSession(file.temporary, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def difference(call: Callable[[Array], Any], images: Array, expected: Array, batch: int) -> float:
    """The largest absolute difference from what is expected, of so many images at a time."""
    worst = 0.0
    for i in range(0, len(images), batch):
        start = min(i, len(images) - batch)  # the last batch is as large as the others
        several = slice(start, start + batch)
        found = np.asarray(call(images[several]))
        worst = np.maximum(worst, np.abs(found - expected[several]).max())
    return float(worst)


def example(loaded: "Loaded", part: Part) -> Example:
    """What to give to a part of the network, and what it makes of that."""
    import jax

    from jaxdae.export import function

    def apply(part: Part, x: Array) -> Array:
        call = jax.jit(function(loaded.model, loaded.params, part))
        return np.concatenate([call(piece) for piece in np.array_split(x, 2)])

    shape = tuple(loaded.model.image_shape)
    if shape == (28, 28, 1):
        from jaxdae import corruption, data

        clean = data.load("mnist").test.images[:IMAGES]
        noise = jax.jit(corruption.gaussian(0.5))
        images = np.asarray(noise(jax.random.key(0), clean / np.float32(255)))
    else:
        count = min(IMAGES, max(IMAGES * 28**2 // (shape[0] * shape[1]), 8))
        images = np.random.default_rng(0).random((count, *shape), np.float32)
    given = apply("encoder", images) if part == "decoder" else images
    return Example(given, apply(part, given))


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 a file would differ from the network, 2 bad input."""

    def work() -> int:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        cli.prepare_jax(1, arguments.cache)
        import jax

        # On other devices the network itself is rounded otherwise, by more than what is allowed.
        jax.config.update("jax_platforms", "cpu")
        return run(arguments)

    return cli.status(work, "choose another --out")


if __name__ == "__main__":
    sys.exit(main())
