"""The page of a run: report.html, one file with all there is to see of it, and nothing to fetch.

    python -m experiments.report runs/default-sigma0.5
    python -m experiments.report runs/* --embedding tsne

A run writes its page when it ends, with its figures. This writes it again: after an update, or with
another view of the latent space.
"""

import base64
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import tyro
from jaxtyping import Float, Int, UInt8

from jaxdae.errors import InputError
from jaxdae.recipes import RECIPES, Config

from . import cli, program
from .run import typed

if TYPE_CHECKING:
    from .experiment import Experiment
    from .runs import Run

PROGRAM = program("report")
PAGES = Path(__file__).parent / "pages"
FILE = "report.html"
LATENT_POINTS = 2000
BATCH = 10  # images that are restored at a time: one compilation
SAMPLES = 8
LEVELS = 6  # noise levels of the samples, at most
DIMENSIONS = 16  # of a latent that are swept, at most
STEPS = 9  # of a sweep, and of a way between two images
PAIRS = 5
FILTERS = 64
LOSSES = {"mse": "mean squared error", "bce": "binary cross-entropy (nats)"}
METRICS = {"mse": "mse", "psnr": "psnr, dB", "ssim": "ssim", "bce": "bce", "recovery": "read"}
STYLES = {
    "mse": "{:.5f}",
    "psnr": "{:.2f}",
    "ssim": "{:.4f}",
    "bce": "{:.4f}",
    "recovery": "{:.2%}",
}
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
Images = Float[np.ndarray, "n height width channels"]
Embedding = Literal["pca", "tsne", "umap"]
# What each view of the latent space beside the principal components is of, and needs.
EMBEDDINGS = {"tsne": ("t-SNE", "sklearn", "looking"), "umap": ("UMAP", "umap", "umap")}


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    embedding: Embedding = "pca"
    """Show the latent space by t-SNE or UMAP too, beside its principal components."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed, in one line.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    if not arguments.folders:
        raise InputError(f"{PROGRAM} takes the folder of a finished run, or several: give one")
    return arguments


class Material(NamedTuple):
    """What a page is made of.

    Fields:
      run: the finished run.
      history: the rows of metrics.csv.
      summary: what summary.json holds.
      errors: the mean squared error of each test image under the run's own noise.
    """

    run: "Run"
    history: Sequence[Mapping[str, float]]
    summary: Mapping[str, Any]
    errors: Float[np.ndarray, " n"]

    @property
    def by_sigma(self) -> bool:
        from jaxdae.trainer import NOISE_LEVELS

        return self.run.config.corruption in NOISE_LEVELS

    @property
    def strength(self) -> float | None:
        """The one sigma that the run was trained at, if there is one."""
        sigma = self.run.config.sigma
        return float(sigma[0]) if self.by_sigma and len(sigma) == 1 else None

    @property
    def given(self) -> str:
        """What the network is given, in a word."""
        noise = self.by_sigma or self.run.config.corruption in ("poisson", "paired")
        return "noisy" if noise else "input"

    @property
    def tested(self) -> str:
        return "validation" if self.run.config.validation_images else "test"

    def at(self, sigma: Any) -> Any:
        """The run's corruption at a sigma; as it is, if it has none."""
        from jaxdae.trainer import make_corruption

        return make_corruption(self.run.config, sigma) if self.by_sigma else self.run.corruption


def run(arguments: Arguments) -> None:
    """Writes the page of each run again.

    Raises:
      InputError: there is no finished run in a folder, or a package is missing.
    """
    if arguments.embedding != "pca":
        check_embedding(arguments.embedding)
    for folder in arguments.folders:
        material = measured(read(folder))
        write(
            material,
            latent_vectors(material),
            restorer(material),
            folder,
            arguments.embedding,
        )
        print(f"{folder / FILE}: written")


def check_embedding(name: str) -> None:
    """Raises if the package that an embedding needs is missing."""
    import importlib.util

    called, module, extra = EMBEDDINGS[name]
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f'--embedding {name}: {called} is not installed: pip install "jaxdae[{extra}]"'
        )


def read(folder: Path) -> Material:
    """What there is of a finished run, without the error of each image.

    Raises:
      InputError: there is none, or what there is of it is damaged.
    """
    from .runs import load_run, read_history, read_summary

    loaded = load_run(folder)
    return Material(loaded, read_history(folder), read_summary(folder), np.empty(0))


def measured(material: Material) -> Material:
    """With the error of each image."""
    import jax

    from jaxdae.evaluation import Evaluator

    run = material.run
    ranged = material.by_sigma and material.strength is None
    at = (lambda _: run.corruption) if ranged else material.at
    # On as many devices as the run's own test, which to the last bit another number would change.
    devices = jax.devices()[: run.config.devices]
    evaluator = Evaluator(run.model, at, run.dataset.test.images, devices=devices)
    errors = evaluator.per_image(run.params, material.strength or 0.0)["mse"]
    return material._replace(errors=errors)


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
    from .runs import Run

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


