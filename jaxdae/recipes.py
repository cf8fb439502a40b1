"""What a run is made of, and the recipes: configurations with a name.

This module imports nothing heavy, so that `--help` answers at once.
"""

import difflib
import json
import types
import typing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from jaxdae.errors import InputError

Range = tuple[float, ...]


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result; `config.json` holds it."""

    recipe: str = "default"
    """Where the values below come from: see the list of recipes."""
    dataset: str = "mnist"
    """mnist, idx:DIR, npz:FILE, folder:DIR, pairs:NOISY_DIR,CLEAN_DIR or tfds:NAME."""
    crop: int | None = None
    """Train on random square patches, so many pixels a side, of the image files of folder: or
    pairs:, which may be of any size."""
    sigma: Range = (0.5,)
    """Standard deviation of the noise, on images in [0, 1]; two numbers: drawn between them for
    each image."""
    epochs: int = 5
    """How often to go through the training images."""
    batch_size: int = 32
    """Images a step, over all devices."""
    seed: int = 0
    """Decides the initial weights, the order of the images and the noise."""

    objective: Literal["supervised", "paired"] = "supervised"
    """What is learnt: to undo a corruption, or to make the clean images of pairs: from the noisy
    ones."""
    corruption: Literal[
        "gaussian",
        "identity",
        "grayscale",
        "masking",
        "salt_and_pepper",
        "speckle",
        "poisson",
    ] = "gaussian"
    """What is done to the clean images."""
    mean: float = 0.5
    """Mean of the gaussian noise."""
    strength: Range = (0.3,)
    """Of the others: the share of pixels (masking, salt_and_pepper) or the photons in a white
    pixel (poisson)."""
    noise: Literal["fresh", "fixed"] = "fresh"
    """New noise at every step, or drawn once for each image."""
    clean_epochs: int = 0
    """Epochs on images without noise before the others."""

    architecture: Literal["strided", "maxpool", "dense", "unet"] = "strided"
    """The network."""
    features: tuple[int, ...] = (32, 64)
    """Its channels at each level (its hidden widths, if dense)."""
    latent_dim: int = 16
    """Length of the latent vector (strided, dense)."""
    bridge: int = 384
    """Width of the U-Net's dense bridge; 0: none, and a network for images of any size."""
    upsampling: Literal["nearest", "transposed"] = "nearest"
    """How the max-pool network's decoder grows."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in: bfloat16 is faster where the processor multiplies in it
    (AVX512-BF16, AMX, GPUs, TPUs). Weights, and sums over images, stay float32."""

    loss: Literal["mse", "bce"] = "mse"
    """Mean squared error, or binary cross-entropy."""
    teacher: str | None = None
    """Learn what this pretrained network makes of the noisy images, such as unet, instead of the
    clean images; slower."""
    optimizer: Literal["adam", "nadam", "adamw", "adadelta"] = "nadam"
    """The optimiser."""
    learning_rate: float = 5e-3
    """Its highest learning rate."""
    schedule: Literal["constant", "one-cycle", "plateau"] = "one-cycle"
    """How the learning rate changes."""
    b1: float = 0.9
    """Decay of the first moment (the Adams)."""
    b2: float = 0.999
    """Decay of the second moment (the Adams)."""
    weight_decay: float = 0.0
    """Weight decay (adamw)."""
    centering: bool = True
    """Step along coordinates in which each layer's inputs have mean zero."""
    ema_decay: float | None = None
    """Evaluate and keep an exponential moving average of the weights, of this decay."""
    microbatches: int | None = None
    """Differentiate each batch in so many parts, slower: then any number of --devices that divides
    it gives the same result to the bit."""

    devices: int | None = None
    """Share each batch among so many devices (on a CPU: virtual ones); all if not given."""
    train_images: int | None = None
    """Use only the first of the training images, so many."""
    validation_images: int = 0
    """Leave so many training images, the last, out of training, and test on them: to choose among
    recipes without a look at the test images."""
    test_images: int | None = None
    """Use only the first of the test images, so many."""
    eval_sigmas: Range = (0.25, 0.5, 0.75, 1.0)
    """Noise levels of the closing table (gaussian and speckle noise)."""


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
RECIPES: dict[str, tuple[Config, str]] = {
    config.recipe: (config, text)
    for config, text in [
        (DEFAULT, "the best quality soonest, at --sigma"),
        (CLASSIC, "the tutorial: Adam at 0.001, noise drawn once for each image"),
        (
            replace(DEFAULT, recipe="blind", sigma=(0.15, 1.05), epochs=120, learning_rate=1.2e-3),
            "one network for every sigma: the noise level drawn for each image",
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
            "no bottleneck: the cleanest images, at every sigma, and no latent vector",
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
            "the same 50 epochs, then 100 from those weights with noise N(0, 0.4^2)",
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
            "fully connected, same latent size: what flattening loses",
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
            "colour from gray; needs a data set in colour, such as --dataset tfds:cifar10",
        ),
    ]
}


def recipe(name: str = "default", **values: Any) -> Config:
    """A recipe's configuration, with other values where given: `recipe("unet", epochs=2)`.

    Raises:
      InputError: there is no such recipe, or a name or a value that is not a configuration's.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: it is one of {', '.join(RECIPES)}")
    hints = typing.get_type_hints(Config)
    for field, value in values.items():
        if field not in hints or field == "recipe":
            close = difflib.get_close_matches(field, hints, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(hints)}"
            raise InputError(f"a configuration has no value {field!r}: {meant}")
        if typing.get_origin(hints[field]) is tuple:  # one number, or several
            several = value if isinstance(value, (list, tuple)) else (value,)
            values[field] = value = tuple(several)
        if not _fits(value, hints[field]):
            kind = str(hints[field]).replace("typing.", "")
            raise InputError(f"{field}={value!r} is of the wrong type: it must be {kind}")
    return replace(RECIPES[name][0], **values)


def read_config(folder: Path) -> Config:
    """The configuration of the run in a folder.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    try:
        if not path.is_file():
            raise InputError(f"{folder} holds no run (no config.json): give a run's folder")
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or set(values) != {field.name for field in fields(Config)}:
            raise ValueError("its keys are not a configuration's")
        hints = typing.get_type_hints(Config)
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
            if not _fits(values[name], hints[name]):
                raise ValueError(f"{name} is {value!r}")
        return Config(**values)
    except InputError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged or cannot be read ({error}): restore it from a copy, or start a "
            "new run"
        ) from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of a type that `Config` uses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    # A bool is an int to Python, and not to a configuration.
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
