"""What watches a run from outside: TensorBoard's files and Weights & Biases, if they are asked for.

Each is given the row of metrics.csv of every epoch, under the number of its step, and in the end a
picture of samples. A run that goes on writes the epochs before it anew (TensorBoard, which leaves
out what it is told to) or relies on what is there (Weights & Biases): no step is there twice.
A tracker that fails is left out with a warning; the training goes on without it.
"""

import importlib.util
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from jaxdae.errors import InputError
from jaxdae.recipes import Config

Row = Mapping[str, float]
Pixels = UInt8[np.ndarray, "height width 3"]
# What is followed of an epoch's row, and what it is called.
NAMES = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "test_mse": "test/mse",
    "test_psnr": "test/psnr",
    "test_ssim": "test/ssim",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}


def check(tensorboard: bool, wandb: str | None) -> None:
    """Raises if the package of a tracker that is asked for is missing."""
    for asked, flag, module in (
        (tensorboard, "--tensorboard", "tensorboardX"),
        (wandb is not None, "--wandb", "wandb"),
    ):
        if asked and importlib.util.find_spec(module) is None:
            extra = flag.removeprefix("--")
            raise InputError(f'{flag} needs {module}: pip install "jaxdae[{extra}]"')
    if wandb is not None and not wandb.strip():
        raise InputError("--wandb takes the name of a project, such as denoising")


class TensorBoard:
    """Writes OUT/tensorboard/."""

    name = "--tensorboard"

    def __init__(self, out: Path) -> None:
        from tensorboardX import SummaryWriter

        folder = out / "tensorboard"
        # What was written before the run went on is left out, and written anew from its history:
        # a process that was killed may have written more epochs than it kept, or fewer.
        again = 0 if folder.is_dir() and any(folder.iterdir()) else None
        self.writer = SummaryWriter(str(folder), purge_step=again)

    def begin(self, config: Config, history: Sequence[Row]) -> None:
        table = "\n".join(f"| {name} | {value} |" for name, value in asdict(config).items())
        self.writer.add_text("config", f"| name | value |\n| --- | --- |\n{table}", 0)
        for row in history:  # as far apart as their training took
            ago = history[-1]["train_seconds"] - row["train_seconds"]
            self.epoch(row, time.time() - ago)

    def epoch(self, row: Row, when: float | None = None) -> None:
        for key, name in NAMES.items():
            self.writer.add_scalar(name, row[key], int(row["step"]), walltime=when)
        self.writer.flush()

    def finish(self, step: int, picture: Pixels) -> None:
        self.writer.add_image("samples", picture, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Logs to a project of Weights & Biases; where its variables say offline, to OUT/wandb/."""

    name = "--wandb"

    def __init__(self, out: Path, project: str) -> None:
        self.out, self.project = out, project

    def begin(self, config: Config, history: Sequence[Row]) -> None:
        import wandb

        place = self.out / "wandb" / "run-id"
        known = place.is_file()
        if not known:
            place.parent.mkdir(exist_ok=True)
            place.write_text(uuid.uuid4().hex[:12] + "\n")
        try:
            self.run = wandb.init(
                project=self.project,
                name=self.out.resolve().name,
                id=place.read_text().strip(),
                resume="allow",
                dir=str(self.out),
                config=asdict(config),
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:
            why = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(
                f"--wandb {self.project} cannot begin ({why}): wandb login, or set "
                "WANDB_MODE=offline"
            ) from None
        for row in () if known else history:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        values = {name: row[key] for key, name in NAMES.items()}
        self.run.log({"epoch": row["epoch"], **values}, step=int(row["step"]))

    def finish(self, step: int, picture: Pixels) -> None:
        import wandb

        self.run.log({"samples": wandb.Image(picture)}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackers:
    """All that follow a run, none of which can stop it; a context that closes them.

    Args:
      out: the run's folder; None for a process that does not write.
    """

    def __init__(
        self, tensorboard: bool, wandb: str | None, out: Path | None, console: Console
    ) -> None:
        self.console = console
        self.makers: list[Callable[[], Any]] = []
        if out is not None and tensorboard:
            self.makers.append(lambda: TensorBoard(out))
        if out is not None and wandb is not None:
            self.makers.append(lambda: WandB(out, wandb))
        self.all: list[TensorBoard | WandB] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for tracker in list(self.all):
            self._try(tracker, tracker.close)

    def begin(self, config: Config, history: Sequence[Row]) -> None:
        """Opens them, for a run that has come as far as its history.

        Raises:
          InputError: one of them refuses.
        """
        for make in self.makers:
            tracker = make()
            tracker.begin(config, history)
            self.all.append(tracker)

    def epoch(self, row: Row) -> None:
        """Tells them of an epoch."""
        for tracker in list(self.all):
            self._try(tracker, partial(tracker.epoch, row))

    def finish(self, step: int, picture: Callable[[], Pixels]) -> None:
        """Gives them a picture of samples, which is made if there is anyone to see it."""
        if not self.all:
            return
        pixels = picture()
        for tracker in list(self.all):
            self._try(tracker, partial(tracker.finish, step, pixels))

    def _try(self, tracker: Any, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # of a package whose errors are its own
            self.all.remove(tracker)
            self.console.print(
                f"warning: {tracker.name} fails ({error}), and the training goes on without it"
            )
