"""A trained denoiser by what a user calls it: a name, the folder of a run, or a file.

    loaded = load_model("digits-blind")
    loaded = load_model("runs/default-sigma0.5")
    images = loaded.model.apply({"params": loaded.params}, noisy)      # in [0, 1]

A finished run holds its network as model.npz and model.json, in the form of `jaxdae.pretrained`:
no data set is needed to read it, nor the checkpoints.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxdae import pretrained
from jaxdae.errors import InputError
from jaxdae.export import from_safetensors
from jaxdae.model import Denoiser

from .. import program

NAME = "model"  # of a run's network, in its folder


class Loaded(NamedTuple):
    """A trained denoiser.

    Fields:
      model: the network.
      params: its parameters, numpy arrays.
      card: its model card; "recipe" holds what it was trained with, "mean" and "sigma" of the
        noise among it.
    """

    model: Denoiser
    params: Any
    card: dict[str, Any]


def load_model(name: str, flag: str = "--model") -> Loaded:
    """Reads a denoiser: one that comes with the package, a run's, or a file's.

    Args:
      name: as `jaxdae.pretrained.names` has it, or a path: the folder of a finished run, FILE.npz
        beside its card FILE.json, or FILE.safetensors, as `export` writes it.
      flag: what it was given by, to complain of.

    Raises:
      InputError: it is nothing of the kind, is damaged, or restores no images.
    """
    known, said = pretrained.names(), f"{flag} {name}"
    if name in known:
        return _load(name, pretrained.FOLDER, said)
    path = Path(os.path.expanduser(name))  # which leaves a user that there is not as it is
    if path.is_dir():
        if (path / f"{NAME}.json").is_file():
            return _load(NAME, path, said)
        if (path / "config.json").is_file() and not (path / "summary.json").is_file():
            raise InputError(
                f"{said} is a run that is not finished: go on with {program('run')} --resume {name}"
            )
        raise InputError(
            f"{said} holds no {NAME}.npz and {NAME}.json: give the folder of a finished run"
        )
    if path.suffix in (".npz", ".json") and path.is_file():
        for other in (path.with_suffix(".npz"), path.with_suffix(".json")):
            if not other.is_file():
                raise InputError(f"{said}: {other} must be beside it: put it there")
        return _load(path.stem, path.parent, said)
    if path.suffix == ".safetensors" and path.is_file():
        return _denoiser(*from_safetensors(path), said)
    raise InputError(
        f"{said} is none: give the folder of a finished run, a model's .npz or .safetensors file, "
        f"or one of {', '.join(n for n in known if n != 'digit-classifier')}"
    )


def _load(name: str, folder: Path, said: str) -> Loaded:
    return _denoiser(*pretrained.load(name, folder), pretrained.card(name, folder), said)


def _denoiser(model: Any, params: Any, card: dict[str, Any], said: str) -> Loaded:
    if not isinstance(model, Denoiser):
        raise InputError(f"{said} restores no images: choose another, such as digits-blind")
    return Loaded(model, params, card)
