"""A finished run, read back: what it was made of, and the network it came to.

run = load_run(Path("runs/default-sigma0.5"))
images = run.model.apply({"params": run.params}, noisy)      # in [0, 1]
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from jaxdae import training
from jaxdae import train_step
from jaxdae.checkpoint import Checkpoints
from jaxdae.corruption import Corruption
from jaxdae.data import Dataset
from jaxdae.files import tree_sha256
from jaxdae.errors import InputError
from jaxdae.model import Denoiser
from jaxdae.recipes import Config, read_config

from .. import program
from ..common.flags import Arguments
from .experiment import Experiment, history_of


class Run(NamedTuple):
    """A finished run.

    Fields:
      config: as it was saved.
      dataset: the images that it was trained and tested on.
      corruption: what it undoes.
      model: the network.
      params: its parameters at the end, of which `summary.json` gives the results; numpy arrays.
    """

    config: Config
    dataset: Dataset
    corruption: Any
    model: Denoiser
    params: Any


def load_run(folder: Path) -> Run:
    """Reads the run in a folder; on one device, on however many it was trained.

    Raises:
      InputError: the folder holds no finished run, the data set is not there or is another one
        now, or the checkpoint of the end is lost.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no run (no config.json): give the folder of one")
    config = read_config(folder)
    summary = folder / "summary.json"
    if not summary.is_file():
        raise InputError(
            f"the run in {folder} is unfinished: go on with {program('run')} --resume {folder}"
        )
    if not (folder / "checkpoints").is_dir():
        raise InputError(f"{folder} holds no checkpoints/: restore it from a copy")
    experiment = Experiment(Arguments(replace(config, devices=1)), Console(quiet=True))
    optimizer, ema = experiment.optimizer(experiment.stages[-1])[0], config.ema_decay is not None
    create = partial(train_step.create_state, experiment.model, optimizer, config.seed, ema=ema)
    state = jax.eval_shape(create)  # to read into, shapes suffice
    with Checkpoints(folder / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state, experiment.same_run)
    params = restored and restored.state.eval_params
    if tree_sha256(params) != read_summary(folder)["params_sha256"]:
        raise InputError(
            f"the checkpoint of the end of the run in {folder} is lost or damaged: restore the "
            "folder from a copy"
        )
    return Run(config, experiment.dataset, experiment.corruption, experiment.model, params)


def read_summary(folder: Path) -> dict[str, Any]:
    """What summary.json of a finished run holds.

    Raises:
      InputError: it is damaged.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        if not isinstance(summary["params_sha256"], str) or not isinstance(summary["test"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        raise InputError(f"{path} is damaged: restore it from a copy") from None
    return summary


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv of a run, one for each epoch.

    Raises:
      InputError: it is lost or damaged, or has none.
    """
    path = folder / "metrics.csv"
    try:
        history = history_of(path.read_text())
        if not history or not {"epoch", "train_loss", "test_loss"} <= set(history[0]):
            raise ValueError
    except (ValueError, TypeError, OSError):
        raise InputError(f"{path} is lost or damaged: restore it from a copy") from None
    return history
