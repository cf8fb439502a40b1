"""The figures of a run, as PNG files: the only place that knows matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
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

    Args:
      groups: for each group, row label to images in [0, 1] with 1, 3 or 4 channels; all rows of
        the same length.
    """
    rows = [row for group in groups for row in group.items()]
    columns = len(rows[0][1])
    gap = 0.25  # of an image, between two groups
    height = 0.62 * (len(rows) + gap * (len(groups) - 1))
    figure = Figure(figsize=(0.62 * columns + 1.1, height + 0.45), dpi=200)
    left, top = 1.05 / figure.get_figwidth(), 1 - 0.4 / figure.get_figheight()
    grid = figure.add_gridspec(
        len(groups), 1, left=left, right=0.99, top=top, bottom=0.01, hspace=0.09
    )
    for number, group in enumerate(groups):
        cells = grid[number].subgridspec(len(group), columns, wspace=0.06, hspace=0.06)
        for row, (label, images) in enumerate(group.items()):
            for column, image in enumerate(images):
                axes = figure.add_subplot(cells[row, column])
                shown = image[..., 0] if image.shape[-1] == 1 else image
                axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if column == 0:
                    axes.set_ylabel(
                        label, rotation=0, ha="right", va="center", labelpad=6, fontsize=8
                    )
    figure.suptitle(title, fontsize=9, y=1 - 0.18 / figure.get_figheight())
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
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.4g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%.3g"))
    axes.tick_params(axis="y", which="minor", labelsize=7)
    _save(figure, axes, path)


def error_against_sigma(
    path: Path, curves: Mapping[str, Mapping[float, float]], trained: Sequence[float]
) -> None:
    """Draws the test error against the noise level, one line for each model.

    Args:
      curves: model name to (sigma to mean squared error).
      trained: the sigma, or the two ends of the range, that the model was trained at.
    """
    figure, axes = _single()
    if len(trained) == 2:
        axes.axvspan(*trained, color="0.92", lw=0)
    else:
        axes.axvline(trained[0], color="0.85", lw=4)
    for color, (name, points) in zip(COLORS, curves.items(), strict=False):
        sigmas = sorted(points)
        axes.plot(sigmas, [points[s] for s in sigmas], color=color, marker="o", ms=4, label=name)
        for sigma in sigmas:
            axes.annotate(
                f"{points[sigma]:.4f}",
                (sigma, points[sigma]),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    if len(curves) > 1:
        axes.legend(frameon=False)
    axes.margins(0.09, 0.14)
    axes.set(
        xlabel="noise level sigma at test (shaded: trained at)",
        ylabel="test mean squared error",
        title="Error against sigma",
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
    classes = [] if labels is None else np.unique(labels)
    if labels is None or len(classes) > len(COLORS):
        axes.scatter(*points.T, s=4, color=COLORS[0], alpha=0.5, lw=0)
    else:
        for color, label in zip(COLORS, classes, strict=False):
            axes.scatter(*points[labels == label].T, s=5, color=color, alpha=0.55, lw=0)
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
