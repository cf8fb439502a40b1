"""A model over a data set at given corruptions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from jaxdae import metrics
from jaxdae.corruption import Corruption, pair
from jaxdae.inference import denoise
from jaxdae.losses import Loss, binary_cross_entropy
from jaxdae.model import Autoencoder, Denoiser
from jaxdae.recognition import shipped
from jaxdae.train_step import Params, to_float
from jaxdae.training import AXIS, fits, replicate

PIECE_BYTES = 1 << 26  # of images that the devices do not hold all: so many are sent at a time
# Every model, whatever its seed, is shown the same noisy test images.
KEY = 20_080_705  # any number would do; another one changes every published figure a little
METRICS: dict[str, Callable[[Array, Array], Array]] = {
    "mse": lambda logits, clean: metrics.mse(nn.sigmoid(logits), clean),
    "psnr": lambda logits, clean: metrics.psnr(nn.sigmoid(logits), clean),
    "ssim": lambda logits, clean: metrics.ssim(nn.sigmoid(logits), clean),
    "bce": binary_cross_entropy,
}


class Evaluator:
    """Reports the mean of each metric over a set of images, at a strength of a corruption.

    Every image is corrupted by `fold_in(key(KEY), its index)`, so all models see the same noise
    and the figures do not depend on the batch or on the devices. One compilation serves all
    strengths; images are sent to the devices once, or piece by piece where they are too many.

    Args:
      model: the architecture.
      corruption: makes the corruption at a strength, which is traced: `gaussian`, say.
      images: clean test images, uint8, in memory or a file that is mapped into it.
      labels: the digit that each image shows; if given, what is restored is read, too.
      losses: more to report, by name: (logits, clean images) to a number for each image.
      batch_size: images that each device takes at a time.
      devices: all of them if not given.
    """

    def __init__(
        self,
        model: Denoiser,
        corruption: Callable[[Float[Array, ""]], Corruption],
        images: UInt8[np.ndarray, "n height width channels"],
        *,
        labels: Int[np.ndarray, " n"] | None = None,
        losses: Mapping[str, Loss] | None = None,
        batch_size: int = 100,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        devices = jax.devices() if devices is None else list(devices)
        self.devices, self.count = devices, len(images)
        batch_size = min(batch_size, -(-self.count // len(devices)))
        together = batch_size * len(devices)
        steps = -(-self.count // together)
        if not fits(images, devices):
            size = prod(images.shape[1:]) * images.dtype.itemsize
            steps = min(steps, max(1, PIECE_BYTES // (size * together)))
        self.piece = steps * together  # images at a time: all, if the devices hold them
        self.images, self.labels = images, labels
        indices = np.arange(self.piece, dtype=np.int32)
        self.indices = indices.reshape(len(devices), steps, batch_size)
        read_by: tuple[Any, Any] = (None, None) if labels is None else shipped()
        judge, self.weights = read_by
        self.held = self._send(0) if self.piece >= self.count else None
        reported = {**METRICS, **(losses or {})}

        def evaluate(params, data, indices, strength):
            images, labels, weights, first = data

            def body(_, index):
                given, place = to_float(images[index]), first + index
                inputs, clean = pair(corruption(strength), jax.random.key(KEY), given, place)
                logits: Any = model.apply({"params": params}, inputs, method="logits")
                values = {name: metric(logits, clean) for name, metric in reported.items()}
                if judge is not None:
                    read = judge.apply({"params": weights}, nn.sigmoid(logits)).argmax(-1)
                    values["recovery"] = read == labels[index]
                return None, values

            return lax.scan(body, None, indices)[1]

        self._evaluate = jax.pmap(
            evaluate, axis_name=AXIS, in_axes=(None, None, 0, None), devices=devices
        )

    def _send(self, first: int) -> Any:
        """The images of a piece on the devices. Those that fill the last are later left out."""
        rows = np.arange(first, first + self.piece) % self.count
        labels = None if self.labels is None else self.labels[rows]
        data = (self.images[rows], labels, self.weights, np.int32(first))
        return replicate(data, self.devices)

    def per_image(self, params: Params, strength: float = 0.0) -> dict[str, np.ndarray]:
        """Each metric of each image, float64, in the order of the images."""
        params, strength = replicate((params, jnp.float32(strength)), self.devices)
        pieces = []
        for first in range(0, self.count, self.piece):
            held = self.held or self._send(first)
            values = self._evaluate(params, held, self.indices, strength)
            pieces.append({name: np.asarray(x, float).reshape(-1) for name, x in values.items()})
        order = [*METRICS, *(name for name in pieces[0] if name not in METRICS)]
        whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in order}
        return {name: x[: self.count] for name, x in whole.items()}

    def __call__(self, params: Params, strength: float = 0.0) -> dict[str, float]:
        """The mean of each metric: "mse", "psnr" (dB), "ssim", "bce" (nats), and with labels
        "recovery", the share that `jaxdae.recognition` still reads as the right digit.
        """
        return means(self.per_image(params, strength))


def means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each metric over the images, of what `Evaluator.per_image` returned."""
    return {name: float(each.mean()) for name, each in values.items()}


