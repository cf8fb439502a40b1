"""All commands under one name: `jaxdae run`, or `python -m experiments run` in a checkout."""

import importlib
import sys
from collections.abc import Sequence

import jaxdae

from . import program

COMMANDS = {
    "run": "train a denoising autoencoder, and write what came of it",
    "sweep": "train recipes at several noise levels and seeds, and compare them",
    "denoise": "restore images of your own: files, folders and stacks",
    "report": "write the page of a finished run again: all there is to see of it",
    "compare": "put finished runs beside each other: their errors, curves and images",
    "patches": "cut photographs into patches, as a data set to train on",
    "colorize": "how well a run of the colorize recipe colours its test images",
    "export": "write a trained network for other programs: StableHLO, ONNX, safetensors",
    "demo": "a page to play with: noise, what becomes of it, and the latent vector by hand",
    "classifier": "train a classifier that tells whether a digit is still the same",
}


def usage() -> str:
    """What to type, and what for."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"usage: {program('COMMAND')} ...\n\n{lines}\n\n"
        f"{program('COMMAND')} --help says what each takes."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names, and returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"jaxdae {jaxdae.__version__}")
        return 0
    if words[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: {words[0]!r} is no command: give one of {known}", file=sys.stderr)
        return 2
    return importlib.import_module(f".{words[0]}", __package__).main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
