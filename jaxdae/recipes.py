"""The recipes: configurations with names.

    config = recipe("unet", sigma=0.5, epochs=2)

This module imports nothing heavy, so that `--help` answers at once.
"""

import difflib
import typing
from dataclasses import replace
from typing import Any

from jaxdae.config import Config, fits_type
from jaxdae.errors import InputError

DEFAULT = Config()


CLASSIC = replace(
    DEFAULT,
    recipe="classic",
    epochs=10,
    noise="fixed",
    loss="mse",
    optimizer="adam",
    learning_rate=1e-3,
    schedule="constant",
    centering=False,
)


MAXPOOL_CLEAN = replace(
    CLASSIC,
    recipe="maxpool-clean",
    architecture="maxpool",
    features=(16, 8, 8),
    corruption="identity",
    sigma=(0.4,),
    mean=0.0,
    loss="bce",
    optimizer="adadelta",
    learning_rate=1.0,
    batch_size=128,
    epochs=50,
)


PHOTO_GAUSSIAN = replace(
    DEFAULT,
    recipe="photo-gaussian",
    crop=64,
    turns=True,
    candidates=3,
    sigma=(0.0, 0.2157),
    mean=0.0,
    clip=False,
    epochs=40,
    batch_size=16,
    architecture="photo",
    features=(48, 64, 96),
    dtype="bfloat16",
    loss="log_mse",
    optimizer="adamw",
    learning_rate=1e-3,
    schedule="cosine",
    weight_decay=1e-4,
    centering=False,
    ema_decay=0.999,
    test_images=256,
    eval_sigmas=(0.0588, 0.098, 0.1961),
)


RECIPES: dict[str, tuple[Config, str]] = {
    config.recipe: (config, text)
    for config, text in [
        (DEFAULT, "the best quality in the shortest time, at one --sigma"),
        (CLASSIC, "the tutorial: Adam at 0.001, each image with fixed noise"),
        (
            replace(DEFAULT, recipe="blind", sigma=(0.15, 1.05), epochs=120, learning_rate=1.2e-3),
            "one network for every sigma: each image gets a random noise level",
        ),
        (
            replace(
                DEFAULT,
                recipe="unet",
                architecture="unet",
                features=(24, 48, 96),
                sigma=(0.1, 1.05),
                learning_rate=1e-3,
                epochs=24,
            ),
            "no bottleneck: the cleanest images at every sigma, but no latent vector",
        ),
        (
            MAXPOOL_CLEAN,
            "the max-pool tutorial (16-8-8, Adadelta, cross-entropy), images without noise",
        ),
        (
            replace(
                MAXPOOL_CLEAN,
                recipe="maxpool-noisy",
                corruption="gaussian",
                clean_epochs=50,
                epochs=100,
            ),
            "maxpool-clean for 50 epochs, then 100 epochs with noise N(0, 0.4^2)",
        ),
        (
            replace(
                MAXPOOL_CLEAN,
                recipe="keras-io",
                features=(32, 32),
                upsampling="transposed",
                corruption="gaussian",
                optimizer="adam",
                learning_rate=1e-3,
                clean_epochs=50,
                epochs=100,
            ),
            "the keras.io example (32-32): 50 epochs clean, then 100 with noise N(0, 0.4^2)",
        ),
        (
            replace(
                CLASSIC,
                recipe="dense",
                architecture="dense",
                features=(128,),
                noise="fresh",
                batch_size=128,
            ),
            "fully connected, with the same latent size: what an image loses as a flat vector",
        ),
        (
            replace(
                DEFAULT,
                recipe="colorize",
                corruption="grayscale",
                architecture="unet",
                features=(16, 48, 96),
                learning_rate=2e-3,
                epochs=4,
            ),
            "colour from gray; needs colour images, such as --dataset tfds:cifar10",
        ),
        (
            PHOTO_GAUSSIAN,
            "photographs with white noise up to sigma 55/255, as in papers; needs folder:DIR",
        ),
        (
            replace(PHOTO_GAUSSIAN, recipe="photo", corruption="photo", noise_level="estimated"),
            "photographs as cameras make them, at any noise level; needs folder:DIR",
        ),
    ]
}


def recipe(name: str = "default", **values: Any) -> Config:
    """The configuration of a recipe, with some values replaced: `recipe("unet", epochs=2)`.

    Args:
      name: a key of `RECIPES`.
      values: fields of `Config`. Where a field is a tuple, one number stands for a tuple of one.

    Raises:
      InputError: an unknown recipe or field, or a value of the wrong type.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: it is one of {', '.join(RECIPES)}")
    hints = typing.get_type_hints(Config)
    for field, value in values.items():
        if field not in hints or field == "recipe":
            close = difflib.get_close_matches(field, hints, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(hints)}"
            raise InputError(f"a configuration has no field {field!r}: {meant}")
        if typing.get_origin(hints[field]) is tuple:
            value = value if isinstance(value, (list, tuple)) else (value,)
            values[field] = value = tuple(value)
        if not fits_type(value, hints[field]):
            kind = str(hints[field]).replace("typing.", "")
            raise InputError(f"{field}={value!r} is of the wrong type: it must be {kind}")
    return replace(RECIPES[name][0], **values)
