"""The page of a run: report.html, one file with all there is to see of it, and nothing to fetch."""

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from .. import program
from ..common.flags import typed
from ..runs.experiment import write_text
from ..runs.folder import Run
from .latent import Embedding, along, latent_figures
from .material import BATCH, Material, Restore, error_curve, labels_of, latent_vectors, restorer
from .page import Picture, duration, render, settings, shown, spread

if TYPE_CHECKING:
    from .experiment import Experiment

FILE = "report.html"


SAMPLES = 8


LEVELS = 6  # noise levels of the samples, at most


FILTERS = 64


LOSSES = {"mse": "mean squared error", "bce": "binary cross-entropy (nats)"}


METRICS = {"mse": "mse", "psnr": "psnr, dB", "ssim": "ssim", "bce": "bce", "recovery": "read"}


# The sections of the page; one that has nothing to show is left out.
CONTENTS = {
    "results": "Results",
    "images": "Images",
    "curves": "Learning curves",
    "sigma": "Error against sigma",
    "ranked": "Worst and best",
    "latent": "Latent space",
    "sweeps": "Traversals",
    "ways": "Interpolations",
    "filters": "First layer",
    "configuration": "Configuration",
    "timings": "Timings",
    "versions": "Versions",
}


def finish(
    experiment: "Experiment",
    params: Any,
    summary: Mapping[str, Any],
    errors: Float[np.ndarray, " n"] | None,
    out: Path,
) -> None:
    """Draws the figures of a run that has come to its end and writes its page, if they are wanted,
    and shows its samples to what follows it.

    Args:
      summary, errors: as of `Material`; the errors are computed if not given.
    """
    parts = (experiment.config, experiment.dataset, experiment.corruption, experiment.model)
    material = Material(Run(*parts, params), experiment.history, summary, np.empty(0))
    restore = restorer(material)
    if experiment.arguments.figures:
        if errors is None:
            errors = experiment.stages[-1].test(params)["mse"]
        material = material._replace(errors=errors)
        latent = latent_vectors(material)
        draw(material, latent, restore, out / "figures")
        write(material, latent, restore, out)
    step = int(experiment.history[-1]["step"])
    experiment.trackers.finish(step, partial(sample_grid, material, restore))


