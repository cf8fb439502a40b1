"""Trackers of a run: TensorBoard's files and Weights & Biases.

Each tracker gets one row of metrics.csv after every epoch, under the number of its step, and a
picture of samples at the end. After a resume no step appears twice: TensorBoard drops the old
steps, and all epochs are written again; Weights & Biases keeps what it has. A tracker that fails is
dropped with a warning, and training continues.
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

from jaxdae.config import Config
from jaxdae.errors import InputError
from jaxdae.files import write_whole

Row = Mapping[str, float]
Pixels = UInt8[np.ndarray, "height width 3"]
# Columns of metrics.csv that are logged, with their names in the trackers.
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
    """Raises an `InputError` if the package of a wanted tracker is not installed."""
    for wanted, flag, module in (
        (tensorboard, "--tensorboard", "tensorboardX"),
        (wandb is not None, "--wandb", "wandb"),
    ):
        if wanted and importlib.util.find_spec(module) is None:
            extra = flag.removeprefix("--")
            raise InputError(f'{flag} needs {module}: pip install "jaxdae[{extra}]"')
    if wandb is not None and not wandb.strip():
        raise InputError("--wandb needs the name of a project: give one such as denoising")


class TensorBoard:
    """Writes OUT/tensorboard/."""

    name = "--tensorboard"

    def __init__(self, out: Path) -> None:
        from tensorboardX import SummaryWriter

        folder = out / "tensorboard"
        # After a resume TensorBoard drops all old steps, and `begin` writes the history again: a
        # process that was killed may have logged more epochs than it saved, or fewer.
        purge_step = 0 if folder.is_dir() and any(folder.iterdir()) else None
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def begin(self, config: Config, history: Sequence[Row]) -> None:
        table = "\n".join(f"| {name} | {value} |" for name, value in asdict(config).items())
        self.writer.add_text("config", f"| name | value |\n| --- | --- |\n{table}", 0)
        for row in history:  # with the times between the epochs of the first training
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
    """Logs to a project of Weights & Biases, or to OUT/wandb/ with WANDB_MODE=offline."""

    name = "--wandb"

    def __init__(self, out: Path, project: str) -> None:
        self.out, self.project = out, project

    def begin(self, config: Config, history: Sequence[Row]) -> None:
        import wandb

        path = self.out / "wandb" / "run-id"
        resumed = path.is_file()
        if not resumed:
            write_whole(path, uuid.uuid4().hex[:12] + "\n")
        try:
            self.run = wandb.init(
                project=self.project,
                name=self.out.resolve().name,
                id=path.read_text().strip(),
                resume="allow",
                dir=str(self.out),
                config=asdict(config),
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(
                f"--wandb {self.project} cannot start ({reason}): run `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from None
        for row in () if resumed else history:
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
    """All trackers of a run; a context manager that closes them. A failing tracker stops no run.

    Args:
      out: the run's folder; None in a process that does not write.
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
        """Opens the trackers.

        Args:
          history: the rows of the epochs before a resume.

        Raises:
          InputError: a tracker cannot start.
        """
        for make in self.makers:
            tracker = make()
            tracker.begin(config, history)
            self.all.append(tracker)

    def epoch(self, row: Row) -> None:
        """Logs an epoch."""
        for tracker in list(self.all):
            self._try(tracker, partial(tracker.epoch, row))

    def finish(self, step: int, picture: Callable[[], Pixels]) -> None:
        """Logs a picture of samples. `picture` is called only if there is a tracker."""
        if not self.all:
            return
        pixels = picture()
        for tracker in list(self.all):
            self._try(tracker, partial(tracker.finish, step, pixels))

    def _try(self, tracker: Any, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # the package may raise anything
            self.all.remove(tracker)
            self.console.print(
                f"warning: {tracker.name} failed ({error}): training continues without it"
            )
