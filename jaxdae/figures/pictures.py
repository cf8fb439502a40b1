"""Pictures of images: rows with labels, strips for a page, filters."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.colors
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxdae.figures.style import COLORS, Images


def image_rows(path: Path, groups: Sequence[Mapping[str, Images]], title: str) -> None:
    """Draws rows of images, in groups, with a label on the left of each row.

    Each pixel of an image becomes a square of n × n pixels of the figure, with one n for all.

    Args:
      path: of the file to write.
      groups: for each group, row label to images in [0, 1]. All rows have the same length, and all
        images one size. Three channels are drawn as RGB; of four, the first three; of any other
        number, their mean in gray.
    """
    rows = [row for group in groups for row in group.items()]
    count, height, width, _ = rows[0][1].shape
    gap, group_gap = max(1, height // 14), max(3, height // 3)  # in pixels of an image
    canvas_height = len(rows) * (height + gap) + (len(groups) - 1) * group_gap
    canvas = np.ones((canvas_height, count * (width + gap), 3), np.float32)
    centres, top = {}, 0
    for group in groups:
        for label, images in group.items():
            for column, image in enumerate(images):
                left = column * (width + gap)
                canvas[top : top + height, left : left + width] = _drawable(image)
            centres[top + height / 2 - 0.5] = label
            top += height + gap
        top += group_gap
    scale = max(1, 110 // max(height, width))
    margin_left, margin_top = 200, 80  # for the labels and the title
    size = canvas.shape[1] * scale + margin_left, canvas.shape[0] * scale + margin_top
    figure = Figure(figsize=(size[0] / 200, size[1] / 200), dpi=200)
    left, top_ = margin_left / size[0], 1 - margin_top / size[1]
    axes = figure.add_axes((left, 0, 1 - left, top_))
    axes.imshow(np.clip(canvas, 0, 1), vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks(list(centres), list(centres.values()), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(
        title, fontsize=9, x=0.5 + left / 2, y=1 - margin_top / 2 / size[1], va="center"
    )
    figure.savefig(path)


def strip(rows: Sequence[Images], side: int = 96) -> bytes:
    """Draws rows of images on a transparent ground.

    Args:
      rows: images in [0, 1], all of one size; all rows have the same length. For channels, see
        `image_rows`.
      side: the larger side of an image in the result, in pixels. A smaller image is enlarged to at
        least `side`: each pixel becomes n × n equal ones. A larger image is shrunk to it.

    Returns:
      The content of a PNG file if images are enlarged, otherwise of a WebP file.
    """
    shown = [[_drawable(image) for image in row] for row in rows]
    height, width = shown[0][0].shape[:2]
    colored = any(image.shape[-1] == 3 for row in shown for image in row)
    scale = max(1, -(-side // max(height, width)))
    if max(height, width) > side:
        factor = side / max(height, width)
        size = max(1, round(width * factor)), max(1, round(height * factor))
    else:
        size = width * scale, height * scale
    gap = max(2, min(size) // 14)
    canvas = np.zeros(
        (
            len(shown) * (size[1] + gap) - gap,
            len(shown[0]) * (size[0] + gap) - gap,
            4 if colored else 2,
        ),
        np.uint8,
    )
    for i, row in enumerate(shown):
        for j, image in enumerate(row):
            top, left = i * (size[1] + gap), j * (size[0] + gap)
            pixels = _resized(np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), size)
            canvas[top : top + size[1], left : left + size[0], :-1] = pixels
            canvas[top : top + size[1], left : left + size[0], -1] = 255
    return _encode(canvas, "PNG" if scale > 1 else "WEBP")


def filters(
    kernels: Float[np.ndarray, "height width inputs count"], columns: int = 8, side: int = 48
) -> bytes:
    """Draws the filters of a first layer side by side, each scaled by its largest absolute value.

    With three inputs (RGB), a filter is drawn in colours, with gray for 0. Otherwise the mean over
    the inputs is drawn: negative values blue, positive ones orange, 0 transparent.

    Args:
      kernels: the layer's kernel.
      columns: filters in a row.
      side: of a filter in the result, in pixels, at most.

    Returns:
      The content of a PNG file.
    """
    height, width, inputs, count = kernels.shape
    kernels = np.moveaxis(kernels, -1, 0)
    if inputs == 3:
        kernels = kernels / np.maximum(np.abs(kernels).max((1, 2, 3), keepdims=True), 1e-30)
        tiles = np.concatenate([0.5 + 0.5 * kernels, np.ones((*kernels.shape[:3], 1))], -1)
    else:
        signed = kernels.mean(-1)
        signed = signed / np.maximum(np.abs(signed).max((1, 2), keepdims=True), 1e-30)
        ends = np.array([matplotlib.colors.to_rgb(color) for color in COLORS[:2]])
        tiles = np.concatenate([ends[(signed > 0).astype(int)], np.abs(signed)[..., None]], -1)
    scale = max(1, side // max(height, width))
    columns = min(columns, count)
    gap = max(4, scale * max(height, width) // 4)
    across, down = width * scale + gap, height * scale + gap
    canvas = np.zeros((-(-count // columns) * down - gap, columns * across - gap, 4), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * down, i % columns * across
        pixels = _resized(np.rint(255 * tile).astype(np.uint8), (width * scale, height * scale))
        canvas[top : top + height * scale, left : left + width * scale] = pixels
    return _encode(canvas, "PNG")


def _drawable(image: Float[np.ndarray, "height width channels"]) -> np.ndarray:
    """An image with one channel, or with the three of RGB."""
    return image[..., :3] if image.shape[-1] in (3, 4) else image.mean(-1)[..., None]


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [h w c] to (width, height): a multiple of its size, or less."""
    height, width, channels = pixels.shape
    if size[0] >= width and size[1] >= height:
        return pixels.repeat(size[1] // height, 0).repeat(size[0] // width, 1)
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS)).reshape(*size[::-1], channels)


def _encode(canvas: np.ndarray, kind: str) -> bytes:
    """A file of uint8 [h w c]: gray and alpha, or RGB and alpha."""
    from PIL import Image

    image, file = Image.fromarray(canvas), io.BytesIO()
    if kind == "WEBP":
        image.convert("RGBA").save(file, kind, quality=85)
    else:
        image.save(file, kind)
    return file.getvalue()