def draw(
    material: Material,
    latent: Float[np.ndarray, "n latent"] | None,
    restore: "Restore",
    folder: Path,
) -> None:
    """Draws the figures of a run as files."""
    from jaxdae import figures

    folder.mkdir(exist_ok=True)
    run = material.run
    config, noise, tested = run.config, str(run.corruption), material.tested
    first = np.arange(min(27, len(run.dataset.test)))
    shown = [
        np.concatenate(parts)
        for parts in zip(
            *(restore(first[i : i + BATCH]) for i in range(0, len(first), BATCH)), strict=True
        )
    ]
    rows = [
        dict(zip(("original", material.given, "output"), part, strict=True))
        for part in zip(
            *(np.array_split(each, max(1, len(each) // 9)) for each in shown), strict=True
        )
    ]
    figures.image_rows(folder / "digits.png", rows, f"{tested.capitalize()} images, {noise}")
    ten = (each[:10] for each in shown)
    title = f"The first ten {tested} images, {noise}"
    row = dict(zip(("original", material.given, "denoised"), ten, strict=True))
    figures.image_rows(folder / "first_ten.png", [row], title)
    loss, border = LOSSES[config.loss], config.clean_epochs
    figures.learning_curves(folder / "curves.png", material.history, loss, border)
    if material.by_sigma:
        figures.error_against_sigma(
            folder / "error_against_sigma.png", error_curve(material), config.sigma
        )
    if latent is not None:
        figures.latent_space(
            folder / "latent_space.png",
            latent,
            labels_of(material, len(latent)),
            f"Latent vectors of {tested} images, {noise}",
        )


def write(
    material: Material,
    latent: Float[np.ndarray, "n latent"] | None,
    restore: "Restore",
    folder: Path,
    embedding: Embedding = "pca",
) -> None:
    """Writes the page of a run to its folder, whole or not at all."""
    write_text(folder / FILE, page(material, latent, restore, folder, embedding))


def page(
    material: Material,
    latent: Float[np.ndarray, "n latent"] | None,
    restore: "Restore",
    folder: Path,
    embedding: Embedding = "pca",
) -> str:
    """The page of a run, HTML."""
    config = material.run.config
    sweeps, ways = along(material, latent, restore)
    values = {
        "kind": "report",
        "title": folder.resolve().name,
        "about": about(material),
        "headline": headline(material),
        "table": table(material),
        "given": material.given,
        "tested": material.tested,
        "corruption": str(material.run.corruption),
        "labelled": material.run.dataset.test.labels is not None,
        "samples": samples(material, restore),
        "curves": curves(material),
        "sigma": sigma_curve(material),
        "errors": error_figure(material),
        "ranked": ranked(material, restore),
        "latent": latent_figures(material, latent, embedding),
        "sweeps": sweeps,
        "ways": ways,
        "filters": first_layer(material),
        "command": typed(config),
        "settings": settings(config),
        "timings": timings(material),
        "versions": material.summary["versions"],
        "again": f"{program('report')} {folder}",
    }
    values["contents"] = [(name, title) for name, title in CONTENTS.items() if values.get(name, 1)]
    return render("report.html", values)


def about(material: Material) -> str:
    """What was run, in a line."""
    config, summary = material.run.config, material.summary
    return (
        f"{config.recipe}: {config.architecture}, {summary['parameters']:,} parameters; "
        f"{material.run.corruption}; {len(material.run.dataset.train):,} images of "
        f"{config.dataset}, {summary['epochs']} epoch{'s' * (summary['epochs'] != 1)}, seed "
        f"{config.seed}"
    )


def headline(material: Material) -> list[tuple[str, str]]:
    """The results that come first: what it is, and how much."""
    last, summary = material.history[-1], material.summary
    test = summary["test"]
    own = test.get(str(material.strength), {})
    tiles = [
        ("mean squared error", shown("mse", last["test_mse"])),
        ("psnr", f"{shown('psnr', last['test_psnr'])} dB"),
        ("ssim", f"{last['test_ssim']:.3f}"),
    ]
    if "recovery" in own:
        tiles.append(("digits read", f"{own['recovery']:.1%}"))
    return [
        *tiles,
        ("training", duration(summary["train_seconds"])),
        ("images a second", f"{summary['images_per_second']:,.0f}"),
    ]


def table(material: Material) -> dict[str, Any]:
    """The closing table: its heads and its rows."""
    test = material.summary["test"]
    names = [name for name in METRICS if name in next(iter(test.values()))]
    return {
        "heads": ["sigma" if material.by_sigma else "corruption", *(METRICS[n] for n in names)],
        "rows": [
            (label, [shown(name, row[name]) for name in names]) for label, row in test.items()
        ],
        "read": "recovery" in names,
        "own": str(material.strength),
        "colored": False,  # no colour of its own for each row
    }


def samples(material: Material, restore: Restore) -> list[list[Picture]]:
    """Rows of test images: clean, then given and restored at each noise level."""
    from jaxdae import figures

    chosen = spread(np.arange(len(material.run.dataset.test)), SAMPLES)
    test = material.summary["test"]
    levels: list[float | None] = [None]
    if material.by_sigma:
        levels = spread([float(sigma) for sigma in test], LEVELS).tolist()
    groups: list[list[Picture]] = []
    for level in levels:
        clean, given, restored = restore(chosen, level)
        if not groups:
            png = figures.strip([clean])
            groups.append([Picture(png, f"{len(chosen)} {material.tested} images", "clean")])
        label = str(material.run.corruption) if level is None else str(level)
        error = shown("mse", test[label]["mse"]) if label in test else ""
        where = material.run.corruption if level is None else f"sigma {level:g}"
        groups.append(
            [
                Picture(
                    figures.strip([given]),
                    f"The same images as the network is given them: {where}",
                    material.given,
                    "" if level is None else f"σ {level:g}",
                ),
                Picture(
                    figures.strip([restored]),
                    f"What the network makes of them: mean squared error {error} over all",
                    "restored",
                    f"mse {error}" if error else "",
                ),
            ]
        )
    return groups


def sample_grid(material: Material, restore: "Restore") -> UInt8[np.ndarray, "height width 3"]:
    """The samples of the page as one picture, on white."""
    from PIL import Image

    from jaxdae import figures

    chosen = spread(np.arange(len(material.run.dataset.test)), SAMPLES)
    levels = [float(sigma) for sigma in material.summary["test"]] if material.by_sigma else [None]
    rows = [part for level in levels for part in restore(chosen, level)[1:]]
    clean = restore(chosen, levels[0])[0]
    picture = Image.open(io.BytesIO(figures.strip([clean, *rows]))).convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return np.asarray(canvas.convert("RGB"))


def curves(material: Material) -> list[tuple[str, str]]:
    """The learning curves: what each is of, and its SVG."""
    from jaxdae import figures

    history, config = material.history, material.run.config
    epochs = [row["epoch"] for row in history]
    last = history[-1]
    loss = figures.inline(
        f"Training and {material.tested} loss after each epoch: they end at "
        f"{last['train_loss']:.5f} and {last['test_loss']:.5f}",
        figures.learning_curves,
        history,
        LOSSES[config.loss],
        config.clean_epochs,
    )
    drawn = [("Loss", loss)]
    if len(history) == 1:
        return drawn
    for title, name, unit in (
        ("Signal to noise", "test_psnr", "psnr, dB"),
        ("Structural similarity", "test_ssim", "ssim"),
        ("Learning rate", "learning_rate", "learning rate"),
    ):
        values = [row[name] for row in history]
        if np.isfinite(values).all():
            label = f"{title} after each epoch: it ends at {values[-1]:.4g}"
            lines = {title: (epochs, values)}
            drawn.append((title, figures.inline(label, figures.overlaid, lines, "epoch", unit)))
    return drawn


def sigma_curve(material: Material) -> str | None:
    """The error against the noise level, SVG, where there are levels."""
    from jaxdae import figures

    if not material.by_sigma:
        return None
    points = error_curve(material)
    ends = next(iter(points.values()))
    low, high = min(ends), max(ends)
    label = (
        f"Mean squared error against sigma: {ends[low]:.4f} at {low:g}, {ends[high]:.4f} at "
        f"{high:g}"
    )
    return figures.inline(label, figures.error_against_sigma, points, material.run.config.sigma)


def error_figure(material: Material) -> str | None:
    """How the error is distributed over the images, SVG."""
    from jaxdae import figures

    errors = material.errors
    if len(errors) < 50:
        return None
    label = (
        f"Distribution of the mean squared error over {len(errors):,} images: median "
        f"{np.median(errors):.4f}, mean {errors.mean():.4f}"
    )
    return figures.inline(
        label, figures.histogram, errors, "mean squared error of an image", "images"
    )


def ranked(material: Material, restore: Restore) -> list[tuple[str, list[Picture]]]:
    """The images that are restored worst, and best, each with what was given and restored."""
    from jaxdae import figures

    count = min(BATCH, len(material.errors) // 2)
    if not count:
        return []
    order = np.argsort(material.errors, kind="stable")
    labels = material.run.dataset.test.labels
    groups = []
    for name, chosen in (("Worst", order[::-1][:count]), ("Best", order[:count])):
        pictures = []
        for i, parts in zip(chosen, zip(*restore(chosen), strict=True), strict=True):
            error = f"{material.errors[i]:.4f}"
            label = "" if labels is None else f", label {labels[i]}"
            alt = f"Image {i}{label}: clean, {material.given}, restored with an error of {error}"
            png = figures.strip([part[None] for part in parts])
            pictures.append(Picture(png, alt, error, f"#{i}{label}"))
        groups.append((name, pictures))
    return groups


def first_layer(material: Material) -> dict[str, Any] | None:
    """A picture of the filters of the first layer, if they can be seen."""
    from jaxdae import figures

    params, shape = material.run.params, material.run.model.image_shape
    if "encoder" in params:
        layers = params["encoder"]
        kernel = layers["conv_0" if "conv_0" in layers else "dense_0"]["kernel"]
    else:
        kernel = params["stem"]["kernel"]
    kernel = np.asarray(kernel, np.float32)
    if kernel.ndim == 2:  # the weights of a whole image
        kernel = kernel.reshape(*shape, -1)
    count = kernel.shape[-1]
    png = figures.filters(kernel[..., :FILTERS])
    size = f"{kernel.shape[0]} × {kernel.shape[1]}"
    alt = f"{min(count, FILTERS)} filters of {size} pixels"
    return {
        "picture": Picture(png, alt),
        "count": count,
        "shown": min(count, FILTERS),
        "size": size,
        "colored": kernel.shape[2] == 3,
    }


def timings(material: Material) -> list[tuple[str, str]]:
    """Where the time went, and on what."""
    summary, device = material.summary, material.summary["device"]
    rows = [
        ("training", duration(summary["train_seconds"])),
        ("an epoch", duration(summary["train_seconds"] / summary["epochs"])),
        ("compiling", duration(summary["compile_seconds"])),
    ]
    if summary["start_seconds"]:
        rows.append(("from the start to the first step", duration(summary["start_seconds"])))
    return [
        *rows,
        ("images a second", f"{summary['images_per_second']:,.0f}"),
        ("steps", f"{material.history[-1]['step']:,}"),
        ("devices", f"{device['count']} × {device['kind']}"),
    ]
