"""Denoising autoencoders in JAX and Flax: models, corruptions and training as pure functions.

    config = jaxdae.recipe("default", sigma=0.5, epochs=2)
    for epoch in jaxdae.train(config):
        print(epoch.number, epoch.metrics["test_mse"])
    denoised = jaxdae.denoise(epoch.model, epoch.params, noisy)

These four, and the modules, are there without an import of their own; nothing is loaded before it
is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdae.config import Config
    from jaxdae.inference import denoise
    from jaxdae.recipes import recipe
    from jaxdae.trainer import train

__version__ = "0.1.0"
__all__ = ["Config", "denoise", "recipe", "train"]

_HOMES = {"Config": "config", "denoise": "inference", "recipe": "recipes", "train": "trainer"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxdae.{_HOMES[name]}"), name)
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"jaxdae.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"jaxdae.{name}":
                raise
    raise AttributeError(f"module 'jaxdae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
