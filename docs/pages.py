"""Runs the Python blocks of a page, in order, in one namespace.

    python -m docs.pages docs/tutorial.md

The page runs in a new folder. What a block prints is written to the page, as the text block after
it, and the figures of the tutorial are written to docs/images/. A page that uses a finished run
finds it in the runs/ of the current folder (python -m experiments.run --sigma 0.5).
"""

import argparse
import contextlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import machine

IMAGES = Path(__file__).parent / "images"
CODE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n.*?^```\n)?", re.DOTALL | re.MULTILINE)
MEASURED = re.compile(r"^Measured by `python -m docs\.pages .*$", re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run_block(code: str, names: dict[str, Any], page: str) -> str:
    """Runs a block in a namespace, and returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec"), names)
    return printed.getvalue()


def written(text: str, page: str) -> str:
    """The text of a page with the present output of its blocks, run in the current folder."""
    names: dict[str, Any] = {}

    def run(found: re.Match[str]) -> str:
        output = run_block(found[1], names, page)
        return f"```python\n{found[1]}```\n" + (f"\n```text\n{output}```\n" if output else "")

    about = machine()
    here = f"{about['date']}, {about['device']}, {about['cores']} cores, Python {about['python']}"
    versions = f"jax {about['jax']}, flax {about['flax']}"
    text = CODE.sub(run, text)
    return MEASURED.sub(f"Measured by `python -m docs.pages {page}`: {here}, {versions}.", text)


def save_figure(drawn: Path, path: Path) -> None:
    """Copies a figure in 256 colours, which take a third of the bytes."""
    from PIL import Image

    with Image.open(drawn) as image:
        colours = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(path, optimize=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.pages",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("page", type=Path, help="such as docs/tutorial.md")
    page = parser.parse_args().page
    with tempfile.TemporaryDirectory() as folder:
        text, before = page.read_text(), Path.cwd()
        if (before / "runs").is_dir():
            Path(folder, "runs").symlink_to(before / "runs")
        os.chdir(folder)
        try:
            text = written(text, page.as_posix())
        finally:
            os.chdir(before)
        for drawn in sorted(Path(folder).glob("*.png")) if page.stem == "tutorial" else ():
            save_figure(drawn, IMAGES / f"{page.stem}-{drawn.name}")
    page.write_text(text)


if __name__ == "__main__":
    main()
