"""A network over a data set: metrics of each image, and pictures of what it restores.

Every image is corrupted with the key `fold_in(key(KEY), its index)`. So all networks are shown the
same noisy images, whatever the batch, the devices and the seed of their training.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdae import metrics
from jaxdae.corruption import Corruption
from jaxdae.inference import denoise
from jaxdae.losses import Loss, binary_cross_entropy, takes_logits
from jaxdae.model import Autoencoder, Denoiser
from jaxdae.objectives import Example, Objective, as_objective
from jaxdae.recognition import shipped
from jaxdae.train_step import Params, to_float
from jaxdae.training import AXIS, Data, bytes_of, fits, replicate

PIECE_BYTES = 1 << 26  # of images sent to the devices at a time, where these do not hold them all
KEY = 20_080_705  # any number would do; another one changes every published figure a little
METRICS: dict[str, Loss] = {
    "mse": metrics.mse,
    "psnr": metrics.psnr,
    "ssim": metrics.ssim,
    "bce": binary_cross_entropy,
}
Task = Corruption | Objective


class Evaluator:
    """Measures each image of a data set, at any strength of a corruption.

    One compiled program serves all strengths. Images are sent to the devices once, or piece by
    piece if they are too many.

    Args:
      model: the network.
      task: makes, at a strength, what the network should do: a corruption to undo, such as
        `gaussian`, or an objective. The strength is traced.
      images: the test images as the task takes them: clean images, uint8 (n, height, width,
        channels), or a tuple of arrays. They may be memory-mapped files.
      labels: the digit that each image shows. If given, restored images are classified, too.
      losses: more metrics by name: (outputs, clean images) to a number for each image.
      batch_size: images that each device takes at a time.
      devices: all of them if not given.
    """

    def __init__(
        self,
        model: Denoiser,
        task: Callable[[Float[Array, ""]], Task],
        images: Data,
        *,
        labels: Int[np.ndarray, " n"] | None = None,
        losses: Mapping[str, Loss] | None = None,
        batch_size: int = 100,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        devices = jax.devices() if devices is None else list(devices)
        self.devices, self.count = devices, len(jax.tree.leaves(images)[0])
        batch_size = min(batch_size, -(-self.count // len(devices)))
        together = batch_size * len(devices)
        steps = -(-self.count // together)
        if not fits(images, devices):
            size = bytes_of(images) // self.count
            steps = min(steps, max(1, PIECE_BYTES // (size * together)))
        self.piece = steps * together  # images at a time: all, if the devices hold them
        self.images, self.labels = images, labels
        indices = np.arange(self.piece, dtype=np.int32)
        self.indices = indices.reshape(len(devices), steps, batch_size)
        classifier: Any = None
        self.weights: Any = None
        if labels is not None:
            classifier, self.weights = shipped()
        self.held = self._send(0) if self.piece >= self.count else None
        reported = {**METRICS, **(losses or {})}
        if model.output != "sigmoid":  # whose outputs are no probabilities
            del reported["bce"]

        def evaluate(params, data, indices, strength):
            images, labels, weights, first = data

            def body(_, index):
                batch = jax.tree.map(lambda x: x[index], images)
                example = _prepare(task(strength), batch, first + index)
                logits: Any = model.apply(
                    {"params": params}, example.input, example.sigma, method="logits"
                )
                outputs = model.activation(logits)
                values = {
                    name: metric(logits if takes_logits(metric) else outputs, example.target)
                    for name, metric in reported.items()
                }
                if classifier is not None:
                    found = classifier.apply({"params": weights}, outputs).argmax(-1)
                    values["accuracy"] = found == labels[index]
                return None, values

            return lax.scan(body, None, indices)[1]

        self._evaluate = jax.pmap(
            evaluate, axis_name=AXIS, in_axes=(None, None, 0, None), devices=devices
        )

    def _send(self, first: int) -> Any:
        """The images of a piece, on the devices; the last is filled up with the first images."""
        rows = np.arange(first, first + self.piece) % self.count
        labels = None if self.labels is None else self.labels[rows]
        images = jax.tree.map(lambda array: array[rows], self.images)
        return replicate((images, labels, self.weights, np.int32(first)), self.devices)

    def per_image(self, params: Params, strength: float = 0.0) -> dict[str, np.ndarray]:
        """Each metric of each image, float64, in the order of the images."""
        params, strength = replicate((params, jnp.float32(strength)), self.devices)
        pieces = []
        for first in range(0, self.count, self.piece):
            held = self.held or self._send(first)
            values = self._evaluate(params, held, self.indices, strength)
            pieces.append({name: np.asarray(x, float).reshape(-1) for name, x in values.items()})
        order = [name for name in METRICS if name in pieces[0]]
        order += [name for name in pieces[0] if name not in METRICS]
        whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in order}
        return {name: x[: self.count] for name, x in whole.items()}

    def __call__(self, params: Params, strength: float = 0.0) -> dict[str, float]:
        """The mean of each metric: "mse", "psnr" (dB), "ssim", "bce" (nats, for outputs in [0, 1]),
        and with labels "accuracy", the share of images that the shipped classifier gets right.
        """
        return means(self.per_image(params, strength))


def means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each metric over the images that `Evaluator.per_image` measured."""
    return {name: float(each.mean()) for name, each in values.items()}


