"""A finished run, loaded: its configuration, its data and its trained network.

run = load_run(Path("runs/default-sigma0.5"))
images = run.model.apply({"params": run.params}, noisy)      # in [0, 1]
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from jaxdae import train_step
from jaxdae.checkpoint import Checkpoints
from jaxdae.config import Config, read_config
from jaxdae.data import Dataset
from jaxdae.errors import InputError
from jaxdae.evaluation import Task
from jaxdae.files import tree_sha256
from jaxdae.model import Denoiser

from .. import program
from ..common.flags import Arguments
from .experiment import Experiment
from .folder import read_summary


class Run(NamedTuple):
    """A finished run.

    Fields:
      config: as it was saved.
      dataset: the images that it was trained and tested on.
      task: the corruption that the network removes, or the objective.
      model: the network.
      params: its final parameters, whose results are in `summary.json`; numpy arrays.
    """

    config: Config
    dataset: Dataset
    task: Task
    model: Denoiser
    params: Any


def load_run(folder: Path) -> Run:
    """Loads the run in a folder, on one device, however many it was trained on.

    Raises:
      InputError: the folder holds no finished run, its data set is missing or has changed, or its
        last checkpoint is missing.
    """
    config = read_config(folder)
    if not (folder / "summary.json").is_file():
        raise InputError(
            f"the run in {folder} is not finished: continue it with {program('run')} --resume "
            f"{folder}"
        )
    if not (folder / "checkpoints").is_dir():
        raise InputError(f"{folder} has no checkpoints/: restore it from a copy")
    experiment = Experiment(Arguments(replace(config, devices=1)), Console(quiet=True))
    optimizer, ema = experiment.optimizer(experiment.stages[-1])[0], config.ema_decay is not None
    create = partial(train_step.create_state, experiment.model, optimizer, config.seed, ema=ema)
    state = jax.eval_shape(create)  # shapes are enough to restore into
    with Checkpoints(folder / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state, experiment.check_same_run)
    params = restored and restored.state.eval_params
    if tree_sha256(params) != read_summary(folder)["params_sha256"]:
        raise InputError(
            f"the last checkpoint of the run in {folder} is missing or damaged: restore the folder "
            "from a copy"
        )
    return Run(config, experiment.dataset, experiment.task, experiment.model, params)
