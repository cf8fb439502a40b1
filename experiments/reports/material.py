"""What a page is made of: a finished run, what it restores, and the error of each image."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float, Int

from ..runs.folder import Run, load_run, read_history, read_summary

LATENT_POINTS = 2000


BATCH = 10  # images that are restored at a time: one compilation


Images = Float[np.ndarray, "n height width channels"]


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


def read(folder: Path) -> Material:
    """What there is of a finished run, without the error of each image.

    Raises:
      InputError: there is none, or what there is of it is damaged.
    """
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


def latent_vectors(material: Material) -> Float[np.ndarray, "n latent"] | None:
    """The latent vectors of the first test images as the network is given them, if it has any."""
    from jaxdae.evaluation import encode
    from jaxdae.model import Autoencoder

    run = material.run
    if not isinstance(run.model, Autoencoder):
        return None
    return encode(run.model, run.params, run.corruption, run.dataset.test.images[:LATENT_POINTS])


def error_curve(material: Material) -> dict[str, dict[float, float]]:
    """The recipe's error at each noise level."""
    test = material.summary["test"]
    return {material.run.config.recipe: {float(sigma): row["mse"] for sigma, row in test.items()}}


def labels_of(material: Material, count: int) -> Int[np.ndarray, " n"] | None:
    labels = material.run.dataset.test.labels
    return None if labels is None else labels[:count]


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


def decoded(material: Material, vectors: Float[np.ndarray, "rows steps latent"]) -> np.ndarray:
    """What latent vectors stand for: images [rows steps h w c]."""
    from jaxdae.evaluation import decode
    from jaxdae.model import Autoencoder

    run = material.run
    model = cast(Autoencoder, run.model)
    images = decode(model, run.params, vectors.reshape(-1, vectors.shape[-1]))
    return images.reshape(*vectors.shape[:2], *images.shape[1:])