def _prepare(task: Task, images: Data, positions: Array | None = None) -> Example:
    key = jax.random.key(KEY)
    return as_objective(task).prepare(key, jax.tree.map(to_float, images), positions)


def corrupted(task: Task, images: Data) -> tuple[np.ndarray, np.ndarray]:
    """The clean images and the network's inputs, as `Evaluator` has them: float32 in [0, 1]."""
    example = jax.jit(partial(_prepare, task))(jax.tree.map(jnp.asarray, images))
    return np.asarray(example.target), np.asarray(example.input)


def reconstruct(
    model: Denoiser, params: Params, task: Task, images: Data
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The clean images, the network's inputs and its outputs: float32 in [0, 1].

    The noise is that of `Evaluator` for the same images, from the first one on.
    """
    example = jax.jit(partial(_prepare, task))(jax.tree.map(jnp.asarray, images))
    outputs = _denoise(model, params, example.input, example.sigma)
    return np.asarray(example.target), np.asarray(example.input), np.asarray(outputs)


_denoise = jax.jit(denoise, static_argnums=0)


def make_reconstruct(
    model: Denoiser, task: Callable[[Float[Array, ""]], Task]
) -> Callable[..., tuple[Array, Array, Array]]:
    """`reconstruct` at any strength and for any images, compiled once for each number of them.

    Args:
      task: as of `Evaluator`.

    Returns:
      A function of (params, images, positions, strength). The images are uint8, and `positions`
      (n,) are their places among those that `Evaluator` was given. It returns what `reconstruct`
      does.
    """

    @jax.jit
    def run(params, images, positions, strength):
        example = _prepare(task(strength), images, positions)
        outputs = denoise(model, params, example.input, example.sigma)
        return example.target, example.input, outputs

    return run


def encode(
    model: Autoencoder, params: Params, task: Task, images: Data
) -> Float[np.ndarray, "n latent"]:
    """The latent representations of corrupted images, flattened."""
    count = len(jax.tree.leaves(images)[0])
    batch_size = min(100, count)
    batches = -(-count // batch_size)

    @jax.jit
    def run(params, images, indices):
        def one(index):
            example = _prepare(task, jax.tree.map(lambda x: x[index], images), index)
            return model.apply({"params": params}, example.input, method="encode")

        return lax.map(one, indices)

    indices = jnp.arange(batches * batch_size).reshape(batches, batch_size) % count
    latent = np.asarray(run(params, jax.tree.map(jnp.asarray, images), indices))
    return latent.reshape(batches * batch_size, -1)[:count]


def decode(
    model: Autoencoder,
    params: Params,
    latent: Float[np.ndarray, "n latent"],
    image_size: tuple[int, int] | None = None,
) -> Float[np.ndarray, "n height width channels"]:
    """The images that latent representations, as `encode` returns them, stand for.

    Args:
      image_size: the (height, width) of the images, for a network that takes any size.
    """

    @jax.jit
    def run(params, latent):
        def one(vector):
            return model.apply({"params": params}, vector[None], method="decode")[0]

        return lax.map(one, latent, batch_size=32)

    height, width = model.image_size or image_size or model.example.shape[1:3]
    image = jax.ShapeDtypeStruct((1, height, width, model.channels), jnp.float32)
    encoder = partial(model.apply, method="encode")
    shape = jax.eval_shape(encoder, {"params": params}, image).shape[1:]
    images = np.asarray(run(params, jnp.asarray(latent).reshape(len(latent), *shape)))
    return images[:, :height, :width]
