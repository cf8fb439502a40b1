"""Loads a trained denoiser by its name, its run's folder or its file.

    loaded = load_model("digits-blind")
    loaded = load_model("runs/default-sigma0.5")
    images = loaded.model.apply({"params": loaded.params}, noisy)      # in [0, 1]

A finished run holds its network as model.npz and model.json, in the form of `jaxdae.pretrained`.
Neither its data set nor its checkpoints are needed.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxdae import pretrained
from jaxdae.errors import InputError
from jaxdae.export import from_safetensors
from jaxdae.model import Denoiser

from .. import program

NAME = "model"  # of the network in a run's folder


class Loaded(NamedTuple):
    """A trained denoiser.

    Fields:
      model: the network.
      params: its parameters, numpy arrays.
      card: its model card; "recipe" holds the configuration, such as "mean" and "sigma" of the
        noise.
    """

    model: Denoiser
    params: Any
    card: dict[str, Any]


def load_model(name: str, flag: str = "--model") -> Loaded:
    """Loads a denoiser.

    Args:
      name: one of `jaxdae.pretrained.names`, or a path: the folder of a finished run, FILE.npz
        beside its card FILE.json, or FILE.safetensors from `export`.
      flag: where the name was given; for error messages.

    Raises:
      InputError: there is no such model, it is damaged, or it is not a denoiser.
    """
    known, what = pretrained.names(), f"{flag} {name}"
    if name in known:
        return _load(name, pretrained.FOLDER, what)
    path = Path(os.path.expanduser(name))  # keeps "~name" if there is no such user
    if path.is_dir():
        if (path / f"{NAME}.json").is_file():
            return _load(NAME, path, what)
        if (path / "config.json").is_file() and not (path / "summary.json").is_file():
            raise InputError(
                f"{what} is a run that is not finished: continue it with {program('run')} --resume "
                f"{name}"
            )
        raise InputError(
            f"{what} holds no {NAME}.npz and {NAME}.json: give the folder of a finished run"
        )
    if path.suffix in (".npz", ".json") and path.is_file():
        for other in (path.with_suffix(".npz"), path.with_suffix(".json")):
            if not other.is_file():
                raise InputError(f"{what} needs the file {other} beside it: put it there")
        return _load(path.stem, path.parent, what)
    if path.suffix == ".safetensors" and path.is_file():
        return _denoiser(*from_safetensors(path), what)
    raise InputError(
        f"{what} is no model: give the folder of a finished run, a model's .npz or .safetensors "
        f"file, or one of {', '.join(n for n in known if n != 'digit-classifier')}"
    )


def _load(name: str, folder: Path, what: str) -> Loaded:
    return _denoiser(*pretrained.load(name, folder), pretrained.card(name, folder), what)


def _denoiser(model: Any, params: Any, card: dict[str, Any], what: str) -> Loaded:
    if not isinstance(model, Denoiser):
        raise InputError(f"{what} is not a denoiser: choose another, such as digits-blind")
    return Loaded(model, params, card)
