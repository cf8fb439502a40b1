"""Rows of sample images on a page: clean, the network's input and its output at a noise level."""

import numpy as np
from jaxtyping import Int

from jaxdae import figures

from .material import Images, Material
from .page import Picture, shown, spread

SAMPLES = 8
LEVELS = 6  # noise levels at most


def chosen(material: Material) -> Int[np.ndarray, " n"]:
    """The indices of the sample images, spread over all test images."""
    return spread(np.arange(len(material.run.dataset.test)), SAMPLES)


def clean_row(material: Material, images: Images) -> Picture:
    return Picture(
        figures.strip([images]), f"{len(images)} clean {material.tested} images", "clean"
    )


def input_row(material: Material, images: Images, level: float | None, note: str = "") -> Picture:
    """The network's inputs at a noise level; under the run's own corruption if it is None."""
    where = material.run.task if level is None else f"sigma {level:g}"
    alt = f"The same images as the network's input: {where}"
    return Picture(figures.strip([images]), alt, material.input, note)


def output_row(
    material: Material, images: Images, level: float | None, name: str | None = None
) -> Picture:
    """The network's outputs, with its error at that noise level, if it was measured."""
    row = material.summary["test"].get(str(material.run.task if level is None else level))
    error = shown("mse", row["mse"]) if row else ""
    alt = f"Output of {name or 'the network'}"
    alt += f": mean squared error {error} over all {material.tested} images" if error else ""
    note = f"mse {error}" if error else ""
    return Picture(figures.strip([images]), alt, name or "restored", note)
