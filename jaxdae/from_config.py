"""The parts that a configuration names: corruption, network, teacher and images."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdae import corruption as corruptions
from jaxdae import data, pretrained
from jaxdae.config import Config
from jaxdae.corruption import NOISE_LEVELS, Corruption
from jaxdae.data.patches import Crops
from jaxdae.errors import InputError
from jaxdae.files import tree_sha256
from jaxdae.model import Denoiser, PhotoDenoiser, build, fields_of, gray_params, parameter_shapes
from jaxdae.objectives import Pair
from jaxdae.optimizers import make_schedule


def has_sigma(config: Config) -> bool:
    """True if the configuration's noise has a standard deviation."""
    return config.objective == "supervised" and config.corruption in NOISE_LEVELS


def make_corruption(config: Config, sigma: Any = None) -> Corruption:
    """The configuration's corruption, at another sigma if given."""
    entry = corruptions.CORRUPTIONS[config.corruption]
    known = config.noise_level == "known"

    def value(name: str) -> Any:
        given = getattr(config, name)
        if not isinstance(given, tuple):
            return given
        if name == "sigma" and sigma is not None:
            return sigma
        if len(given) not in (1, 2):
            raise InputError(f"--{name} takes one number or two, and got {len(given)}")
        return given[0] if len(given) == 1 else given

    corruption = entry.make(*map(value, entry.reads))
    return corruption if known else replace(corruption, level=None)


def make_model(config: Config, dataset: data.Dataset, channels: int) -> Denoiser:
    """The configuration's network.

    Args:
      channels: of the network's input; its output has those of the data set's images.

    Raises:
      InputError: the images or the fields do not fit.
    """
    height, width, outputs = dataset.image_shape
    if config.corruption == "grayscale" and outputs != 3:
        raise InputError(
            f"the grayscale corruption needs images in colour, and {dataset.name} has {outputs} "
            f"channel{'s' * (outputs != 1)}: choose another --dataset"
        )
    known = fields_of(config.architecture)
    read = [part.name for part in fields(Config) if part.name in known and part.name != "dtype"]
    values: dict[str, Any] = {name: getattr(config, name) for name in read}
    # Dense layers depend on the image size.
    if "latent_dim" in known or values.get("bridge"):
        values["image_size"] = (height, width)
    return build(
        config.architecture,
        channels=channels,
        out_channels=outputs,
        dtype=jnp.dtype(config.dtype),
        **values,
    )


def make_teacher(
    config: Config, dataset: data.Dataset
) -> tuple[Callable[[Array], Array] | None, str | None]:
    """The pretrained network to learn from, and the SHA-256 of its parameters.

    Raises:
      InputError: there is no such network, or it does not fit the images or their noise.
    """
    if config.teacher is None:
        return None, None
    model, params = pretrained.load(config.teacher)
    if not isinstance(model, Denoiser):
        raise InputError(
            f"--teacher {config.teacher} restores no images: choose another, such as digits-unet"
        )
    size, channels = dataset.image_shape[:2], dataset.image_shape[2]
    if model.image_size not in (None, size) or model.channels != channels:
        takes = (*(model.image_size or ("any", "any")), model.channels)
        raise InputError(
            f"--teacher {config.teacher} restores images of shape {takes}, and those of "
            f"{dataset.name} have {dataset.image_shape}: leave it out"
        )
    if config.corruption != "gaussian" or config.mean != 0.5 or config.clean_epochs:
        raise InputError(
            f"--teacher {config.teacher} knows gaussian noise of mean 0.5 only: leave out "
            "--corruption, --mean and --clean-epochs, or the teacher"
        )

    def teacher(images: Array) -> Array:
        return cast(Array, model.apply({"params": params}, images))

    return teacher, tree_sha256(params)


def make_initial(config: Config, model: Denoiser) -> Any:
    """The parameters that `config.init` names, for a network; None if it names none.

    Raises:
      InputError: there are none, or they do not fit.
    """
    if config.init is None:
        return None
    path = Path(config.init)
    if path.suffix == ".npz":
        source, params = pretrained.load(path.stem, path.parent)
    else:
        source, params = pretrained.load(config.init)
    if isinstance(source, PhotoDenoiser) and (source.channels, model.channels) == (3, 1):
        params = gray_params(params)
    fits = jax.tree.map(np.shape, params) == parameter_shapes(model)
    if not fits or type(source) is not type(model):
        raise InputError(
            f"--init {config.init} is another network than this run's: choose one of the same "
            "architecture, features and channels"
        )
    return params


def check(config: Config) -> None:
    """Checks the rules that no later constructor checks."""
    for name, low in [
        ("epochs", 1),
        ("clean_epochs", 0),
        ("batch_size", 1),
        ("seed", 0),
        ("candidates", 1),
    ]:
        value = getattr(config, name)
        if value < low:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {low}")
    if config.seed >= 2**32:
        raise InputError(f"--seed {config.seed} must be less than 2**32")
    for name in ("b1", "b2", "ema_decay"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least 0, less than 1")
    if not 0 <= config.weight_decay < float("inf"):
        raise InputError(f"--weight-decay {config.weight_decay} must be a number of at least 0")
    if not config.eval_sigmas:
        raise InputError("--eval-sigmas takes at least one number, such as 0.5")
    for sigma in config.eval_sigmas:
        if not 0 <= sigma < float("inf"):
            raise InputError(f"--eval-sigmas {sigma} must be a finite number of at least 0")
    make_schedule(config.schedule, config.learning_rate, 10)
    if config.crop is None:
        for flag, given in (("turns", config.turns), ("candidates", config.candidates > 1)):
            if given:
                raise InputError(f"--{flag} chooses among random patches: give --crop 64, too")


def with_patches(dataset: data.Dataset, config: Config) -> data.Dataset:
    """The data set, its training patches drawn as the configuration says."""
    train = dataset.train
    if not isinstance(train.images, Crops):
        return dataset
    drawn = partial(Crops.replace, turns=config.turns, candidates=config.candidates)
    noisy = None if train.noisy is None else drawn(train.noisy, judged_by=train.images)
    return replace(dataset, train=replace(train, images=drawn(train.images), noisy=noisy))


def hold_out(dataset: data.Dataset, count: int) -> data.Dataset:
    """The data set, with its last training images in place of the test images."""
    train = dataset.train
    if not 0 < count < len(train):
        raise InputError(
            f"--validation-images {count} must be between 0 and {len(train) - 1}: some of the "
            f"{len(train)} training images must be left"
        )

    held = train.take(slice(-count, None))
    noisy = None if held.noisy is None else np.asarray(held.noisy)
    held = replace(held, images=np.asarray(held.images), noisy=noisy)
    return replace(dataset, train=train.take(slice(-count)), test=held)


def first_images(split: data.Split, count: int | None, flag: str) -> data.Split:
    """The first images of a split, or all if `count` is None; `flag` is for the message."""
    if count is None:
        return split
    if not 1 <= count <= len(split):
        raise InputError(f"--{flag} {count} must be between 1 and the {len(split)} there are")
    return split.take(slice(count))


def examples_of(split: data.Split) -> Any:
    """A split as an objective takes it: clean images, or pairs."""
    return split.images if split.noisy is None else Pair(split.noisy, split.images)
