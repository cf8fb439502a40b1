"""Plots: learning curves, errors against sigma, histograms, points."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.ticker
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxdae.figures.style import COLORS, GRAY, File


def learning_curves(
    path: File, history: Sequence[Mapping[str, float]], loss: str, border: int = 0
) -> None:
    """Draws the training loss and the test loss after each epoch.

    Args:
      path: where to write, as for all plots: a path, whose suffix is the format, or an open file
        for SVG.
      history: rows with "epoch", "train_loss" and "test_loss".
      loss: its name and unit, for the axis.
      border: the number of first epochs without noise; above 0, a line marks their end.
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
    """Draws the test error against the noise level, with one line for each model.

    Args:
      curves: model name to (sigma to mean squared error).
      trained: the sigma that a single model was trained at, or the two ends of its range.
      spread: model name to (sigma to standard deviation of the error), drawn as error bars.
    """
    many = len(curves) > 6  # the legend goes beside the axes
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
    """Draws lines in one plot, with a legend if there are several.

    Args:
      lines: label to the x values and the y values.
      log: use a logarithmic y axis.
    """
    many = len(lines) > 6  # the legend goes beside the axes
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
    """Draws a histogram of values, up to their 99.5% quantile, with their median and mean."""
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
    """Draws latent vectors on their first two principal components, coloured by label.

    Args:
      latent: one vector for each image.
      labels: see `labelled_points`.
    """
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
    """Draws points, coloured by label.

    Args:
      labels: the class of each point. With None, or more classes than colours, all points have one
        colour.
    """
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
    """Writes the numbers of a logarithmic y axis without exponents."""
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.4g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%.3g"))
    axes.tick_params(axis="y", which="minor", labelsize="small")
    low, high = axes.get_ylim()
    if high > 8 * low:  # otherwise the numbers overlap
        axes.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 5)))


def _save(figure: Figure, axes: Axes, path: File) -> None:
    if isinstance(path, Path):
        axes.title.set_fontsize(9)
        figure.savefig(path)
    else:  # the page has headings
        axes.set_title("")
        figure.savefig(path, format="svg", metadata={"Date": None})
