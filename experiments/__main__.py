"""All commands under one name: `jaxdae run`, or `python -m experiments run` in a checkout."""

import importlib
import sys
from collections.abc import Sequence

import jaxdae

from . import program

COMMANDS = {
    "run": "train a denoiser, and write the results",
    "sweep": "train recipes at several noise levels and seeds, and compare them",
    "denoise": "denoise your own images: files, folders and stacks",
    "report": "write the report of a finished run again",
    "compare": "compare finished runs: errors, learning curves and images",
    "export": "write a trained network for other programs: StableHLO, ONNX, safetensors",
    "demo": "open a page to try a network: add noise, denoise, change the latent vector",
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"usage: {program('COMMAND')} ...\n\n{lines}\n\n"
        f"{program('COMMAND')} --help explains a command."
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
        print(
            f"error: there is no command {words[0]!r}: choose one of {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    return importlib.import_module(f".{words[0]}", __package__).main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
