"""What the page of `demo` computes: noisy and denoised images, latent vectors, decoded images.

play = Playground("digits-blind")
restored = play.restore(play.test.images[0], seed=0, strength=0.5)
image, prediction = play.decode(restored.latent)
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt8

from jaxdae import corruption, data
from jaxdae.corruption import Corruption
from jaxdae.errors import InputError
from jaxdae.evaluation import encode
from jaxdae.model import Autoencoder
from jaxdae.recognition import shipped

from ..runs.models import load_model

KINDS = {  # corruptions of the page: the name of the strength, and its range
    "gaussian": ("sigma", 0.0, 1.5),
    "speckle": ("sigma", 0.0, 3.0),
    "masking": ("share of pixels", 0.0, 1.0),
    "salt_and_pepper": ("share of pixels", 0.0, 1.0),
    "poisson": ("photons in a white pixel", 1.0, 100.0),
}
MAX_SLIDERS = 64  # a longer latent vector has no sliders
RANGE_IMAGES = 1000  # test images that give the ranges of the sliders
Picture = UInt8[np.ndarray, "height width channels"]
Image = Float[np.ndarray, "height width channels"]
Latent = Float[np.ndarray, " latent"]
Ranges = Float[np.ndarray, "latent 2"]
Prediction = tuple[int, float]  # a digit, and its probability


class Noise(NamedTuple):
    """The corruption of a page.

    Fields:
      kind: one of `KINDS`.
      mean: of gaussian noise.
      trained: the strength of the training, or the two ends of its range; empty if unknown.
      start: the strength at the start, the middle of that range.
    """

    kind: str
    mean: float
    trained: tuple[float, ...]
    start: float

    @property
    def strength(self) -> str:
        """The name of the strength."""
        return KINDS[self.kind][0]

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest strength."""
        return KINDS[self.kind][1:]

    def __call__(self, strength: float | Array) -> Corruption:
        """The corruption at a strength, which JAX may trace."""
        if self.kind == "gaussian":
            return corruption.gaussian(strength, self.mean)
        return getattr(corruption, self.kind)(strength)


def noise_of(recipe: Mapping[str, Any]) -> Noise:
    """The noise that a network was trained to remove.

    Args:
      recipe: "recipe" of its model card.

    Raises:
      InputError: it was trained to remove something else, or the recipe is damaged.
    """
    kind = recipe.get("corruption", "gaussian")
    if kind == "identity":  # trained without noise
        return Noise("gaussian", 0.0, (0.0,), 0.0)
    if kind not in KINDS:
        raise InputError(f"it removes {kind}, but the page shows noise")
    name, low, high = KINDS[kind]
    try:
        mean = float(recipe.get("mean", 0.5))
        values = recipe.get("sigma" if name == "sigma" else "strength", ())
        trained = tuple(float(value) for value in values)
        if not np.isfinite([mean, *trained]).all():
            raise ValueError
    except (TypeError, ValueError):
        raise InputError('"recipe" in its model card is damaged') from None
    start = float(np.clip(np.mean(trained or (low, high)), low, high))
    return Noise(kind, mean, trained, round(start, 2))


class Restored(NamedTuple):
    """The results for one image.

    Fields:
      noisy: the network's input, in [0, 1].
      denoised: its output.
      latent: the latent vector, flattened; empty if the network has none.
      predictions: of the digit classifier for the clean, the noisy and the denoised image; None if
        the images are not digits.
    """

    noisy: Image
    denoised: Image
    latent: Latent
    predictions: tuple[Prediction, ...] | None


