"""The networks of a job: the one that --model names, or one for each kind of image."""

import functools
from typing import Any

import numpy as np

from jaxdae.errors import InputError

from ..runs.models import load_model
from .adapt import Images, Rules, Values, noise_mean
from .arguments import Arguments

DIGIT = (28, 28)  # (height, width) of a digit
CACHED_PIXELS = 64 * 28 * 28  # pixels of a batch whose activations fit the caches of a CPU


def choose(images: Images) -> str:
    """The name of the network for images: digits, gray ones, or colour.

    Args:
      images: of any type.
    """
    _, height, width, channels = images.shape
    if channels > 1:
        return "photo"
    return "digits-blind" if (height, width) == DIGIT else "photo-gray"


class Network:
    """A network, ready to use.

    Args:
      name: see `load_model`.

    Attributes:
      rules: by which images become its inputs.
      mean: of the noise to add first; None for no noise.
      about: what it is for, from its model card, in a sentence.
      images: the number of images that it denoised.

    Raises:
      InputError: there is no such network, or a flag cannot go with it.
    """

    def __init__(self, name: str, arguments: Arguments) -> None:
        model, self._params, card = load_model(name)
        sizes: Any = "tile" if arguments.tile else "fit" if arguments.fit else "refuse"
        self.name, self.images = name, 0
        self.rules = Rules(model, name, sizes)
        self.takes_noise_level: bool = model.takes_noise_level
        known = arguments.sigma is not None
        for flag, given in (("sigma", known), ("strength", arguments.strength != 1)):
            if given and not self.takes_noise_level:
                raise InputError(
                    f"--{flag} has no use: {name} takes no noise level: leave it out, or choose "
                    "another --model, such as photo"
                )
            if given and not (known or model.estimates):
                raise InputError(
                    f"--strength multiplies the noise level, which {name} does not estimate: give "
                    "--sigma, too"
                )
        noisy = arguments.noise_sigma is not None
        self.mean = noise_mean(card, name, self.takes_noise_level) if noisy else None
        about, limits = (" ".join(str(card.get(key, "")).split()) for key in ("about", "limits"))
        self.about = about.partition(". ")[0].removesuffix(".") + "." * bool(about)
        if arguments.tile or arguments.fit:  # for other sizes than it was trained on
            self.about = f"{about} {limits}".strip()
        self._model, self._sigma = model, arguments.sigma
        self._strength = arguments.strength if arguments.strength != 1 else None

    def narrows(self, dtype: np.dtype) -> bool:
        """True if images of this type are denoised in bfloat16: those of 8 bits, by photo.

        It takes half the time, where there are kernels or an accelerator for it, and half the
        memory. Of photo's results in 8 bits, 6% at noise level 5/255 to 20% at 50/255 differ by
        one step from those in float32, and PSNR by at most 0.006 dB.
        """
        return self.takes_noise_level and dtype == np.uint8 and has_bfloat16()

    @functools.cached_property
    def _program(self) -> Any:
        """The network with its parameters on the device, to be compiled for each size."""
        import jax
        import jax.numpy as jnp

        from jaxdae.inference import denoise

        @functools.partial(jax.jit, static_argnames=("piece", "narrow"))
        def program(
            params: Any, sigma: Any, strength: Any, images: Any, piece: int, narrow: bool
        ) -> Any:
            model = self._model.clone(dtype=jnp.bfloat16) if narrow else self._model
            options = {} if strength is None else {"strength": strength}
            return denoise(model, params, images, sigma, piece=piece, **options)

        return functools.partial(program, jax.device_put(self._params), self._sigma)

    def apply(self, images: Values, narrow: bool = False, strength: float | None = None) -> Any:
        """Denoises a batch, as many images at a time as fit the caches of a CPU.

        Args:
          narrow: compute in bfloat16.
          strength: instead of --strength. Another one needs no new program.
        """
        strength = self._strength if strength is None else strength
        return self._program(strength, images, piece=self.piece(images), narrow=narrow)

    @staticmethod
    def piece(images: Values) -> int:
        """How many images of this size fit the caches of a CPU, at least one."""
        return max(1, CACHED_PIXELS // (images.shape[1] * images.shape[2]))


class Networks:
    """The networks of a job, each loaded when it is first needed.

    Attributes:
      named: the one that --model names; None if each image decides.

    Raises:
      InputError: --model names no network, or flags cannot go with it.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._loaded: dict[str, Network] = {}
        self.named = None if arguments.model is None else Network(arguments.model, arguments)

    def for_images(self, images: Images) -> Network:
        """The network for images.

        Raises:
          InputError: it cannot be loaded, or flags cannot go with it.
        """
        if self.named is not None:
            return self.named
        name = choose(images)
        if name not in self._loaded:
            self._loaded[name] = Network(name, self._arguments)
            announce(self._loaded[name])
        return self._loaded[name]

    def check_size(self, height: int, width: int) -> None:
        """Raises an `InputError` if the network that --model names refuses the size."""
        if self.named is not None:
            self.named.rules.check_size(height, width)

    @property
    def gray_alone(self) -> bool:
        """True if an RGB image of equal channels is denoised as a gray one."""
        return self.named is None or self.named.rules.inputs == 1

    @property
    def used(self) -> list[Network]:
        """The networks that denoised images."""
        networks = [*self._loaded.values(), *([] if self.named is None else [self.named])]
        return [network for network in networks if network.images]


def has_bfloat16() -> bool:
    """True if bfloat16 is no slower than float32 here."""
    import jax

    from jaxdae.kernels import build

    return jax.default_backend() != "cpu" or build.available()


def announce(network: Network) -> None:
    """Prints what a network is for, if its card says so."""
    if network.about:
        print(f"{network.name}: {network.about}", flush=True)
