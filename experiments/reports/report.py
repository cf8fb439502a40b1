"""The report of a run: report.html, a single file that loads nothing else."""

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxdae import figures
from jaxdae.files import write_whole

from .. import program
from ..common.flags import to_command
from ..runs.experiment import Experiment
from ..runs.finished import Run
from . import samples
from .latent import Embedding, latent_figures, lines
from .material import BATCH, Material, Restore, labels_of, latent_vectors, restorer
from .page import Picture, duration, render, settings, shown, spread

FILE = "report.html"
FILTERS = 64  # filters of the first layer that are shown, at most
LOSSES = {
    "mse": "mean squared error",
    "log_mse": "log of the mean squared error",
    "bce": "binary cross-entropy (nats)",
}
# Columns of the table: key to heading.
METRICS = {"mse": "mse", "psnr": "psnr, dB", "ssim": "ssim", "bce": "bce", "accuracy": "accuracy"}
# The sections of the page. A section that is empty is left out.
CONTENTS = {
    "results": "Results",
    "images": "Images",
    "curves": "Learning curves",
    "sigma": "Error against sigma",
    "ranked": "Worst and best",
    "latent": "Latent space",
    "traversals": "Traversals",
    "interpolations": "Interpolations",
    "filters": "First layer",
    "configuration": "Configuration",
    "timings": "Timings",
    "versions": "Versions",
}