class Playground:
    """A network, compiled, with images to try it on.

    Attributes:
      name: of the network, as the user gave it.
      about: from its model card.
      shape: (height, width, channels) of its images.
      digits: True if its images are MNIST's.
      noise: the noise that it removes.
      test: test images; None if the data set cannot be read.
      missing: why there are no test images.
      sliders: length of the latent vector; 0 if there is none, or if it is too long.
      ranges: of the latent values of test images at the first strength, see `latent_ranges`.
    """

    def __init__(self, name: str) -> None:
        """Loads and compiles the network.

        Args:
          name: see `models.load_model`.

        Raises:
          InputError: there is no such network, or the page cannot show it.
        """
        loaded = load_model(name)
        recipe = loaded.card.get("recipe")
        recipe = recipe if isinstance(recipe, dict) else {}
        self.name, self.about = name, str(loaded.card.get("about", ""))
        self.model, self.params = loaded.model, loaded.params
        channels = self.model.channels
        try:
            self.noise = noise_of(recipe)
            if channels not in (1, 3):
                raise InputError(f"its images have {channels} channels, but the page shows 1 or 3")
        except InputError as error:
            raise InputError(
                f"--model {name} cannot be shown, because {error}: choose another, such as "
                "digits-blind"
            ) from None
        dataset = str(recipe.get("dataset", "mnist"))
        self.test: data.Split | None = None
        self.missing = ""
        try:
            self.test = data.load(dataset).test
        except InputError as error:
            self.missing = str(error)
        # A network that takes any size is shown at that of its test images.
        size = (28, 28) if self.test is None else self.test.images.shape[1:3]
        self.shape = (*(self.model.image_size or size), channels)
        if self.test is not None and self.test.images.shape[1:] != self.shape:
            self.test = None
            self.missing = f"the images of {dataset} have another shape than the network's"
        self.digits = self.shape == (28, 28, 1) and is_mnist(dataset)
        self._compile()
        self._measure()

    def _compile(self) -> None:
        model, encodes = self.model, isinstance(self.model, Autoencoder)
        height, width, _ = self.shape
        classifier, weights = shipped() if self.digits else (None, None)
        params, weights = jax.device_put((self.params, weights))

        def classify(weights, images):
            return classifier and jax.nn.softmax(classifier.apply({"params": weights}, images))

        @jax.jit
        def restore(params, weights, clean, seed, strength):
            clean = clean[None] / jnp.float32(255)
            noisy = self.noise(strength)(jax.random.key(seed), clean)
            latent, variables = None, {"params": params}
            if encodes:
                latent = model.apply(variables, noisy, method="encode")
                denoised: Any = model.apply(variables, latent, method="decode")
                denoised = denoised[:, :height, :width]  # a network of any size pads its input
            else:
                denoised = model.apply(variables, noisy)
            images: Any = (clean, noisy, denoised)
            probabilities = self.digits and classify(weights, jnp.concatenate(images))
            return noisy[0], denoised[0], latent, probabilities

        @jax.jit
        def decode(params, weights, latent):
            image: Any = model.apply({"params": params}, latent, method="decode")
            image = image[:, :height, :width]
            return image[0], classify(weights, image)

        self._restore = lambda *inputs: restore(params, weights, *inputs)
        self._decode = lambda *inputs: decode(params, weights, *inputs)

    def _measure(self) -> None:
        """Finds the shape of the latent vector and the ranges of its values, and compiles."""
        self.sliders, self.ranges = 0, np.zeros((0, 2))
        clean = np.zeros(self.shape, np.uint8) if self.test is None else self.test.images[0]
        latent = self._restore(clean, np.uint32(0), np.float32(self.noise.start))[2]
        if latent is None or latent.size > MAX_SLIDERS or not isinstance(self.model, Autoencoder):
            return
        self.sliders, self.latent_shape = latent.size, latent.shape
        if self.test is None:
            limit = 2 * float(np.abs(latent).max()) + 1
            self.ranges = np.tile([-limit, limit], (latent.size, 1))
        else:
            images = self.test.images[:: max(1, len(self.test) // RANGE_IMAGES)]
            noise = self.noise(self.noise.start)
            self.ranges = latent_ranges(encode(self.model, self.params, noise, images))
        self.decode(latent)

    def restore(self, clean: Picture, seed: int, strength: float) -> Restored:
        """Adds noise to an image, and denoises it.

        Args:
          clean: an image of `shape`.
          seed: of the noise. The strength only scales it.
          strength: clipped to the range of `noise`.
        """
        inside = np.clip(np.float32(strength), *self.noise.ends)
        noisy, denoised, latent, found = self._restore(clean, np.uint32(seed), inside)
        flat = np.zeros(0, np.float32) if latent is None else np.asarray(latent).ravel()
        predictions = tuple(map(likeliest, np.asarray(found))) if self.digits else None
        return Restored(np.asarray(noisy), np.asarray(denoised), flat, predictions)

    def decode(self, latent: ArrayLike) -> tuple[Image, Prediction | None]:
        """Decodes a latent vector: the image, in [0, 1], and the classifier's prediction.

        Args:
          latent: `sliders` values.
        """
        values = np.asarray(latent, np.float32).reshape(self.latent_shape)
        image, found = self._decode(values)
        return np.asarray(image), likeliest(np.asarray(found)[0]) if self.digits else None


def is_mnist(dataset: str) -> bool:
    """True if a name is MNIST's, and not that of a similar data set such as Fashion-MNIST."""
    return re.search(r"(?<![\w-])mnist(?![\w-])", dataset.lower()) is not None


def likeliest(probabilities: Float[np.ndarray, " classes"]) -> Prediction:
    """The class of the highest probability, and its probability."""
    return int(probabilities.argmax()), float(probabilities.max())


def latent_ranges(latents: Float[np.ndarray, "n latent"]) -> Ranges:
    """The range of each latent value: 98% of the values, and a tenth more at each end.

    A value that never changes gets a range of 1 around it.
    """
    low, high = np.percentile(latents, (1, 99), axis=0)
    margin = np.where(high - low > 1e-6, 0.1 * (high - low), 0.5)
    return np.stack([low - margin, high + margin], 1)


def widened(ranges: Ranges, latent: Latent) -> Ranges:
    """The ranges, widened so that they hold the values of a latent vector."""
    return np.stack([np.minimum(ranges[:, 0], latent), np.maximum(ranges[:, 1], latent)], 1)
