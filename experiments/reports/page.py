"""Parts that all pages share: the templates, pictures, and the formats of numbers."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdae.config import Config
from jaxdae.recipes import RECIPES

TEMPLATES = Path(__file__).parent / "templates"
STYLES = {
    "mse": "{:.5f}",
    "psnr": "{:.2f}",
    "ssim": "{:.4f}",
    "bce": "{:.4f}",
    "accuracy": "{:.2%}",
}


def render(template: str, sections: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """Renders a page from its template.

    Args:
      sections: name to title; a section whose value is empty is left out of the contents.
      values: of the template.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    contents = [(name, title) for name, title in sections.items() if values.get(name, True)]
    return environment.get_template(template).render(values, contents=contents)


class Picture(NamedTuple):
    """An image on a page.

    Fields:
      file: PNG or WebP.
      alt: a description, for a reader who does not see it.
      label, note: text beside it.
    """

    file: bytes
    alt: str
    label: str = ""
    note: str = ""

    @property
    def src(self) -> str:
        """The file as a data URL."""
        kind = "png" if self.file.startswith(b"\x89PNG") else "webp"
        return f"data:image/{kind};base64,{base64.b64encode(self.file).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        from PIL import Image

        return Image.open(io.BytesIO(self.file)).size


def shown(name: str, value: float | None) -> str:
    """A metric as text. The PSNR of an image that is restored exactly is infinite."""
    return "∞" if value is None or not np.isfinite(value) else STYLES[name].format(value)


def duration(seconds: float) -> str:
    """A time as text: 57.3 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def spread(values: Sequence[Any] | np.ndarray, most: int) -> np.ndarray:
    """Evenly spaced values, at most `most`, with the first and the last."""
    count = min(most, len(values))
    return np.asarray(values)[np.linspace(0, len(values) - 1, count).round().astype(int)]


def settings(config: Config) -> list[tuple[str, str, bool]]:
    """The configuration: name, value, and True if the value differs from the recipe's."""
    recipe, _ = RECIPES.get(config.recipe, (Config(), ""))

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return " ".join(f"{item:g}" for item in value)
        return {None: "–", True: "yes", False: "no"}.get(value, str(value))

    return [
        (
            field.name.replace("_", " "),
            text(getattr(config, field.name)),
            field.name != "devices" and getattr(config, field.name) != getattr(recipe, field.name),
        )
        for field in fields(Config)
    ]