def finish(
    experiment: Experiment,
    params: Any,
    summary: Mapping[str, Any],
    errors: Float[np.ndarray, " n"] | None,
    out: Path,
) -> None:
    """At the end of a run: draws its figures, writes its report, and gives samples to its trackers.

    Args:
      summary, errors: see `Material`; the errors are computed if they are None.
    """
    parts = (experiment.config, experiment.dataset, experiment.task, experiment.model)
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
    restore: Restore,
    folder: Path,
) -> None:
    """Draws the figures of a run as files in a folder."""
    folder.mkdir(exist_ok=True)
    run = material.run
    config, noise, tested = run.config, str(run.task), material.tested
    first = np.arange(min(27, len(run.dataset.test)))
    shown = [
        np.concatenate(parts)
        for parts in zip(
            *(restore(first[i : i + BATCH]) for i in range(0, len(first), BATCH)), strict=True
        )
    ]
    rows = [
        dict(zip(("original", material.input, "output"), part, strict=True))
        for part in zip(
            *(np.array_split(each, max(1, len(each) // 9)) for each in shown), strict=True
        )
    ]
    figures.image_rows(folder / "digits.png", rows, f"{tested.capitalize()} images, {noise}")
    ten = (each[:10] for each in shown)
    title = f"The first ten {tested} images, {noise}"
    row = dict(zip(("original", material.input, "denoised"), ten, strict=True))
    figures.image_rows(folder / "first_ten.png", [row], title)
    loss, border = LOSSES[config.loss], config.clean_epochs
    figures.learning_curves(folder / "curves.png", material.history, loss, border)
    if material.by_sigma:
        figures.error_against_sigma(
            folder / "error_against_sigma.png",
            {config.recipe: material.error_curve},
            config.sigma,
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
    restore: Restore,
    folder: Path,
    embedding: Embedding = "pca",
) -> None:
    """Writes the report of a run to its folder."""
    write_whole(folder / FILE, page(material, latent, restore, folder, embedding))


def page(
    material: Material,
    latent: Float[np.ndarray, "n latent"] | None,
    restore: Restore,
    folder: Path,
    embedding: Embedding = "pca",
) -> str:
    """The report of a run, HTML."""
    config = material.run.config
    traversals, interpolations = lines(material, latent, restore)
    return render(
        "report.html",
        CONTENTS,
        {
            "kind": "report",
            "title": folder.resolve().name,
            "about": about(material),
            "headline": headline(material),
            "table": table(material),
            "input": material.input,
            "tested": material.tested,
            "corruption": str(material.run.task),
            "labelled": material.run.dataset.test.labels is not None,
            "samples": sample_rows(material, restore),
            "curves": curves(material),
            "sigma": sigma_curve(material),
            "errors": error_figure(material),
            "ranked": ranked(material, restore),
            "latent": latent_figures(material, latent, embedding),
            "traversals": traversals,
            "interpolations": interpolations,
            "filters": first_layer(material),
            "command": to_command(config),
            "settings": settings(config),
            "timings": timings(material),
            "versions": material.summary["versions"],
            "again": f"{program('report')} {folder}",
        },
    )


def about(material: Material) -> str:
    """The run in a line."""
    config, summary = material.run.config, material.summary
    return (
        f"{config.recipe}: {config.architecture}, {summary['parameters']:,} parameters; "
        f"{material.run.task}; {len(material.run.dataset.train):,} images of "
        f"{config.dataset}, {summary['epochs']} epoch{'s' * (summary['epochs'] != 1)}, seed "
        f"{config.seed}"
    )


def headline(material: Material) -> list[tuple[str, str]]:
    """The main results: name and value."""
    last, summary = material.history[-1], material.summary
    test = summary["test"]
    own = test.get(str(material.strength), {})
    tiles = [
        ("mean squared error", shown("mse", last["test_mse"])),
        ("psnr", f"{shown('psnr', last['test_psnr'])} dB"),
        ("ssim", f"{last['test_ssim']:.3f}"),
    ]
    if "accuracy" in own:
        tiles.append(("accuracy", f"{own['accuracy']:.1%}"))
    return [
        *tiles,
        ("training", duration(summary["train_seconds"])),
        ("images per second", f"{summary['images_per_second']:,.0f}"),
    ]


def table(material: Material) -> dict[str, Any]:
    """The table of the final evaluation: "heads", and "rows" of a label and its cells."""
    test = material.summary["test"]
    names = [name for name in METRICS if name in next(iter(test.values()))]
    return {
        "heads": ["sigma" if material.by_sigma else "corruption", *(METRICS[n] for n in names)],
        "rows": [
            (label, [shown(name, row[name]) for name in names]) for label, row in test.items()
        ],
        "accuracy": "accuracy" in names,
        "own": str(material.strength),
        "colored": False,
    }


def levels_of(material: Material) -> list[float | None]:
    """The noise levels that the run was tested at; only None if it has none."""
    return [float(sigma) for sigma in material.summary["test"]] if material.by_sigma else [None]


def sample_rows(material: Material, restore: Restore) -> list[list[Picture]]:
    """Rows of test images: clean, then the input and the output at each noise level."""
    chosen = samples.chosen(material)
    groups: list[list[Picture]] = []
    for level in spread(levels_of(material), samples.LEVELS).tolist():
        clean, noisy, restored = restore(chosen, level)
        if not groups:
            groups.append([samples.clean_row(material, clean)])
        note = "" if level is None else f"σ {level:g}"
        groups.append(
            [
                samples.input_row(material, noisy, level, note),
                samples.output_row(material, restored, level),
            ]
        )
    return groups


def sample_grid(material: Material, restore: Restore) -> UInt8[np.ndarray, "height width 3"]:
    """The samples at all noise levels as one picture, on white."""
    from PIL import Image

    chosen, levels = samples.chosen(material), levels_of(material)
    rows = [part for level in levels for part in restore(chosen, level)[1:]]
    clean = restore(chosen, levels[0])[0]
    picture = Image.open(io.BytesIO(figures.strip([clean, *rows]))).convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return np.asarray(canvas.convert("RGB"))


def curves(material: Material) -> list[tuple[str, str]]:
    """The learning curves: title and SVG."""
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
    """The error against the noise level, SVG; None if there are no noise levels."""
    if not material.by_sigma:
        return None
    config, curve = material.run.config, material.error_curve
    low, high = min(curve), max(curve)
    label = (
        f"Mean squared error against sigma: {curve[low]:.4f} at {low:g}, {curve[high]:.4f} at "
        f"{high:g}"
    )
    points = {config.recipe: curve}
    return figures.inline(label, figures.error_against_sigma, points, config.sigma)


def error_figure(material: Material) -> str | None:
    """The distribution of the error over the images, SVG; None for fewer than 50 images."""
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
    """The images with the largest and the smallest errors: each one clean, noisy and restored."""
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
            alt = f"Image {i}{label}: clean, {material.input}, restored with an error of {error}"
            png = figures.strip([part[None] for part in parts])
            pictures.append(Picture(png, alt, error, f"#{i}{label}"))
        groups.append((name, pictures))
    return groups


def first_layer(material: Material) -> dict[str, Any] | None:
    """A picture of the filters of the first layer."""
    params, model = material.run.params, material.run.model
    if "encoder" in params:
        layers = params["encoder"]
        kernel = layers["conv_0" if "conv_0" in layers else "dense_0"]["kernel"]
    else:
        kernel = params["stem"]["kernel"]
    kernel = np.asarray(kernel, np.float32)
    if kernel.ndim == 2:  # a dense layer: each unit has weights for a whole image
        kernel = kernel.reshape(*(model.image_size or ()), model.channels, -1)
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
    """Times and devices: name and value."""
    summary, device = material.summary, material.summary["device"]
    rows = [
        ("training", duration(summary["train_seconds"])),
        ("each epoch", duration(summary["train_seconds"] / summary["epochs"])),
        ("compiling", duration(summary["compile_seconds"])),
    ]
    if summary["start_seconds"]:
        rows.append(("start to first step", duration(summary["start_seconds"])))
    return [
        *rows,
        ("images per second", f"{summary['images_per_second']:,.0f}"),
        ("steps", f"{material.history[-1]['step']:,}"),
        ("devices", f"{device['count']} × {device['kind']}"),
    ]
