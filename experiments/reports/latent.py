"""The latent space on a page: views of it, traversals of its dimensions, and interpolations."""

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from jaxdae import figures
from jaxdae.errors import InputError

from .material import Images, Material, Restore, decoded, labels_of
from .page import Picture

DIMENSIONS = 16  # dimensions that are traversed, at most
STEPS = 9  # images of a traversal or an interpolation
PAIRS = 5
Embedding = Literal["pca", "tsne", "umap"]
# Views besides the principal components: name, module and extra of the package.
EMBEDDINGS = {"tsne": ("t-SNE", "sklearn", "looking"), "umap": ("UMAP", "umap", "umap")}


def check_embedding(name: Embedding) -> None:
    """Raises an `InputError` if the package of an embedding is not installed."""
    if name == "pca":
        return
    title, module, extra = EMBEDDINGS[name]
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"--embedding {name} needs {title}, which is not installed: "
            f'pip install "jaxdae[{extra}]"'
        )


def latent_figures(
    material: Material, latent: Float[np.ndarray, "n latent"] | None, embedding: Embedding
) -> list[tuple[str, str]]:
    """Views of the latent space: title and SVG."""
    if latent is None or len(latent) < 2:
        return []
    labels = labels_of(material, len(latent))
    drawn = [("Principal components", partial(figures.latent_space, title=""), latent)]
    if embedding != "pca":
        title = EMBEDDINGS[embedding][0]
        points = embedded(latent, embedding, material.run.config.seed)
        draw = partial(figures.labelled_points, xlabel="", ylabel="", title="")
        drawn.append((title, draw, points))
    return [
        (
            title,
            figures.inline(
                f"Latent vectors of {len(latent):,} {material.tested} images: {title}",
                function,
                points,
                labels=labels,
            ),
        )
        for title, function, points in drawn
    ]


def embedded(
    latent: Float[np.ndarray, "n latent"], embedding: Embedding, seed: int
) -> Float[np.ndarray, "n 2"]:
    """Latent vectors in the plane, by t-SNE or UMAP. The same seed gives the same points.

    Raises:
      InputError: there are fewer than 20 images.
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


def lines(
    material: Material, latent: Float[np.ndarray, "n latent"] | None, restore: Restore
) -> tuple[dict[str, Any] | None, list[Picture]]:
    """Decodes latent vectors along lines, all at once.

    Returns:
      The traversals: each dimension of one latent vector over its range. And the interpolations:
      straight lines between the latent vectors of pairs of images.
    """
    if latent is None or len(latent) < 2:
        return None, []
    low, high = np.quantile(latent, [0.02, 0.98], axis=0)
    widest = np.sort(np.argsort(low - high, kind="stable")[:DIMENSIONS])
    traversed = np.tile(latent[0], (len(widest), STEPS, 1))
    for row, i in zip(traversed, widest, strict=True):
        row[:, i] = np.linspace(low[i], high[i], STEPS)
    pairs = pairs_of(labels_of(material, len(latent)), len(latent))
    share = np.linspace(0, 1, STEPS)[:, None]
    interpolated = [latent[a] * (1 - share) + latent[b] * share for a, b in pairs]
    images = decoded(material, np.concatenate([traversed, interpolated]).astype(np.float32))
    return (
        {
            "pictures": traversal_pictures(images[: len(widest)], widest, low, high),
            "all": len(widest) == latent.shape[1],
            "of": latent.shape[1],
        },
        interpolation_pictures(images[len(widest) :], pairs, restore(np.ravel(pairs))[0]),
    )


def pairs_of(labels: Int[np.ndarray, " n"] | None, count: int) -> list[tuple[int, int]]:
    """Pairs of images: of different labels if there are labels, else of the first images."""
    firsts = np.arange(min(2 * PAIRS, count))
    if labels is not None and len(np.unique(labels)) > 1:
        firsts = np.unique(labels, return_index=True)[1][: 2 * PAIRS]
    return [(int(a), int(b)) for a, b in zip(firsts[::2], firsts[1::2], strict=False)]


def traversal_pictures(
    images: Float[np.ndarray, "rows steps height width channels"],
    dimensions: Int[np.ndarray, " rows"],
    low: Float[np.ndarray, " latent"],
    high: Float[np.ndarray, " latent"],
) -> list[Picture]:
    return [
        Picture(
            figures.strip([row], side=64),
            f"Dimension {i} from {low[i]:.2f} to {high[i]:.2f}",
            f"z{i}",
            f"{low[i]:.1f} … {high[i]:.1f}".replace("-", "−"),
        )
        for i, row in zip(dimensions, images, strict=True)
    ]


def interpolation_pictures(
    images: Float[np.ndarray, "rows steps height width channels"],
    pairs: Sequence[tuple[int, int]],
    clean: Images,
) -> list[Picture]:
    pictures = []
    for (a, b), row, ends in zip(pairs, images, np.split(clean, len(pairs)), strict=True):
        strip = figures.strip([np.concatenate([ends[:1], row, ends[1:]])], side=64)
        alt = f"From image {a} to image {b}, the clean images at the ends"
        pictures.append(Picture(strip, alt))
    return pictures
