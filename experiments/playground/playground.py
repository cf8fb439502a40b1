"""What the page of `demo` shows, without the page: noise, restored images, latent vectors.

play = Playground("digits-blind")
restored = play.restore(play.test.images[0], seed=0, strength=0.5)
image, read = play.redraw(restored.latent)
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

KINDS = {  # what can be shown: the name of the strength of each corruption, and its range
    "gaussian": ("sigma", 0.0, 1.5),
    "speckle": ("sigma", 0.0, 3.0),
    "masking": ("share of pixels", 0.0, 1.0),
    "salt_and_pepper": ("share of pixels", 0.0, 1.0),
    "poisson": ("photons in a white pixel", 1.0, 100.0),
}
MAX_SLIDERS = 64  # a latent of more values has none
SPREAD = 1000  # test images that the sliders' ranges are taken from
Picture = UInt8[np.ndarray, "height width channels"]
Image = Float[np.ndarray, "height width channels"]
Latent = Float[np.ndarray, " latent"]
Ranges = Float[np.ndarray, "latent 2"]
Read = tuple[int, float]  # a digit, and how sure the classifier is, in [0, 1]


class Noise(NamedTuple):
    """The corruption of a page.

    Fields:
      kind: one of `KINDS`.
      mean: of gaussian noise.
      trained: the strength that the network was trained at, or the two ends of its range; empty if
        it is not known.
      start: the strength to begin with, the middle of that.
    """

    kind: str
    mean: float
    trained: tuple[float, ...]
    start: float

    @property
    def strength(self) -> str:
        """What its strength is called."""
        return KINDS[self.kind][0]

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest strength of the page."""
        return KINDS[self.kind][1:]

    def __call__(self, strength: float | Array) -> Corruption:
        """The corruption at a strength, which may be traced."""
        if self.kind == "gaussian":
            return corruption.gaussian(strength, self.mean)
        return getattr(corruption, self.kind)(strength)


def noise_of(recipe: Mapping[str, Any]) -> Noise:
    """The noise that a network was trained to remove.

    Args:
      recipe: "recipe" of its model card.

    Raises:
      InputError: it was trained to undo what is no noise, or the recipe is damaged.
    """
    kind = recipe.get("corruption", "gaussian")
    if kind == "identity":  # an autoencoder that has seen no noise
        return Noise("gaussian", 0.0, (0.0,), 0.0)
    if kind not in KINDS:
        raise InputError(f"it undoes {kind}, and the page shows noise")
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
    """What came of one image.

    Fields:
      noisy: what the network was given, in [0, 1].
      denoised: what it made of that.
      latent: what its encoder made of that, flattened; empty if it has none.
      reads: what the classifier reads in the clean, the noisy and the denoised image; None if they
        are no digits.
    """

    noisy: Image
    denoised: Image
    latent: Latent
    reads: tuple[Read, ...] | None


