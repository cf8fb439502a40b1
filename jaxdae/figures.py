"""The figures of a run, as PNG files: the only place that knows matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.ticker
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Images = Float[np.ndarray, "n height width channels"]
# Categorical colours that stay apart for colour-blind eyes (Petroff 2021), one for each digit.
COLORS = matplotlib.color_sequences["petroff10"]
GRAY = "0.35"


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
                seen = image[..., :3] if image.shape[-1] in (3, 4) else image.mean(-1)[..., None]
                canvas[top : top + height, left : left + width] = seen
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


def learning_curves(
    path: Path, history: Sequence[Mapping[str, float]], loss: str, border: int = 0
) -> None:
    """Draws the train and the test loss after each epoch.

    Args:
      history: rows with "epoch", "train_loss" and "test_loss".
      loss: its name and unit, for the axis.
      border: the number of epochs without noise at the start, marked if there are any.
    """
    figure, axes = _single()
    epochs = [row["epoch"] for row in history]
    for key, label, color in [("train_loss", "train", COLORS[0]), ("test_loss", "test", COLORS[1])]:
        values = [row[key] for row in history]
        axes.plot(epochs, values, color=color, marker="o" if len(epochs) <= 40 else "", ms=3)
        axes.annotate(
            f"{label} {values[-1]:.4f}",
            (epochs[-1], values[-1]),
            xytext=(6, 5 if key == "train_loss" else -5),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    if border:
        axes.axvline(border + 0.5, color=GRAY, lw=0.8, ls=":")
        axes.text(border + 0.5, axes.get_ylim()[1], " with noise from here", va="top", fontsize=8)
    axes.set(xlabel="epoch", ylabel=loss, title="Learning curves", yscale="log")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.4g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%.3g"))
    axes.tick_params(axis="y", which="minor", labelsize=7)
    _save(figure, axes, path)


def error_against_sigma(
    path: Path,
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
                fontsize=8,
            )
    if many:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, handlelength=3)
    elif len(curves) > 1 or not trained:
        axes.legend(frameon=False, fontsize=8)
    axes.margins(0.09, 0.14)
    axes.set(
        xlabel=f"noise level sigma at test{' (shaded: trained at)' * bool(trained)}",
        ylabel="test mean squared error",
        title="Error against sigma" + ", with its standard deviation over the seeds" * bool(spread),
    )
    axes.set_ylim(bottom=0)
    _save(figure, axes, path)


def latent_space(
    path: Path,
    latent: Float[np.ndarray, "n latent"],
    labels: Int[np.ndarray, " n"] | None,
    title: str,
) -> None:
    """Draws latent vectors on their first two principal components, coloured by label."""
    centred = latent.reshape(len(latent), -1) - latent.reshape(len(latent), -1).mean(0)
    _, values, axes_ = np.linalg.svd(centred, full_matrices=False)
    points = np.pad(centred @ axes_[:2].T, ((0, 0), (0, max(0, 2 - len(axes_)))))
    shares = np.pad(values**2 / max((values**2).sum(), 1e-30), (0, 2))
    figure, axes = _single(height=5)
    classes = np.unique(labels) if labels is not None else np.empty(0, int)
    if labels is None or len(classes) > len(COLORS):
        axes.scatter(points[:, 0], points[:, 1], s=4, color=COLORS[0], alpha=0.5, lw=0)
    else:
        for color, label in zip(COLORS, classes, strict=False):
            x, y = points[labels == label].T
            axes.scatter(x, y, s=5, color=color, alpha=0.55, lw=0)
        for color, label in zip(COLORS, classes, strict=False):
            x, y = np.median(points[labels == label], axis=0)
            box = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": color, "lw": 1.5}
            axes.text(x, y, str(label), ha="center", va="center", fontsize=9, bbox=box)
    axes.set(
        xlabel=f"first principal component ({shares[0]:.0%} of the variance)",
        ylabel=f"second ({shares[1]:.0%})",
        title=title,
    )
    _save(figure, axes, path)


def _single(width: float = 6, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.title.set_fontsize(9)
    figure.savefig(path)
