"""The figures of a run, as files or for an HTML page.

    learning_curves(Path("curves.png"), history, "mean squared error")
    svg = inline("learning curves", learning_curves, history, "mean squared error")
    png = strip([clean, noisy, denoised])

`plots` and `pictures` write files; `inline` gives an SVG element that takes its colours, light or
dark, from the page. No other module of the library imports matplotlib.
"""

from jaxdae.figures.pictures import filters, image_rows, strip
from jaxdae.figures.plots import (
    error_against_sigma,
    histogram,
    labelled_points,
    latent_space,
    learning_curves,
    overlaid,
)
from jaxdae.figures.style import COLORS
from jaxdae.figures.svg import VARIABLES, inline

__all__ = [
    "COLORS",
    "VARIABLES",
    "error_against_sigma",
    "filters",
    "histogram",
    "image_rows",
    "inline",
    "labelled_points",
    "latent_space",
    "learning_curves",
    "overlaid",
    "strip",
]