class Playground:
    """A network with images to try it on, compiled.

    Attributes:
      name: what the user calls it.
      about: what its card says of it.
      shape: (height, width, channels) of its images.
      digits: whether they are MNIST's.
      noise: what it removes.
      test: test images; None if the data set cannot be read, and `missing` says why.
      sliders: how many values its latent has; 0 if there is none, or too long a one.
      ranges: of these values, as `spread` has them; of test images at the strength to begin with.
    """

    def __init__(self, name: str) -> None:
        """Reads and compiles.

        Args:
          name: as `models.load_model` takes it.

        Raises:
          InputError: there is no such network, or none that can be shown.
        """
        loaded = load_model(name)
        recipe = loaded.card.get("recipe")
        recipe = recipe if isinstance(recipe, dict) else {}
        self.name, self.about = name, str(loaded.card.get("about", ""))
        self.model, self.params = loaded.model, loaded.params
        self.shape = self.model.image_shape
        channels = self.shape[2]
        try:
            self.noise = noise_of(recipe)
            if channels not in (1, 3):
                raise InputError(f"its images have {channels} channels, and the page shows 1 or 3")
        except InputError as error:
            raise InputError(
                f"--model {name} cannot be shown, {error}: choose another, such as digits-blind"
            ) from None
        dataset = str(recipe.get("dataset", "mnist"))
        self.digits = self.shape == (28, 28, 1) and is_mnist(dataset)
        self.test: data.Split | None = None
        self.missing = ""
        try:
            test = data.load(dataset).test
            if test.images.shape[1:] == self.shape:
                self.test = test
            else:
                self.missing = f"the images of {dataset} have another size now"
        except InputError as error:
            self.missing = str(error)
        self._compile()
        self._measure()

    def _compile(self) -> None:
        model, encodes = self.model, isinstance(self.model, Autoencoder)
        judge, weights = shipped() if self.digits else (None, None)
        params, weights = jax.device_put((self.params, weights))

        def read(weights, images):
            return judge and jax.nn.softmax(judge.apply({"params": weights}, images))

        @jax.jit
        def restore(params, weights, clean, seed, strength):
            clean = clean[None] / jnp.float32(255)
            noisy = self.noise(strength)(jax.random.key(seed), clean)
            latent, variables = None, {"params": params}
            if encodes:
                latent = model.apply(variables, noisy, method="encode")
                denoised = model.apply(variables, latent, method="decode")
            else:
                denoised = model.apply(variables, noisy)
            images: Any = (clean, noisy, denoised)
            reads = self.digits and read(weights, jnp.concatenate(images))
            return noisy[0], denoised[0], latent, reads

        @jax.jit
        def decode(params, weights, latent):
            image: Any = model.apply({"params": params}, latent, method="decode")
            return image[0], read(weights, image)

        self._restore = lambda *inputs: restore(params, weights, *inputs)
        self._decode = lambda *inputs: decode(params, weights, *inputs)

    def _measure(self) -> None:
        """The latent's shape, and the ranges of its values; compiles what is not yet."""
        self.sliders, self.ranges = 0, np.zeros((0, 2))
        clean = np.zeros(self.shape, np.uint8) if self.test is None else self.test.images[0]
        latent = self._restore(clean, np.uint32(0), np.float32(self.noise.start))[2]
        if latent is None or latent.size > MAX_SLIDERS or not isinstance(self.model, Autoencoder):
            return
        self.sliders, self.latent_shape = latent.size, latent.shape
        if self.test is None:
            reach = 2 * float(np.abs(latent).max()) + 1
            self.ranges = np.tile([-reach, reach], (latent.size, 1))
        else:
            images = self.test.images[:: max(1, len(self.test) // SPREAD)]
            noise = self.noise(self.noise.start)
            self.ranges = spread(encode(self.model, self.params, noise, images))
        self.redraw(latent)

    def restore(self, clean: Picture, seed: int, strength: float) -> Restored:
        """Adds noise to an image, and removes it.

        Args:
          clean: an image of `shape`.
          seed: decides the noise, which grows and shrinks with its strength.
          strength: brought into the range of `noise`.
        """
        inside = np.clip(np.float32(strength), *self.noise.ends)
        noisy, denoised, latent, chances = self._restore(clean, np.uint32(seed), inside)
        flat = np.zeros(0, np.float32) if latent is None else np.asarray(latent).ravel()
        reads = tuple(map(likeliest, np.asarray(chances))) if self.digits else None
        return Restored(np.asarray(noisy), np.asarray(denoised), flat, reads)

    def redraw(self, latent: ArrayLike) -> tuple[Image, Read | None]:
        """The image that the decoder draws, in [0, 1], and what is read in it.

        Args:
          latent: `sliders` values.
        """
        values = np.asarray(latent, np.float32).reshape(self.latent_shape)
        image, chances = self._decode(values)
        return np.asarray(image), likeliest(np.asarray(chances)[0]) if self.digits else None


def is_mnist(dataset: str) -> bool:
    """Whether a data set's name is MNIST's, and not that of one made after it."""
    return re.search(r"(?<![\w-])mnist(?![\w-])", dataset.lower()) is not None


def likeliest(chances: Float[np.ndarray, " classes"]) -> Read:
    """The class of the highest probability, and that."""
    return int(chances.argmax()), float(chances.max())


def spread(latents: Float[np.ndarray, "n latent"]) -> Ranges:
    """The ends between which nearly all latent vectors lie: 98 of 100, and a tenth of that more.

    A value that never changes has a range of 1 about it.
    """
    low, high = np.percentile(latents, (1, 99), axis=0)
    room = np.where(high - low > 1e-6, 0.1 * (high - low), 0.5)
    return np.stack([low - room, high + room], 1)


def around(ranges: Ranges, latent: Latent) -> Ranges:
    """The ranges, widened to a value that lies outside."""
    return np.stack([np.minimum(ranges[:, 0], latent), np.maximum(ranges[:, 1], latent)], 1)
