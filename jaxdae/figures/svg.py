"""Figures as SVG elements in an HTML page."""

import io
import re
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

import matplotlib
import matplotlib.colors

from jaxdae.figures.style import COLORS, GRAY

# For a page: letters that are legible on a phone, and no background.
PAGE: Any = {
    "font.size": 13,
    "axes.edgecolor": GRAY,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxdae",
    "path.simplify": False,
}
# A colour, as matplotlib writes it, to the CSS variable that a page sets for it.
VARIABLES = {
    **{matplotlib.colors.to_hex(color): f"--series-{i}" for i, color in enumerate(COLORS)},
    "#ffffff": "--paper",
    "#ebebeb": "--shade",
    "#d9d9d9": "--shade",
    "#595959": "--muted",
}


def inline(label: str, draw: Callable[..., None], *args: Any, **options: Any) -> str:
    """Draws a figure as an SVG element for an HTML page.

    Args:
      label: describes the figure to readers who cannot see it. It must be unique in the page.
      draw: a function of `jaxdae.figures.plots`, called with a file, `args` and `options`.

    Returns:
      The element. It takes its colours from the variables in `VARIABLES`, and has no title.
    """
    file = io.StringIO()
    with matplotlib.rc_context(PAGE):
        draw(file, *args, **options)
    svg = file.getvalue()
    view = re.search(r'viewBox="([^"]*)"', svg)
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(
        r'(<use xlink:href="#(\w+)" [^>]*?(style="[^"]*")/>\s*){50,}', partial(_dots, svg), svg
    )
    svg = svg.replace("#000000", "currentColor")
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable}, {color})")
    # Keeps only the ids that are referred to, and makes them unique in the page.
    prefix = re.sub(r"\W+", "-", label)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' * (found[1] in used), svg
    )
    svg = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", svg)
    svg = re.sub(r">\s+<", "><", svg)
    head = f'<svg viewBox="{view[1] if view else ""}" role="img" aria-label="{escape(label)}"'
    return f'{head} fill="currentColor" xmlns:xlink="http://www.w3.org/1999/xlink">{svg.strip()}'


def _dots(svg: str, uses: re.Match[str]) -> str:
    """Draws many round markers as lines of length 0 with round ends: a fifth of the text."""
    radius = re.search(rf'id="{uses[2]}" d="M 0 ([\d.]+)', svg)
    width = 2 * float(radius[1]) if radius else 2.0
    points = re.findall(r'x="([^"]*)" y="([^"]*)"', uses[0])
    style = uses[3].replace("fill", "stroke").replace("stroke-opacity", "opacity")
    path = "".join(f"M{x} {y}h0" for x, y in points)
    return (
        f'<path d="{path}" fill="none" stroke-width="{width:.2f}" stroke-linecap="round" {style}/>'
    )
