"""The material of a page: a finished run, and the functions that restore its test images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float, Int

from jaxdae.from_config import examples_of, has_sigma, make_corruption

from ..runs.finished import Run, load_run
from ..runs.folder import read_history, read_summary

LATENT_POINTS = 2000
BATCH = 10  # images that are restored at once: one compilation
Images = Float[np.ndarray, "n height width channels"]


class Material(NamedTuple):
    """The material of a page.

    Fields:
      run: the finished run.
      history: the rows of metrics.csv.
      summary: summary.json.
      errors: the mean squared error of each test image under the run's own noise.
    """

    run: Run
    history: Sequence[Mapping[str, float]]
    summary: Mapping[str, Any]
    errors: Float[np.ndarray, " n"]

    @property
    def by_sigma(self) -> bool:
        """True if the run's noise has a standard deviation."""
        return has_sigma(self.run.config)

    @property
    def strength(self) -> float | None:
        """The sigma of training; None for a range, or if the corruption has none."""
        sigma = self.run.config.sigma
        return float(sigma[0]) if self.by_sigma and len(sigma) == 1 else None

    @property
    def input(self) -> str:
        """A word for the network's input."""
        config = self.run.config
        noise = self.by_sigma or config.objective == "paired" or config.corruption == "poisson"
        return "noisy" if noise else "input"

    @property
    def tested(self) -> str:
        """A word for the images that the run was tested on."""
        return "validation" if self.run.config.validation_images else "test"

    @property
    def error_curve(self) -> dict[float, float]:
        """The mean squared error at each noise level."""
        return {float(sigma): row["mse"] for sigma, row in self.summary["test"].items()}

    def task_at(self, sigma: Any) -> Any:
        """The run's corruption or objective, with another sigma if it has one."""
        return make_corruption(self.run.config, sigma) if self.by_sigma else self.run.task


def read(folder: Path) -> Material:
    """Reads a finished run, without the error of each image.

    Raises:
      InputError: the folder holds no finished run, or its files are damaged.
    """
    loaded = load_run(folder)
    return Material(loaded, read_history(folder), read_summary(folder), np.empty(0))


def with_errors(material: Material) -> Material:
    """Computes the error of each image."""
    import jax

    from jaxdae.evaluation import Evaluator

    run = material.run
    ranged = material.by_sigma and material.strength is None
    at = (lambda _: run.task) if ranged else material.task_at
    # As many devices as in the run's own test: another number changes the last bits.
    devices = jax.devices()[: run.config.devices]
    evaluator = Evaluator(run.model, at, examples_of(run.dataset.test), devices=devices)
    errors = evaluator.per_image(run.params, material.strength or 0.0)["mse"]
    return material._replace(errors=errors)


def latent_vectors(material: Material) -> Float[np.ndarray, "n latent"] | None:
    """The latent vectors of the first test images, corrupted; None if the network has none."""
    from jaxdae.evaluation import encode
    from jaxdae.model import Autoencoder

    run = material.run
    if not isinstance(run.model, Autoencoder):
        return None
    first = examples_of(run.dataset.test.take(slice(LATENT_POINTS)))
    return encode(run.model, run.params, run.task, first)


def labels_of(material: Material, count: int) -> Int[np.ndarray, " n"] | None:
    """The labels of the first test images, if there are any."""
    labels = material.run.dataset.test.labels
    return None if labels is None else labels[:count]


Restore = Callable[..., list[Images]]


def restorer(material: Material) -> Restore:
    """A function that restores test images.

    Returns:
      A function of the indices of at most `BATCH` images, and of a sigma (by default the run's own
      corruption), to the clean images, the network's inputs and its outputs.
    """
    import jax

    from jaxdae.evaluation import make_reconstruct

    run = material.run
    images = examples_of(run.dataset.test)
    at_sigma = make_reconstruct(run.model, material.task_at)
    ranged = material.by_sigma and material.strength is None
    own = make_reconstruct(run.model, lambda _: run.task) if ranged else at_sigma

    def restore(indices: Int[np.ndarray, " n"], sigma: float | None = None) -> list[Images]:
        padded = np.resize(indices, BATCH)
        strength = np.float32(sigma if sigma is not None else material.strength or 0.0)
        function = own if sigma is None else at_sigma
        batch = jax.tree.map(lambda array: array[padded], images)
        parts = function(run.params, batch, padded, strength)
        return [np.asarray(part)[: len(indices)] for part in parts]

    return restore


def decoded(material: Material, vectors: Float[np.ndarray, "rows steps latent"]) -> np.ndarray:
    """Decodes latent vectors: images [rows steps h w c]."""
    from jaxdae.evaluation import decode
    from jaxdae.model import Autoencoder

    run = material.run
    model = cast(Autoencoder, run.model)
    size = run.dataset.image_shape[:2]
    images = decode(model, run.params, vectors.reshape(-1, vectors.shape[-1]), size)
    return images.reshape(*vectors.shape[:2], *images.shape[1:])
