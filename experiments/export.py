"""Writes a trained network to files for other programs.

    python -m experiments.export digits-blind --format stablehlo onnx safetensors --out exported
    python -m experiments.export runs/default-sigma0.5 --part encoder decoder --out exported

  stablehlo: the function, for jax on CPUs, CUDA and TPUs. Neither flax nor jaxdae is needed. It can
    be read with the version of jax that wrote it, and those of the following half year.
  onnx: the function, for onnxruntime and other programs that read ONNX.
  safetensors: the parameters by their paths, for any language. All commands read it as MODEL.

The function takes float32 images in [0, 1] of shape (batch, height, width, channels), for any batch
size, and returns such images. ONNX and safetensors files hold the model card as JSON, under "card"
in the metadata.

OUT gets the files NAME.FORMAT and NAME-PART.FORMAT. Before that, each file is compared with the
network on 1,000 images, in batches of 1, 7 and 512: noisy test images of MNIST, or random images
(fewer, if they are large) for a network that takes others.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float

from jaxdae.errors import InputError
from jaxdae.files import replacing

from . import program
from .common import cli

if TYPE_CHECKING:
    from .runs.models import Loaded

PROGRAM = program("export")
BATCHES = (1, 7, 512)
IMAGES = 1000
ALLOWED = 1e-5  # largest difference, relative to the largest output (to 1 if that is smaller)
Format = Literal["stablehlo", "onnx", "safetensors"]
Part = Literal["whole", "encoder", "decoder"]
Array = Float[np.ndarray, "n *shape"]


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
    """A network that comes with jaxdae, such as digits-blind or digits-unet; the folder of a
    finished run; or a model's .npz or .safetensors file."""
    out: Path
    """Folder to write to. Existing files are not replaced."""
    format: tuple[Format, ...] = ("stablehlo", "onnx", "safetensors")
    """The formats to write."""
    part: tuple[Part, ...] = ("whole",)
    """The parts of an autoencoder to write: the whole, the encoder (images to latent vectors) or
    the decoder (latent vectors to images). A safetensors file always holds the whole."""
    check: bool = True
    """Compare each file with the network before it is written. For ONNX this needs onnxruntime."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder: the next run starts sooner."""


class Different(Exception):
    """The content of a file differs from the network."""


class Example(NamedTuple):
    """Inputs of a part of the network, and its outputs."""

    inputs: Array
    expected: Array


class File(NamedTuple):
    """A file to write."""

    path: Path
    format: Format
    part: Part


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: the command line is wrong, or a file exists.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    for name in ("format", "part"):
        if not getattr(arguments, name):
            raise InputError(f"--{name} is empty: give one or several of those in --help")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(
            f"--out {arguments.out} is a file, and must be a folder: choose another name"
        )
    for file in files(arguments):
        if file.path.exists():
            raise InputError(f"{file.path} exists: remove it, or choose another --out")
    return arguments


