"""The parts of a network that can be exported, as functions, and the shapes of their inputs."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdae.errors import InputError
from jaxdae.model import Autoencoder, Denoiser

Part = Literal["whole", "encoder", "decoder"]
METHODS = {"whole": "__call__", "encoder": "encode", "decoder": "decode"}
CARD = "card"  # the key of the model card, as JSON, in a file's metadata


def need(what: str, *packages: str) -> None:
    """Checks that optional packages are installed.

    Args:
      what: the format that needs them, for the message.
      packages: their names.

    Raises:
      InputError: some are missing.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install {' '.join(missing)}")


def function(model: Denoiser, params: Any, part: Part = "whole") -> Callable[[Any], Any]:
    """The function to export, in JAX, with float32 parameters and arithmetic.

    Args:
      part: the whole network, or one half of an autoencoder.

    Raises:
      InputError: the model has no such part.
    """
    if part not in METHODS:
        raise InputError(f"there is no part {part!r}: choose one of {', '.join(METHODS)}")
    if part != "whole" and not isinstance(model, Autoencoder):
        raise InputError(f"a {type(model).__name__} has no latent and so no {part}: take it whole")
    model = model.clone(dtype=None)
    return partial(model.apply, {"params": to_float32(params)}, method=METHODS[part])


def to_float32(params: Any) -> Any:
    """Parameters as NumPy arrays of float32."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def input_shape(
    model: Denoiser,
    params: Any,
    part: Part = "whole",
    image_size: tuple[int, int] | None = None,
) -> tuple[int, ...]:
    """The shape of one input image, or of one input latent if `part` is the decoder.

    Args:
      image_size: the (height, width), for a network of any size; None for that of `model.example`.

    Raises:
      InputError: the model has no such part.
    """
    function(model, params, part)  # raises if there is none
    size = model.image_size or image_size or model.example.shape[1:3]
    shape = (*size, model.channels)
    if part != "decoder":
        return shape
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(function(model, params, "encoder"), image).shape[1:]


def symbolic_shape(model: Denoiser, params: Any, part: Part = "whole") -> tuple[str, ...]:
    """The shape of a batch of inputs, in which the sizes that may differ have names."""
    shape = input_shape(model, params, part)
    names = ("height", "width") if model.image_size is None else ()
    return ("batch", *names, *map(str, shape[len(names) :]))
