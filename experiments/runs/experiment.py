"""A run from its configuration to its last figure: calls to `jaxdae`, files out."""

import csv
import io
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import jaxdae
from jaxdae import data, kernels, pretrained
from jaxdae.checkpoint import Checkpoints
from jaxdae.errors import DivergenceError, InputError
from jaxdae.evaluation import Evaluator, means
from jaxdae.files import tree_sha256
from jaxdae.model import parameter_count
from jaxdae.recipes import Config
from jaxdae.train_step import TrainState
from jaxdae.trainer import NOISE_LEVELS, Part, Stage, Trainer
from jaxdae.training import Progress as TrainingProgress

from .. import program
from ..common import cli, cluster, trackers
from ..common.flags import Arguments
from ..common.guard import Guard, locked
from .models import NAME

# What a checkpoint must agree with to go on from it, as it is called when it does not.
IDENTITY = {"config": "configuration", "data_sha256": "data set", "teacher_sha256": "teacher"}
Results = dict[str, dict[str, Any]]  # the metrics at each noise level


def run(
    arguments: Arguments,
    dataset: Future[data.Dataset] | None = None,
    show: "Show | None" = None,
) -> None:
    """Trains, or resumes, and writes everything; see `experiments.run`.

    Args:
      dataset: the configuration's images, if they are being read already.
      show: draws figures and writes a page when the run ends.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    out = arguments.resume
    if out is not None and (out / "summary.json").exists():
        console.print(f"The run in {out} is finished: its result is in {out}/summary.json.")
        return
    experiment = Experiment(arguments, console, dataset.result() if dataset else None, show)
    out = out or _choose(arguments.out, experiment.config)
    if not experiment.leads:
        experiment.go(out)
        return
    with _folder(out):
        if arguments.resume is None:
            _claim(out, experiment.config)
        experiment.go(out)


class Experiment(Trainer):
    """A run: everything checked and built at construction, before any work starts.

    Raises:
      InputError: a value that cannot be, said in one line.
    """

    def __init__(
        self,
        arguments: Arguments,
        console: Console,
        dataset: data.Dataset | None = None,
        show: "Show | None" = None,
    ) -> None:
        self.arguments, self.console, self.show = arguments, console, show
        # Of several processes the first alone tests, writes and speaks.
        self.leads = jax.process_index() == 0
        console.quiet = console.quiet or not self.leads
        if arguments.keep < 1:
            raise InputError(f"keep={arguments.keep} checkpoints must be at least 1")
        if self.leads:
            trackers.check(arguments.tensorboard, arguments.wandb)
        super().__init__(arguments.config, dataset)
        config, dataset = self.config, self.dataset
        # The devices may be others than a checkpoint's: the result is the same, to rounding.
        self.identity = {
            "config": json.loads(json.dumps(asdict(replace(config, devices=None)))),
            "data_sha256": dataset.sha256
            or tree_sha256((dataset.train.images, dataset.test.images)),
            "teacher_sha256": self.teacher_sha256,
        }
        self.tested = "Validation" if config.validation_images else "Test"
        self.history: list[dict[str, float]] = []
        self.csv = ""  # the same, as metrics.csv: to a checkpoint, text is cheap, however long
        self.part = Part()
        self.compile_seconds = 0.0
        self.start_seconds: float | None = None  # from the process's start to its first step

    def go(self, out: Path) -> None:
        """Trains from where the checkpoints in `out` are to the end."""
        self.out = out
        with (
            Guard(self.last_words) as self.guard,
            cluster.together(self.last_words),
            self.opened(out) as self.checkpoints,
            self.followed(out) as self.trackers,
        ):
            state = self.create_state()
            self.count = parameter_count(state.params)
            self.console.print(self.headline(out))
            state = self.take_up(state)
            self.trackers.begin(self.config, self.history)
            try:
                for stage in self.stages:
                    state = self.train(state, stage)
            except DivergenceError as error:
                self.settle()
                kept = f"; the checkpoint of step {self.saved()} is kept in {out}"
                raise DivergenceError(f"{error}{kept if self.saved() else ''}") from None
            if self.settle():  # once more, before the state is given up
                self.save(state)
            if failure := self.settle():
                raise InputError(
                    f"the state after the last epoch cannot be saved in {out} ({failure}): make "
                    f"room there{self.last_words()}"
                )
            if self.leads:
                self.finish(out, jax.tree.map(np.asarray, state.eval_params))

    def opened(self, out: Path) -> AbstractContextManager[Checkpoints | None]:
        if not self.leads:
            return nullcontext()
        return Checkpoints(out / "checkpoints", keep=self.arguments.keep)

    def followed(self, out: Path) -> trackers.Trackers:
        flags = self.arguments
        return trackers.Trackers(
            flags.tensorboard, flags.wandb, out if self.leads else None, self.console
        )

    def settle(self) -> str | None:
        """Waits for the last save, and returns why it failed, if it did."""
        if self.checkpoints is None:
            return None
        self.checkpoints.wait()
        return self.checkpoints.failure

    def headline(self, out: Path) -> str:
        config, device = self.config, self.devices[0]
        kind = device.device_kind if device.platform != "cpu" else platform.machine()
        return (
            f"{config.recipe}: {config.architecture}, {self.count:,} parameters; "
            f"{self.corruption}; {len(self.dataset.train):,} images of {self.dataset.name}; "
            f"{len(self.devices)} x {device.platform} ({kind}{self._kernels()}); into {out}"
        )

    def _kernels(self) -> str:
        if self.devices[0].platform != "cpu" or kernels.available():
            return ""
        return ", slower for want of a C++ compiler"

    def saved(self) -> int | None:
        """The step of the last checkpoint on disk, as the folder says at this moment."""
        names = [path.name for path in self.out.glob("checkpoints/*")]
        return max((int(name) for name in names if name.isdigit()), default=None)

    def last_words(self) -> str:
        """Where the last good checkpoint is and how to go on from it."""
        if not self.leads:
            return f"; process 0 keeps the checkpoints: {program('run')} --resume {self.out}"
        step = self.saved()
        if step is None:
            return f"; nothing was kept, and {self.out} can be deleted"
        return f"; the checkpoint of step {step} is kept: {program('run')} --resume {self.out}"

    def same_run(self, meta: dict[str, Any]) -> None:
        """Raises if a checkpoint is of another configuration or of other images."""
        for name, value in self.identity.items():
            if meta[name] != value:
                raise ValueError(f"it was made with another {IDENTITY[name]}")

    def take_up(self, state: TrainState) -> TrainState:
        """The state to go on with, and the history up to it: a checkpoint's, or the fresh ones."""
        meta = None
        if self.checkpoints and (restored := self.checkpoints.restore(state, self.same_run)):
            for step, reason in restored.skipped:
                self.console.print(f"skipped the checkpoint of step {step}: {reason}")
            state, meta = restored.state, restored.meta
        if jax.process_count() > 1:
            state, meta = cluster.share_state(state, meta)
        if meta is None:
            return state
        self.csv = meta["history"]
        self.history = history_of(self.csv)
        self.part = Part(**meta["part"])
        self.compile_seconds = meta["compile_seconds"]
        steps = f" and {len(self.part.losses)} steps" if self.part.losses else ""
        self.console.print(f"resumed after epoch {len(self.history)}{steps}")
        return state

    def train(self, state: TrainState, stage: Stage) -> TrainState:
        """Trains the epochs of a stage that the history does not hold yet."""
        done, taken = len(self.history), len(self.part.losses)
        if done >= stage.epochs.stop:
            return state
        with self.guard.holding(), self.bar(range(done, stage.epochs.stop)) as show:
            if taken == self.steps_per_epoch:  # stopped between its last step and its test
                self.end_epoch(state, stage)
                done, taken = done + 1, 0
            for progress in self.chunks(state, stage, done, taken, self.arguments.debug):
                if self.start_seconds is None:
                    self.start_seconds = cli.running_seconds() - progress.seconds
                state = progress.state
                self.part.add(progress)
                self.compile_seconds += progress.compile_seconds
                show(progress)
                self.guard.asked = cluster.any_asked(self.guard.asked)
                if self.guard.asked is not None:
                    self.save(state)
                    self.settle()
                    self.guard.stop()
                if progress.ended:
                    self.end_epoch(state, stage)
        return state

    def end_epoch(self, state: TrainState, stage: Stage) -> None:
        """Tests, and saves with the epoch's row in the history."""
        part, history = self.part, self.history
        if not self.leads:
            self.history, self.part = [*history, {}], Part()
            return
        seconds = history[-1]["train_seconds"] if history else 0.0
        row = self.row(state, stage, part, len(history) + 1, seconds)
        self.csv += _csv(row, header=not self.history)
        self.history, self.part = [*self.history, row], Part()
        # Losses compare within a stage: the best is sought in the last.
        self.save(state, row["test_loss"] if stage is self.stages[-1] else float("inf"))
        self.trackers.epoch(row)
        self.report(row, stage.epochs.stop)

    def save(self, state: TrainState, loss: float = float("inf")) -> None:
        """Saves the state and the history; says what fails, and leaves it at that.

        The training goes on in memory, for the disk may have room again at the next epoch.
        """
        if self.checkpoints is None:
            return
        meta = {
            **self.identity,
            "history": self.csv,
            "part": asdict(self.part),
            "compile_seconds": self.compile_seconds,
        }
        before = self.checkpoints.failure
        try:
            # The rows are on disk before the checkpoint that answers for them.
            if self.csv:
                write_text(self.out / "metrics.csv", self.csv)
        except OSError as error:
            self.console.print(f"warning: metrics.csv cannot be written ({error.strerror})")
        self.checkpoints.save(int(state.step), state, meta, loss=loss)
        if self.checkpoints.failure and self.checkpoints.failure != before:
            self.console.print(
                f"warning: a checkpoint cannot be saved ({self.checkpoints.failure}), and the "
                "training goes on without it: make room"
            )

    def report(self, row: dict[str, float], epochs: int) -> None:
        self.console.print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
            f"train {self.config.loss} {row['train_loss']:.5f}  "
            f"test {self.config.loss} {row['test_loss']:.5f}  "
            f"psnr {row['test_psnr']:.2f} dB  ssim {row['test_ssim']:.3f}  "
            f"{row['images_per_second']:,.0f} images/s"
        )

    @contextmanager
    def bar(self, epochs: range) -> Iterator[Callable[[TrainingProgress], None]]:
        """A progress bar, and the function that moves it."""
        columns = (
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs.stop)),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  {task.fields[status]}"),
            TimeRemainingColumn(),
        )
        # On the terminal that the lines go to, or nowhere: lines and bar must not mix.
        quiet = not (self.arguments.progress and self.console.is_terminal)
        with Progress(*columns, console=self.console, transient=True, disable=quiet) as bar:
            images = len(epochs) * self.steps_per_epoch * self.config.batch_size
            task = bar.add_task("", total=images, epoch=epochs.start + 1, status="compiling")

            def show(progress: TrainingProgress) -> None:
                speed = progress.images / progress.seconds
                status = f"loss {progress.losses.mean():.5f}  {speed:,.0f} images/s"
                bar.update(task, epoch=progress.epoch + 1, status=status)
                bar.advance(task, progress.images)

            yield show

    def finish(self, out: Path, params: Any) -> None:
        """The closing evaluation, the figures, and last of all the summary."""
        config = self.config
        test, errors = self.closing_table(params)
        last = self.history[-1]
        images = len(self.history) * self.steps_per_epoch * config.batch_size
        device = self.devices[0]
        summary = {
            "recipe": config.recipe,
            "seed": config.seed,
            "parameters": self.count,
            "epochs": len(self.history),
            "train_seconds": last["train_seconds"],
            "compile_seconds": self.compile_seconds,
            "start_seconds": self.start_seconds,
            "images_per_second": images / last["train_seconds"],
            "test": test,
            "params_sha256": tree_sha256(params),
            "device": {
                "platform": device.platform,
                "kind": device.device_kind,
                "count": len(self.devices),
                "native_kernels": kernels.available(),
            },
            "versions": {
                "jaxdae": jaxdae.__version__,
                "python": platform.python_version(),
                **{
                    name: version(name)
                    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
                },
            },
        }
        for row in test.values():  # an image restored exactly has an infinite PSNR; JSON has none
            row.update({name: None for name, value in row.items() if not np.isfinite(value)})
        began = f", begun after {self.start_seconds:.1f} s" if self.start_seconds else ""
        about = {
            "about": f"Removes {self.corruption} from images of {config.dataset}.",
            "recipe": {name: x for name, x in asdict(config).items() if x is not None},
            "results": {"tested_on": f"the {self.tested.lower()} images", **test},
            "versions": summary["versions"],
        }
        pretrained.save(NAME, self.model, params, about, out)
        if self.show is not None:
            self.show(self, params, summary, errors, out)
        write_text(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        self.console.print(
            f"{last['train_seconds']:.1f} s training ({summary['images_per_second']:,.0f} "
            f"images/s), {self.compile_seconds:.1f} s compiling{began}; all in {out}/"
        )

    def closing_table(self, params: Any) -> tuple[Results, np.ndarray | None]:
        """Evaluates at each noise level (or under the run's corruption), and prints the table.

        Returns:
          Its rows, and the mean squared error of each image under the run's own corruption, if one
          of the rows is of that.
        """
        if self.by_sigma is None:
            each = {str(self.corruption): self.stages[-1].test(params)}
        else:
            sigmas = self.config.eval_sigmas
            if len(self.config.sigma) == 1:
                sigmas = tuple(sorted({*sigmas, self.config.sigma[0]}))
            evaluate: Evaluator = self.by_sigma
            # The classifier that reads them has seen the images that are held out.
            if self.config.dataset == "mnist" and not self.config.validation_images:
                evaluate = self.evaluator(self.at_sigma, labels=self.dataset.test.labels)
            each = {str(float(sigma)): evaluate.per_image(params, sigma) for sigma in sigmas}
        rows = {label: means(values) for label, values in each.items()}
        own = str(self.corruption)
        if self.by_sigma and len(self.config.sigma) == 1:
            own = str(float(self.config.sigma[0]))
        errors = each[own]["mse"] if own in each else None
        table = Table(
            "sigma" if self.by_sigma else "corruption", title=f"{self.tested} images, restored"
        )
        styles = {"mse": "{:.5f}", "psnr": "{:.2f} dB", "ssim": "{:.4f}", "bce": "{:.4f}"}
        if "recovery" in next(iter(rows.values())):
            styles["recovery"] = "{:.2%}"
        for name in styles:
            table.add_column({"recovery": "digits read"}.get(name, name), justify="right")
        for label, row in rows.items():
            table.add_row(label, *(style.format(row[name]) for name, style in styles.items()))
        self.console.print(table)
        return rows, errors


# (experiment, params, summary, error of each test image or None, folder)
Show = Callable[[Experiment, Any, Mapping[str, Any], np.ndarray | None, Path], None]


def _choose(out: Path | None, config: Config) -> Path:
    """The folder of a new run."""
    if out is not None:
        return out
    level = "-".join(f"{s:g}" for s in config.sigma)
    noise = f"sigma{level}" if config.corruption in NOISE_LEVELS else config.corruption
    base = f"runs/{config.recipe}-{noise}"
    names = (base if i == 1 else f"{base}-{i}" for i in count(1))
    return next(Path(name) for name in names if not Path(name).exists())


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Makes a folder, if it is not there, and holds it for this process."""
    with ExitStack() as stack:
        try:
            if out.exists() and not out.is_dir():
                raise InputError(
                    f"--out {out} is a file, and must be a folder: choose another name"
                )
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out))
        except OSError as error:
            raise InputError(
                f"{out} cannot be written ({error.strerror}): choose another folder"
            ) from None
        yield out


def _claim(out: Path, config: Config) -> None:
    """Writes the configuration of a new run to its folder, which must be empty."""
    try:
        if any(path.name != ".config.json.tmp" for path in out.iterdir()):
            mend = f"continue it with --resume {out}, or " if (out / "config.json").exists() else ""
            holds = "another run" if mend else "other files"
            raise InputError(
                f"--out {out} holds {holds}, and must be new or empty: {mend}choose another name"
            )
        write_text(out / "config.json", json.dumps(asdict(config), indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written ({error.strerror}): choose another folder"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; a process that is killed leaves the old one, if any."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def history_of(text: str) -> list[dict[str, float]]:
    """The rows of metrics.csv, from its text."""
    return [
        {name: int(x) if name in ("epoch", "step") else float(x) for name, x in row.items()}
        for row in csv.DictReader(text.splitlines())
    ]


def _csv(row: dict[str, float], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerow(row)
    return text.getvalue()
