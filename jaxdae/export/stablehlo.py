"""Networks as StableHLO, for programs that have JAX but not jaxdae."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdae import kernels
from jaxdae.export.parts import Part, function, need, symbolic_shape
from jaxdae.model import Denoiser

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    model: Denoiser,
    params: Any,
    part: Part = "whole",
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """Serialises the function with `jax.export`.

    `jax.export.deserialize(bytearray(content)).call(x)` runs it. That needs jax and flatbuffers,
    but neither flax nor jaxdae. JAX guarantees to read it for six months of newer versions.

    Args:
      part: the whole network, or one half of an autoencoder.
      platforms: where it should run.

    Returns:
      The content of the file.

    Raises:
      InputError: the model has no such part, or flatbuffers is not installed.
    """
    need("StableHLO", "flatbuffers")
    from jax import export

    call = jax.jit(function(model, params, part))
    shape = export.symbolic_shape(", ".join(symbolic_shape(model, params, part)))
    argument = jax.ShapeDtypeStruct(shape, jnp.float32)
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    try:
        jax.config.update(option, 0)  # no paths of this machine in the file
        with kernels.disabled():  # the C++ kernels are not there where it runs
            return bytes(export.export(call, platforms=platforms)(argument).serialize())
    finally:
        jax.config.update(option, before)
