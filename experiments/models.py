"""A trained denoiser by what a user calls it: a name, the folder of a run, or a file.

    loaded = load_model("blind")
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
from jaxdae.model import Denoiser

from . import program

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


def load_model(name: str) -> Loaded:
    """Reads a denoiser: one that comes with the package, a run's, or a file's.

    Args:
      name: as `jaxdae.pretrained.names` has it, or a path: the folder of a finished run, or
        FILE.npz beside its card FILE.json.

    Raises:
      InputError: it is nothing of the kind, is damaged, or restores no images.
    """
    known = pretrained.names()
    if name in known:
        return _load(name, pretrained.FOLDER, name)
    path = Path(os.path.expanduser(name))  # which leaves a user that there is not as it is
    if path.is_dir():
        if (path / f"{NAME}.json").is_file():
            return _load(NAME, path, name)
        if (path / "config.json").is_file() and not (path / "summary.json").is_file():
            raise InputError(
                f"--model {name} is a run that is not finished: go on with {program('run')} "
                f"--resume {name}"
            )
        raise InputError(
            f"--model {name} holds no {NAME}.npz and {NAME}.json: give the folder of a finished run"
        )
    if path.suffix in (".npz", ".json") and path.is_file():
        for other in (path.with_suffix(".npz"), path.with_suffix(".json")):
            if not other.is_file():
                raise InputError(f"--model {name}: {other} must be beside it: put it there")
        return _load(path.stem, path.parent, name)
    raise InputError(
        f"--model {name} is none: give the folder of a finished run, a model's .npz file, or one "
        f"of {', '.join(n for n in known if n != 'digit-classifier')}"
    )


def _load(name: str, folder: Path, called: str) -> Loaded:
    model, params = pretrained.load(name, folder)
    if not isinstance(model, Denoiser):
        raise InputError(f"--model {called} restores no images: choose another, such as blind")
    return Loaded(model, params, pretrained.card(name, folder))