def corrupted(
    corruption: Corruption, images: UInt8[np.ndarray, "n height width channels"]
) -> tuple[np.ndarray, np.ndarray]:
    """The clean images, and what `Evaluator` gives a network of them: float32 in [0, 1]."""

    @jax.jit
    def run(images):
        return pair(corruption, jax.random.key(KEY), to_float(images))

    inputs, clean = run(jnp.asarray(images))
    return np.asarray(clean), np.asarray(inputs)


def reconstruct(
    model: Denoiser,
    params: Params,
    corruption: Corruption,
    images: UInt8[np.ndarray, "n height width channels"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The clean images, what the network was given, and what it made of them: float32 in [0, 1].

    The noise is that of `Evaluator` for the same images, given from the first.
    """
    clean, inputs = corrupted(corruption, images)
    return clean, inputs, np.asarray(_denoise(model, params, inputs))


_denoise = jax.jit(denoise, static_argnums=0)


def make_reconstruct(
    model: Denoiser, corruption: Callable[[Float[Array, ""]], Corruption]
) -> Callable[..., tuple[Array, Array, Array]]:
    """`reconstruct` for any strength and any images, with one compilation for each number of them.

    Args:
      corruption: makes the corruption at a strength, which is traced, as for `Evaluator`.

    Returns:
      A function of (params, images, positions, strength), whose images are uint8 and stood at
      `positions` (n,) of what `Evaluator` was given; it returns what `reconstruct` does.
    """

    @jax.jit
    def run(params, images, positions, strength):
        given = to_float(images)
        inputs, clean = pair(corruption(strength), jax.random.key(KEY), given, positions)
        return clean, inputs, denoise(model, params, inputs)

    return run


def encode(
    model: Autoencoder,
    params: Params,
    corruption: Corruption,
    images: UInt8[np.ndarray, "n height width channels"],
) -> Float[np.ndarray, "n latent"]:
    """The latent representations of corrupted images, flattened."""

    batch_size = min(100, len(images))
    batches = -(-len(images) // batch_size)

    @jax.jit
    def run(params, images, indices):
        def one(index):
            inputs = corruption(jax.random.key(KEY), to_float(images[index]), index)
            return model.apply({"params": params}, inputs, method="encode")

        return lax.map(one, indices)

    indices = jnp.arange(batches * batch_size).reshape(batches, batch_size) % len(images)
    latent = np.asarray(run(params, jnp.asarray(images), indices))
    return latent.reshape(batches * batch_size, -1)[: len(images)]


def decode(
    model: Autoencoder, params: Params, latent: Float[np.ndarray, "n latent"]
) -> Float[np.ndarray, "n height width channels"]:
    """The images in [0, 1] that latent representations, as `encode` returns them, stand for."""

    @jax.jit
    def run(params, latent):
        def one(vector):
            return model.apply({"params": params}, vector[None], method="decode")[0]

        return lax.map(one, latent, batch_size=32)

    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    encoder = partial(model.apply, method="encode")
    shape = jax.eval_shape(encoder, {"params": params}, image).shape[1:]
    return np.asarray(run(params, jnp.asarray(latent).reshape(len(latent), *shape)))