def files(arguments: Arguments) -> list[File]:
    """The files to write."""
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
      0, or 1 if a file differs from the network.

    Raises:
      InputError: there is no such model, it has no such part, or a package is missing.
    """
    from jaxdae.export import function, need

    from .runs.models import load_model

    loaded, wanted = load_model(arguments.model, "MODEL"), files(arguments)
    for file in wanted:
        function(loaded.model, loaded.params, file.part)  # raises if there is no such part
    need("this export", *packages(arguments))
    contents = [content(file, loaded) for file in wanted]
    examples = {
        file.part: example(loaded, file.part)
        for file in wanted
        if arguments.check and file.format != "safetensors"
    }
    lines = []
    try:
        with ExitStack() as stack:
            for file, written in zip(wanted, contents, strict=True):
                temporary = stack.enter_context(replacing(file.path))
                temporary.write_bytes(written)
                line = f"{file.path}: {len(written):,} bytes"
                if arguments.check:
                    line += f"; {check(file, temporary, loaded, examples)}"
                lines.append(line)
    except Different as error:
        print(f"error: {error}: nothing was written; --no-check writes it", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


def packages(arguments: Arguments) -> list[str]:
    """The optional packages that are needed."""
    wanted = {
        "stablehlo": ["flatbuffers"],
        "onnx": ["onnx", *["onnxruntime"] * arguments.check],
        "safetensors": ["safetensors"],
    }
    return [package for kind in dict.fromkeys(arguments.format) for package in wanted[kind]]


def content(file: File, loaded: "Loaded") -> bytes:
    """The content of a file.

    Raises:
      InputError: the network has no such part, or a package is missing.
    """
    from jaxdae import export

    if file.format == "stablehlo":
        return export.to_stablehlo(loaded.model, loaded.params, file.part)
    if file.format == "onnx":
        return export.to_onnx(loaded.model, loaded.params, loaded.card, file.part)
    return export.to_safetensors(loaded.params, loaded.card)


def check(file: File, written: Path, loaded: "Loaded", examples: Mapping[Part, Example]) -> str:
    """Reads a file as other programs do, and compares it with the network; returns the result.

    Args:
      written: its temporary path.

    Raises:
      Different: it is another function, or has other parameters.
    """
    if file.format == "safetensors":
        from jaxdae.export import from_safetensors
        from jaxdae.files import tree_sha256

        if tree_sha256(from_safetensors(written)[1]) != tree_sha256(loaded.params):
            raise Different(f"{file.path} would hold other parameters than the network")
        return "the same parameters to the bit"
    images, expected = examples[file.part]
    call = reader(file.format, written)
    batches = sorted({min(batch, len(images)) for batch in BATCHES})
    found = [difference(call, images, expected, batch) for batch in batches]
    worst, allowed = np.max(found), ALLOWED * max(1, np.abs(expected).max())
    if not worst <= allowed:  # true for NaN, too
        raise Different(
            f"{file.path} would differ from the network by {worst:.1e}, more than the "
            f"{allowed:.1e} of rounding"
        )
    each = ", ".join(f"{d:.1e} ({batch})" for d, batch in zip(found, batches, strict=True))
    return f"largest difference from the network, by batch size: {each}"


def reader(kind: Format, written: Path) -> Callable[[Array], Any]:
    """The function in a file."""
    if kind == "stablehlo":
        import jax
        from jax import export

        return jax.jit(export.deserialize(bytearray(written.read_bytes())).call)
    from onnxruntime import InferenceSession

    session = InferenceSession(written, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def difference(call: Callable[[Array], Any], images: Array, expected: Array, batch: int) -> float:
    """The largest absolute difference from the expected outputs, at a batch size."""
    worst = 0.0
    for i in range(0, len(images), batch):
        start = min(i, len(images) - batch)  # the last batch has the same size
        several = slice(start, start + batch)
        found = np.asarray(call(images[several]))
        worst = np.maximum(worst, np.abs(found - expected[several]).max())
    return float(worst)


def example(loaded: "Loaded", part: Part) -> Example:
    """Example inputs of a part of the network, and its outputs."""
    import jax

    from jaxdae.export import function

    def apply(part: Part, x: Array) -> Array:
        call = jax.jit(function(loaded.model, loaded.params, part))
        return np.concatenate([call(piece) for piece in np.array_split(x, 2)])

    shape = loaded.model.example.shape[1:]
    if shape == (28, 28, 1):
        from jaxdae import corruption, data

        clean = data.load("mnist").test.images[:IMAGES]
        noise = jax.jit(corruption.gaussian(0.5))
        images = np.asarray(noise(jax.random.key(0), clean / np.float32(255)))
    else:
        count = min(IMAGES, max(IMAGES * 28**2 // (shape[0] * shape[1]), 8))
        images = np.random.default_rng(0).random((count, *shape), np.float32)
    inputs = apply("encoder", images) if part == "decoder" else images
    return Example(inputs, apply(part, inputs))


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 a file would differ from the network, 2 wrong input."""

    def work() -> int:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        cli.prepare_jax(1, arguments.cache)
        import jax

        # Other devices round the network itself differently, by more than `ALLOWED`.
        jax.config.update("jax_platforms", "cpu")
        return run(arguments)

    return cli.status(work, "choose another --out")


if __name__ == "__main__":
    sys.exit(main())