def latent_vectors(material: Material) -> Float[np.ndarray, "n latent"] | None:
    """The latent vectors of the first test images as the network is given them, if it has any."""
    from jaxdae.evaluation import encode
    from jaxdae.model import Autoencoder

    run = material.run
    if not isinstance(run.model, Autoencoder):
        return None
    return encode(run.model, run.params, run.corruption, run.dataset.test.images[:LATENT_POINTS])


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


def error_curve(material: Material) -> dict[str, dict[float, float]]:
    """The recipe's error at each noise level."""
    test = material.summary["test"]
    return {material.run.config.recipe: {float(sigma): row["mse"] for sigma, row in test.items()}}


def labels_of(material: Material, count: int) -> Int[np.ndarray, " n"] | None:
    labels = material.run.dataset.test.labels
    return None if labels is None else labels[:count]


# --- the page ----------------------------------------------------------------------------------


def write(
    material: Material,
    latent: Float[np.ndarray, "n latent"] | None,
    restore: "Restore",
    folder: Path,
    embedding: Embedding = "pca",
) -> None:
    """Writes the page of a run to its folder, whole or not at all."""
    from .experiment import write_text

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
        "again": f"{PROGRAM} {folder}",
    }
    values["contents"] = [(name, title) for name, title in CONTENTS.items() if values.get(name, 1)]
    return render("report.html", values)


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page from its template in pages/."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(values)


class Picture(NamedTuple):
    """An image of a page.

    Fields:
      file: PNG or WebP.
      alt: what it shows, for whoever does not see it.
      label, note: what stands beside it.
    """

    file: bytes
    alt: str
    label: str = ""
    note: str = ""

    @property
    def src(self) -> str:
        """The file as an address that holds it."""
        kind = "png" if self.file.startswith(b"\x89PNG") else "webp"
        return f"data:image/{kind};base64,{base64.b64encode(self.file).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        from PIL import Image

        return Image.open(io.BytesIO(self.file)).size


Restore = Callable[..., list[Images]]


def restorer(material: Material) -> Restore:
    """A function of the indices of at most `BATCH` test images, and of a sigma (the run's own if
    not given), to what they are, what the network is given and what it makes of it.
    """
    from jaxdae.evaluation import make_reconstruct

    run = material.run
    images = run.dataset.test.images
    at = make_reconstruct(run.model, material.at)
    ranged = material.by_sigma and material.strength is None
    own = make_reconstruct(run.model, lambda _: run.corruption) if ranged else at

    def restore(indices: Int[np.ndarray, " n"], sigma: float | None = None) -> list[Images]:
        padded = np.resize(indices, BATCH)
        strength = np.float32(sigma if sigma is not None else material.strength or 0.0)
        function = own if sigma is None else at
        parts = function(run.params, images[padded], padded, strength)
        return [np.asarray(part)[: len(indices)] for part in parts]

    return restore


def about(material: Material) -> str:
    """What was run, in a line."""
    config, summary = material.run.config, material.summary
    return (
        f"{config.recipe}: {config.architecture}, {summary['parameters']:,} parameters; "
        f"{material.run.corruption}; {len(material.run.dataset.train):,} images of "
        f"{config.dataset}, {summary['epochs']} epoch{'s' * (summary['epochs'] != 1)}, seed "
        f"{config.seed}"
    )


def shown(name: str, value: float | None) -> str:
    """A metric in a table; an image restored exactly has no finite psnr."""
    return "∞" if value is None or not np.isfinite(value) else STYLES[name].format(value)


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


