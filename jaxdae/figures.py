"""The figures of a run, as files or for an HTML page: the only place that knows matplotlib.

    learning_curves(Path("curves.png"), history, "mean squared error")
    svg = inline("learning curves", learning_curves, history, "mean squared error")
    png = strip([clean, noisy, denoised])

A figure for a page is an SVG element that takes the page's colours, light or dark, from the CSS
variables in `VARIABLES`, and has no title of its own; pictures are PNG, clear where nothing is.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import IO, Any

import matplotlib
import matplotlib.colors
import matplotlib.ticker
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Images = Float[np.ndarray, "n height width channels"]
# Categorical colours that stay apart for colour-blind eyes (Petroff 2021), one for each digit.
COLORS = matplotlib.color_sequences["petroff10"]
GRAY = "0.35"
File = Path | IO[str]
# How a figure stands in a page: type that can be read on a phone, and nothing behind it.
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
# The colours of the figures as matplotlib writes them, and the page's variables for them.
VARIABLES = {
    **{matplotlib.colors.to_hex(color): f"--series-{i}" for i, color in enumerate(COLORS)},
    "#ffffff": "--paper",
    "#ebebeb": "--shade",
    "#d9d9d9": "--shade",
    "#595959": "--muted",
}


def inline(label: str, draw: Callable[..., None], *args: Any, **options: Any) -> str:
    """What a function of this module draws, as an SVG element to stand in an HTML page.

    Args:
      label: what it shows, for whoever does not see it; another one for each figure of a page.
      draw: called with a file to write to, `args` and `options`.
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
    # Of the names of elements those that are pointed to stay, and differ from other figures'.
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
    """Round markers of one kind as the ends of lines of no length: a fifth of the text."""
    radius = re.search(rf'id="{uses[2]}" d="M 0 ([\d.]+)', svg)
    width = 2 * float(radius[1]) if radius else 2.0
    points = re.findall(r'x="([^"]*)" y="([^"]*)"', uses[0])
    style = uses[3].replace("fill", "stroke").replace("stroke-opacity", "opacity")
    path = "".join(f"M{x} {y}h0" for x, y in points)
    return (
        f'<path d="{path}" fill="none" stroke-width="{width:.2f}" stroke-linecap="round" {style}/>'
    )


