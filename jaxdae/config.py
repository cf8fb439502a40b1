"""The configuration of a run: all values that determine its result, with defaults and help texts.

This module imports nothing heavy, so that `--help` answers at once.
"""

import json
import types
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from jaxdae.errors import InputError

Range = tuple[float, ...]  # one value, or the two ends of a range


@dataclass(frozen=True)
class Config:
    """All values that determine the result of a run. `config.json` in a run's folder holds them.

    The text below a field is its help on the command line.
    """

    recipe: str = "default"
    """The recipe that gives the values below their defaults: see the list of recipes."""
    dataset: str = "mnist"
    """mnist, idx:DIR, npz:FILE, folder:DIR, pairs:NOISY_DIR,CLEAN_DIR or tfds:NAME."""
    crop: int | None = None
    """For folder: and pairs:, train on random square patches, this many pixels a side. The images
    may have any sizes then."""
    turns: bool = False
    """Mirror and turn each random patch at random."""
    candidates: int = 1
    """Of so many random patches, train on the one with the most texture."""
    gray: bool = False
    """For folder: and pairs:, make images in colour gray."""
    sigma: Range = (0.5,)
    """Standard deviation of the noise, for images in [0, 1]. Two numbers are a range: each image
    gets a random value from it."""
    epochs: int = 5
    """Passes over the training images."""
    batch_size: int = 32
    """Images in a training step, over all devices."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the noise."""

    objective: Literal["supervised", "paired"] = "supervised"
    """What is learnt. supervised: to undo a corruption. paired: to make the clean images of pairs:
    from the noisy ones."""
    corruption: Literal[
        "gaussian",
        "identity",
        "grayscale",
        "masking",
        "salt_and_pepper",
        "speckle",
        "poisson",
        "sensor",
        "photo",
    ] = "gaussian"
    """How the clean images are corrupted."""
    mean: float = 0.5
    """Mean of Gaussian noise."""
    clip: bool = True
    """Clip images with Gaussian noise to [0, 1]."""
    noise_level: Literal["known", "estimated"] = "known"
    """What a network that takes the noise level (photo) is told in training: the true one, where
    the corruption has one, or what it estimates itself."""
    strength: Range = (0.3,)
    """Strength of the other corruptions: the share of corrupted pixels (masking, salt_and_pepper)
    or the photons in a white pixel (poisson)."""
    noise: Literal["fresh", "fixed"] = "fresh"
    """fresh: new noise at every step. fixed: each image always gets the same noise."""
    clean_epochs: int = 0
    """First epochs, which train on images without noise."""

    architecture: Literal["strided", "maxpool", "dense", "unet", "photo"] = "strided"
    """The network."""
    features: tuple[int, ...] = (32, 64)
    """Channels at each level of the network; widths of the hidden layers (dense)."""
    latent_dim: int = 16
    """Length of the latent vector (strided, dense)."""
    bridge: int = 384
    """Width of the U-Net's dense bridge. 0: no bridge, and a network for images of any size."""
    upsampling: Literal["nearest", "transposed"] = "nearest"
    """How the decoder doubles height and width (maxpool)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the network computes in. bfloat16 is faster on processors with bfloat16
    instructions (AVX512-BF16, AMX, GPUs, TPUs). Weights and sums over images stay float32."""

    init: str | None = None
    """Start from the weights of this network: one that comes with jaxdae, or a .npz file. The same
    network in colour may start one for gray images."""
    loss: Literal["mse", "log_mse", "bce"] = "mse"
    """mse: mean squared error. log_mse: its logarithm, which weighs all noise levels alike. bce:
    binary cross-entropy."""
    teacher: str | None = None
    """Train towards the output of this pretrained network, such as digits-unet, instead of the
    clean images. Slower."""
    optimizer: Literal["adam", "nadam", "adamw", "adadelta"] = "nadam"
    """The optimiser."""
    learning_rate: float = 5e-3
    """Highest learning rate."""
    schedule: Literal["constant", "one-cycle", "cosine", "plateau"] = "one-cycle"
    """How the learning rate changes: not at all, up and down over the run (cosine: after a short
    rise, down along a cosine), or down when the loss stops falling."""
    b1: float = 0.9
    """Decay of the first moment (adam, nadam, adamw)."""
    b2: float = 0.999
    """Decay of the second moment (adam, nadam, adamw)."""
    weight_decay: float = 0.0
    """Weight decay (adamw)."""
    centering: bool = True
    """Train in coordinates in which the inputs of each layer have mean zero."""
    ema_decay: float | None = None
    """Evaluate and save an exponential moving average of the weights, with this decay."""
    microbatches: int | None = None
    """Parts of a batch whose gradients are computed one after the other. Slower; but then every
    number of --devices that divides it gives the same result, bit for bit."""

    devices: int | None = None
    """Devices that share each batch; on a CPU, virtual ones. All if not given."""
    train_images: int | None = None
    """Use only this many training images, the first ones."""
    validation_images: int = 0
    """Hold out this many training images, the last ones, and test on them. So recipes can be
    compared without the test images."""
    test_images: int | None = None
    """Use only this many test images, the first ones."""
    eval_sigmas: Range = (0.25, 0.5, 0.75, 1.0)
    """Noise levels of the final test (gaussian, speckle)."""


# Fields that older runs do not have, with the values that those runs stand for.
ADDED: dict[str, Any] = {
    "objective": "supervised",
    "bridge": 384,
    "turns": False,
    "candidates": 1,
    "gray": False,
    "clip": True,
    "noise_level": "known",
    "init": None,
}


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration that an older version wrote, as this version writes them."""
    if values.get("corruption") == "paired":  # now an objective
        values = {**values, "objective": "paired", "corruption": Config.corruption}
    return {**ADDED, **values}


def read_config(folder: Path) -> Config:
    """Reads the configuration of a run from its folder.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    try:
        if not path.is_file():
            raise InputError(f"{folder} holds no run (no config.json): give the folder of a run")
        values = json.loads(path.read_text())
        values = upgraded(values) if isinstance(values, dict) else {}
        if set(values) != {field.name for field in fields(Config)}:
            raise ValueError("its keys are not the fields of a configuration")
        hints = typing.get_type_hints(Config)
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
            if not fits_type(values[name], hints[name]):
                raise ValueError(f"{name} is {value!r}")
        return Config(**values)
    except InputError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged or cannot be read ({error}): restore it from a copy, or start a "
            "new run"
        ) from None


def fits_type(value: Any, hint: Any) -> bool:
    """True if a value has the type of a field of `Config`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(fits_type(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits_type(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    # In Python a bool is an int. In a configuration it is not.
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