def duration(seconds: float) -> str:
    """A time as one reads it: 57.3 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


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


def spread(values: Sequence[Any] | np.ndarray, most: int) -> np.ndarray:
    """Of a row of values so many at the most, evenly from all."""
    count = min(most, len(values))
    return np.asarray(values)[np.linspace(0, len(values) - 1, count).round().astype(int)]


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


def latent_figures(
    material: Material, latent: Float[np.ndarray, "n latent"] | None, embedding: Embedding
) -> list[tuple[str, str]]:
    """Views of the latent space: what each is, and its SVG."""
    from jaxdae import figures

    if latent is None or len(latent) < 2:
        return []
    labels = labels_of(material, len(latent))
    drawn = [("Principal components", partial(figures.latent_space, title=""), latent)]
    if embedding != "pca":
        called = EMBEDDINGS[embedding][0]
        points = embedded(latent, embedding, material.run.config.seed)
        draw = partial(figures.labelled_points, xlabel="", ylabel="", title="")
        drawn.append((called, draw, points))
    return [
        (
            called,
            figures.inline(
                f"Latent vectors of {len(latent):,} {material.tested} images: {called}",
                function,
                points,
                labels=labels,
            ),
        )
        for called, function, points in drawn
    ]


def embedded(
    latent: Float[np.ndarray, "n latent"], embedding: Embedding, seed: int
) -> Float[np.ndarray, "n 2"]:
    """Latent vectors in the plane, by t-SNE or UMAP, the same for the same seed.

    Raises:
      InputError: there are too few for neighbours to mean anything.
    """
    if len(latent) < 20:
        raise InputError(
            f"--embedding {embedding} needs at least 20 images, and there are {len(latent)}: leave "
            "it out"
        )
    neighbours = min(15, len(latent) // 4)
    if embedding == "tsne":
        from sklearn.manifold import TSNE

        view = TSNE(perplexity=2 * neighbours, init="pca", random_state=seed)
    else:
        from umap import UMAP

        view = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(view.fit_transform(latent))


def along(
    material: Material, latent: Float[np.ndarray, "n latent"] | None, restore: Restore
) -> tuple[dict[str, Any] | None, list[Picture]]:
    """What latents decode to along lines: each dimension over its spread around one latent, and
    straight ways between the latents of pairs of images. All are decoded at once.
    """
    if latent is None or len(latent) < 2:
        return None, []
    low, high = np.quantile(latent, [0.02, 0.98], axis=0)
    widest = np.sort(np.argsort(low - high, kind="stable")[:DIMENSIONS])
    swept = np.tile(latent[0], (len(widest), STEPS, 1))
    for row, i in zip(swept, widest, strict=True):
        row[:, i] = np.linspace(low[i], high[i], STEPS)
    pairs = pairs_of(labels_of(material, len(latent)), len(latent))
    share = np.linspace(0, 1, STEPS)[:, None]
    ways = [latent[a] * (1 - share) + latent[b] * share for a, b in pairs]
    images = decoded(material, np.concatenate([swept, ways]).astype(np.float32))
    return (
        {
            "pictures": sweep_pictures(images[: len(widest)], widest, low, high),
            "all": len(widest) == latent.shape[1],
            "of": latent.shape[1],
        },
        way_pictures(images[len(widest) :], pairs, restore(np.ravel(pairs))[0]),
    )


def pairs_of(labels: Int[np.ndarray, " n"] | None, count: int) -> list[tuple[int, int]]:
    """Pairs of the first images; of different labels, where there are any."""
    firsts = np.arange(min(2 * PAIRS, count))
    if labels is not None and len(np.unique(labels)) > 1:
        firsts = np.unique(labels, return_index=True)[1][: 2 * PAIRS]
    return [(int(a), int(b)) for a, b in zip(firsts[::2], firsts[1::2], strict=False)]


def sweep_pictures(
    images: Float[np.ndarray, "rows steps height width channels"],
    dimensions: Int[np.ndarray, " rows"],
    low: Float[np.ndarray, " latent"],
    high: Float[np.ndarray, " latent"],
) -> list[Picture]:
    from jaxdae import figures

    return [
        Picture(
            figures.strip([row], side=64),
            f"Dimension {i} from {low[i]:.2f} to {high[i]:.2f}",
            f"z{i}",
            f"{low[i]:.1f} … {high[i]:.1f}".replace("-", "−"),
        )
        for i, row in zip(dimensions, images, strict=True)
    ]


def way_pictures(
    images: Float[np.ndarray, "rows steps height width channels"],
    pairs: Sequence[tuple[int, int]],
    clean: Images,
) -> list[Picture]:
    from jaxdae import figures

    pictures = []
    for (a, b), row, ends in zip(pairs, images, np.split(clean, len(pairs)), strict=True):
        strip = figures.strip([np.concatenate([ends[:1], row, ends[1:]])], side=64)
        alt = f"From image {a} to image {b}, the clean images at the ends"
        pictures.append(Picture(strip, alt))
    return pictures


def decoded(material: Material, vectors: Float[np.ndarray, "rows steps latent"]) -> np.ndarray:
    """What latent vectors stand for: images [rows steps h w c]."""
    from jaxdae.evaluation import decode
    from jaxdae.model import Autoencoder

    run = material.run
    model = cast(Autoencoder, run.model)
    images = decode(model, run.params, vectors.reshape(-1, vectors.shape[-1]))
    return images.reshape(*vectors.shape[:2], *images.shape[1:])


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


def settings(config: Config) -> list[tuple[str, str, bool]]:
    """The configuration: name, value, and whether it differs from its recipe's."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input, 130 interrupted."""

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Nothing heavy is imported before the command line is known to be good.
        cli.prepare_jax(1, arguments.cache)
        run(arguments)

    return cli.status(work, "mend that, and try again")


if __name__ == "__main__":
    sys.exit(main())