def image_rows(path: Path, groups: Sequence[Mapping[str, Images]], title: str) -> None:
    """Draws groups of rows of images, each row with its label on the left.

    Every pixel of an image becomes a square of the same whole number of pixels of the figure.

    Args:
      groups: for each group, row label to images in [0, 1]; all rows of the same length and all
        images of the same size. Three channels are RGB, a fourth is left out, of other numbers the
        mean is drawn.
    """
    rows = [row for group in groups for row in group.items()]
    count, height, width, _ = rows[0][1].shape
    gap, break_ = max(1, height // 14), max(3, height // 3)  # between rows, between groups
    canvas_height = len(rows) * (height + gap) + (len(groups) - 1) * break_
    canvas = np.ones((canvas_height, count * (width + gap), 3), np.float32)
    centres, top = {}, 0
    for group in groups:
        for label, images in group.items():
            for column, image in enumerate(images):
                left = column * (width + gap)
                canvas[top : top + height, left : left + width] = _seen(image)
            centres[top + height / 2 - 0.5] = label
            top += height + gap
        top += break_
    scale = max(1, 110 // max(height, width))
    margin_left, margin_top = 200, 80  # for the labels and the title
    size = canvas.shape[1] * scale + margin_left, canvas.shape[0] * scale + margin_top
    figure = Figure(figsize=(size[0] / 200, size[1] / 200), dpi=200)
    left, top_ = margin_left / size[0], 1 - margin_top / size[1]
    axes = figure.add_axes((left, 0, 1 - left, top_))
    axes.imshow(canvas, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks(list(centres), list(centres.values()), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(
        title, fontsize=9, x=0.5 + left / 2, y=1 - margin_top / 2 / size[1], va="center"
    )
    figure.savefig(path)


def strip(rows: Sequence[Images], side: int = 96) -> bytes:
    """Rows of images as a file, clear between the images: PNG, or, of photographs, WebP.

    Args:
      rows: images in [0, 1], all of one size, the rows of one length; channels as `image_rows` has
        them.
      side: how large an image is to be at least (each pixel becomes a square of a whole number of
        pixels) if it is smaller, and at most if it is larger. Enlarged, it is kept to the bit.
    """
    shown = [[_seen(image) for image in row] for row in rows]
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
    return _file(canvas, "PNG" if scale > 1 else "WEBP")


def filters(
    kernels: Float[np.ndarray, "height width inputs count"], columns: int = 8, side: int = 48
) -> bytes:
    """The filters of a first layer as a PNG file, side by side, each scaled to its own largest.

    Of three inputs (RGB) a filter is drawn in its colours, gray where it is 0. Of others the mean
    over the inputs is drawn: blue what is negative, orange what is positive, clear what is 0.
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
    return _file(canvas, "PNG")


def _seen(image: Float[np.ndarray, "height width channels"]) -> np.ndarray:
    """An image with one channel or three."""
    return image[..., :3] if image.shape[-1] in (3, 4) else image.mean(-1)[..., None]


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bytes [h w c] at a size (width, height): a whole multiple, or less."""
    height, width, channels = pixels.shape
    if size[0] >= width and size[1] >= height:
        return pixels.repeat(size[1] // height, 0).repeat(size[0] // width, 1)
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS)).reshape(*size[::-1], channels)


def _file(canvas: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    image, file = Image.fromarray(canvas), io.BytesIO()
    if kind == "WEBP":
        image.convert("RGBA").save(file, kind, quality=85)
    else:
        image.save(file, kind)
    return file.getvalue()


def learning_curves(
    path: File, history: Sequence[Mapping[str, float]], loss: str, border: int = 0
) -> None:
    """Draws the train and the test loss after each epoch.

    Args:
      history: rows with "epoch", "train_loss" and "test_loss".
      loss: its name and unit, for the axis.
      border: the number of epochs without noise at the start, marked if there are any.
    """
    figure, axes = _single()
    epochs = [row["epoch"] for row in history]
    higher = max(("train_loss", "test_loss"), key=lambda key: history[-1][key])
    for key, label, color in [("train_loss", "train", COLORS[0]), ("test_loss", "test", COLORS[1])]:
        values = [row[key] for row in history]
        axes.plot(epochs, values, color=color, marker="o" if len(epochs) <= 40 else "", ms=3)
        axes.annotate(
            f"{label} {values[-1]:.4f}",
            (epochs[-1], values[-1]),
            xytext=(6, 5 if key == higher else -5),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize="small",
            annotation_clip=False,
        )
    if border:
        axes.axvline(border + 0.5, color=GRAY, lw=0.8, ls=":")
        axes.text(
            border + 0.5, axes.get_ylim()[1], " with noise from here", va="top", fontsize="small"
        )
    axes.set(xlabel="epoch", ylabel=loss, title="Learning curves", yscale="log")
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    _plain(axes)
    _save(figure, axes, path)


def error_against_sigma(
    path: File,
    curves: Mapping[str, Mapping[float, float]],
    trained: Sequence[float] = (),
    spread: Mapping[str, Mapping[float, float]] | None = None,
) -> None:
    """Draws the test error against the noise level, one line for each model.

    Args:
      curves: model name to (sigma to mean squared error).
      trained: the sigma, or the two ends of the range, that a single model was trained at.
      spread: model name to (sigma to the standard deviation of the error), drawn as bars where
        there is one.
    """
    many = len(curves) > 6  # their legend has no room among the lines
    figure, axes = _single(6 + 2 * many, max(3.8, 0.8 + 0.18 * len(curves)))
    if len(trained) == 2:
        axes.axvspan(*trained, color="0.92", lw=0)
    elif trained:
        axes.axvline(trained[0], color="0.85", lw=4)
    for i, (name, points) in enumerate(curves.items()):
        sigmas = sorted(points)
        errors = [points[s] for s in sigmas]
        bars = (spread or {}).get(name, {})
        axes.errorbar(
            sigmas,
            errors,
            [bars.get(s, 0.0) for s in sigmas] if bars else None,
            color=COLORS[i % len(COLORS)],
            linestyle=("-", "--", ":", "-.")[i // len(COLORS) % 4],
            marker="o",
            ms=4,
            capsize=3,
            label=name,
        )
        for sigma, error in zip(sigmas, errors, strict=True) if len(curves) == 1 else ():
            axes.annotate(
                f"{error:.4f}",
                (sigma, error),
                xytext=(0, 7),
                textcoords="offset points",
                ha="right" if bars else "center",
                fontsize="small",
            )
    if many:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small", handlelength=3)
    elif len(curves) > 1 or not trained:
        axes.legend(frameon=False, fontsize="small")
    axes.margins(0.09, 0.14)
    axes.set(
        xlabel=f"noise level sigma at test{' (shaded: trained at)' * bool(trained)}",
        ylabel="test mean squared error",
        title="Error against sigma" + ", with its standard deviation over the seeds" * bool(spread),
    )
    axes.set_ylim(bottom=0)
    _save(figure, axes, path)


def overlaid(
    path: File,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> None:
    """Draws lines over each other, with a legend if there are several.

    Args:
      lines: label to the values along x and along y.
      log: a logarithmic scale along y.
    """
    many = len(lines) > 6  # their legend has no room among them
    figure, axes = _single(6 + 2 * many, max(3.8, 0.8 + 0.18 * len(lines)))
    for i, (label, (x, y)) in enumerate(lines.items()):
        axes.plot(
            x,
            y,
            color=COLORS[i % len(COLORS)],
            linestyle=("-", "--", ":", "-.")[i // len(COLORS) % 4],
            marker="o" if len(x) <= 40 else "",
            ms=3,
            label=label,
        )
    if many:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small", handlelength=3)
    elif len(lines) > 1:
        axes.legend(frameon=False, fontsize="small")
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    if all(float(value).is_integer() for x, _ in lines.values() for value in x):
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    if log:
        _plain(axes)
    _save(figure, axes, path)


def histogram(path: File, values: Float[np.ndarray, " n"], xlabel: str, ylabel: str) -> None:
    """Draws how often values occur, and marks their median and their mean."""
    figure, axes = _single()
    top = float(np.quantile(values, 0.995))
    inside = values[values <= top]
    axes.hist(inside, bins=min(50, max(5, len(values) // 20)), color=COLORS[0], alpha=0.75)
    marks = [("median", np.median(values), "--"), ("mean", np.mean(values), "-")]
    for label, value, style in marks:
        axes.axvline(value, color=GRAY, lw=1.2, ls=style, label=f"{label} {value:.4f}")
    axes.legend(frameon=False, fontsize="small")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
    _save(figure, axes, path)


def latent_space(
    path: File,
    latent: Float[np.ndarray, "n latent"],
    labels: Int[np.ndarray, " n"] | None,
    title: str,
) -> None:
    """Draws latent vectors on their first two principal components, coloured by label."""
    centred = latent.reshape(len(latent), -1) - latent.reshape(len(latent), -1).mean(0)
    _, values, axes_ = np.linalg.svd(centred, full_matrices=False)
    points = np.pad(centred @ axes_[:2].T, ((0, 0), (0, max(0, 2 - len(axes_)))))
    shares = np.pad(values**2 / max((values**2).sum(), 1e-30), (0, 2))
    xlabel = f"first principal component ({shares[0]:.0%} of the variance)"
    labelled_points(path, points, labels, xlabel, f"second ({shares[1]:.0%})", title)


def labelled_points(
    path: File,
    points: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, " n"] | None,
    xlabel: str,
    ylabel: str,
    title: str,
) -> None:
    """Draws points, coloured by label where there are labels and no more of them than colours."""
    figure, axes = _single(height=5)
    size = min(30, max(5, 5000 / len(points)))
    classes = np.unique(labels) if labels is not None else np.empty(0, int)
    if labels is None or len(classes) > len(COLORS):
        axes.scatter(points[:, 0], points[:, 1], s=size, color=COLORS[0], alpha=0.5, lw=0)
    else:
        for color, label in zip(COLORS, classes, strict=False):
            x, y = points[labels == label].T
            axes.scatter(x, y, s=size, color=color, alpha=0.55, lw=0)
        for color, label in zip(COLORS, classes, strict=False):
            x, y = np.median(points[labels == label], axis=0)
            box = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": color, "lw": 1.5}
            axes.text(x, y, str(label), ha="center", va="center", fontsize=9, bbox=box)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    _save(figure, axes, path)


def _single(width: float = 6, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain(axes: Axes) -> None:
    """Writes the numbers along a logarithmic y as they are."""
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.4g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%.3g"))
    axes.tick_params(axis="y", which="minor", labelsize="small")
    low, high = axes.get_ylim()
    if high > 8 * low:  # more numbers than there is room for
        axes.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 5)))


def _save(figure: Figure, axes: Axes, path: File) -> None:
    if isinstance(path, Path):
        axes.title.set_fontsize(9)
        figure.savefig(path)
    else:  # a page has its own headings
        axes.set_title("")
        figure.savefig(path, format="svg", metadata={"Date": None})
