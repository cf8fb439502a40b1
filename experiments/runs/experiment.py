"""A run: trains a configuration, and writes everything to its folder."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxdae
from jaxdae import data, kernels, pretrained
from jaxdae.checkpoint import Checkpoints
from jaxdae.config import upgraded
from jaxdae.errors import DivergenceError, InputError
from jaxdae.evaluation import Evaluator, means
from jaxdae.files import tree_sha256, write_whole
from jaxdae.from_config import examples_of
from jaxdae.model import parameter_count
from jaxdae.train_step import TrainState
from jaxdae.trainer import Part, Stage, Trainer
from jaxdae.training import Progress

from .. import program
from ..common import cli, cluster, trackers
from ..common.flags import Arguments
from ..common.guard import Guard
from ..common.progress import progress_bar
from . import folder
from .models import NAME

# What must be equal to resume from a checkpoint: key to the name in messages.
IDENTITY = {"config": "configuration", "data_sha256": "data set", "teacher_sha256": "teacher"}
Results = dict[str, dict[str, Any]]  # noise level to metrics


def run(
    arguments: Arguments,
    dataset: Future[data.Dataset] | None = None,
    show: "Show | None" = None,
) -> None:
    """Trains or resumes a run, and writes everything; see `experiments.run`.

    Args:
      dataset: the images of the configuration, if they are being read already.
      show: draws the figures and writes the report at the end of the run.
    """
    console = cli.make_console()
    out = arguments.resume
    if out is not None and (out / "summary.json").exists():
        console.print(f"The run in {out} is finished: its result is in {out}/summary.json.")
        return
    experiment = Experiment(arguments, console, dataset.result() if dataset else None, show)
    out = out or arguments.out or folder.new_folder(experiment.config)
    if not experiment.is_main_process:
        experiment.run(out)
        return
    with folder.opened(out):
        if arguments.resume is None:
            folder.write_config(out, experiment.config)
        experiment.run(out)


class Experiment(Trainer):
    """A run. The constructor builds and checks everything before any work starts.

    Raises:
      InputError: a value of the configuration is not possible.
    """

    def __init__(
        self,
        arguments: Arguments,
        console: Console,
        dataset: data.Dataset | None = None,
        show: "Show | None" = None,
    ) -> None:
        self.arguments, self.console, self.show = arguments, console, show
        # Only the main process tests, writes and prints.
        self.is_main_process = jax.process_index() == 0
        console.quiet = console.quiet or not self.is_main_process
        if arguments.keep < 1:
            raise InputError(f"--keep {arguments.keep} must be at least 1: choose 1 or more")
        if self.is_main_process:
            trackers.check(arguments.tensorboard, arguments.wandb)
        super().__init__(arguments.config, dataset)
        config, dataset = self.config, self.dataset
        # A run may resume on another number of devices: the result is the same up to rounding.
        self.identity = {
            "config": json.loads(json.dumps(asdict(replace(config, devices=None)))),
            "data_sha256": dataset.sha256
            or tree_sha256((examples_of(dataset.train), examples_of(dataset.test))),
            "teacher_sha256": self.teacher_sha256,
        }
        self.tested = "Validation" if config.validation_images else "Test"
        self.history: list[dict[str, float]] = []
        self.csv = ""  # the history as metrics.csv: a checkpoint saves text faster
        self.part = Part()
        self.compile_seconds = 0.0
        self.start_seconds: float | None = None  # from the start of the process to the first step

    def run(self, out: Path) -> None:
        """Trains to the end, from the newest checkpoint in `out` if there is one."""
        self.out = out
        with (
            Guard(self.how_to_resume) as self.guard,
            cluster.exit_if_peer_lost(self.how_to_resume),
            self.open_checkpoints() as self.checkpoints,
            self.open_trackers() as self.trackers,
        ):
            state = self.create_state()
            self.count = parameter_count(state.params)
            self.console.print(self.headline())
            state = self.resume(state)
            self.trackers.begin(self.config, self.history)
            try:
                for stage in self.stages:
                    state = self.train(state, stage)
            except DivergenceError as error:
                self.wait_for_save()
                step = self.saved_step()
                kept = f"; the checkpoint of step {step} is kept in {out}" if step else ""
                raise DivergenceError(f"{error}{kept}") from None
            if self.wait_for_save():  # try once more
                self.save(state)
            if failure := self.wait_for_save():
                raise InputError(
                    f"the state after the last epoch cannot be saved in {out} ({failure}): free "
                    f"some space there{self.how_to_resume()}"
                )
            if self.is_main_process:
                self.finish(jax.tree.map(np.asarray, state.eval_params))

    def open_checkpoints(self) -> AbstractContextManager[Checkpoints | None]:
        if not self.is_main_process:
            return nullcontext()
        return Checkpoints(self.out / "checkpoints", keep=self.arguments.keep)

    def open_trackers(self) -> trackers.Trackers:
        out = self.out if self.is_main_process else None
        flags = self.arguments
        return trackers.Trackers(flags.tensorboard, flags.wandb, out, self.console)

    def headline(self) -> str:
        """The line that is printed first: network, noise, data and devices."""
        config, device = self.config, self.devices[0]
        kind = device.device_kind if device.platform != "cpu" else platform.machine()
        if device.platform == "cpu" and not kernels.available():
            kind += ", slower because there is no C++ compiler"
        return (
            f"{config.recipe}: {config.architecture}, {self.count:,} parameters; "
            f"{self.task}; {len(self.dataset.train):,} images of {self.dataset.name}; "
            f"{len(self.devices)} x {device.platform} ({kind}); into {self.out}"
        )

    # Checkpoints

    def wait_for_save(self) -> str | None:
        """Waits until the last save has ended. Returns the reason if it failed."""
        if self.checkpoints is None:
            return None
        self.checkpoints.wait()
        return self.checkpoints.failure

    def saved_step(self) -> int | None:
        """The step of the newest checkpoint in the folder."""
        names = [path.name for path in self.out.glob("checkpoints/*")]
        return max((int(name) for name in names if name.isdigit()), default=None)

    def how_to_resume(self) -> str:
        """Says which checkpoint is kept, and how to continue from it."""
        command = f"{program('run')} --resume {self.out}"
        if not self.is_main_process:
            return f"; process 0 keeps the checkpoints: {command}"
        step = self.saved_step()
        if step is None:
            return f"; nothing was saved, and {self.out} can be deleted"
        return f"; the checkpoint of step {step} is kept: {command}"

    def check_same_run(self, meta: dict[str, Any]) -> None:
        """Raises a `ValueError` if a checkpoint has another configuration or other data."""
        meta = {**meta, "config": upgraded(meta["config"])}
        for name, value in self.identity.items():
            if meta[name] != value:
                raise ValueError(f"it was made with another {IDENTITY[name]}")

    def resume(self, state: TrainState) -> TrainState:
        """Restores the state and the history from the newest good checkpoint.

        Args:
          state: a fresh state, which is returned if there is no checkpoint.
        """
        meta = None
        if self.checkpoints and (restored := self.checkpoints.restore(state, self.check_same_run)):
            for step, reason in restored.skipped:
                self.console.print(f"skipped the checkpoint of step {step}: {reason}")
            state, meta = restored.state, restored.meta
        if jax.process_count() > 1:
            state, meta = cluster.broadcast_state(state, meta)
        if meta is None:
            return state
        self.csv = meta["history"]
        self.history = folder.parse_history(self.csv)
        self.part = Part(**meta["part"])
        self.compile_seconds = meta["compile_seconds"]
        steps = f" and {len(self.part.losses)} steps" if self.part.losses else ""
        self.console.print(f"resumed after epoch {len(self.history)}{steps}")
        return state

    def save(self, state: TrainState, loss: float = float("inf")) -> None:
        """Saves the state and the history.

        A failure is only printed: training continues, and the next epoch may find more space.
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
            # The rows must be on disk before the checkpoint that counts on them.
            if self.csv:
                write_whole(self.out / "metrics.csv", self.csv)
        except OSError as error:
            self.console.print(f"warning: metrics.csv cannot be written ({error.strerror})")
        self.checkpoints.save(int(state.step), state, meta, loss=loss)
        if self.checkpoints.failure and self.checkpoints.failure != before:
            self.console.print(
                f"warning: a checkpoint cannot be saved ({self.checkpoints.failure}): free some "
                "space; training continues without it"
            )

    # Training

    def train(self, state: TrainState, stage: Stage) -> TrainState:
        """Trains the epochs of a stage that are not in the history yet."""
        done, taken = len(self.history), len(self.part.losses)
        if done >= stage.epochs.stop:
            return state
        with self.guard.deferred(), self.bar(range(done, stage.epochs.stop)) as show:
            if taken == self.steps_per_epoch:  # it was stopped between the last step and the test
                self.end_epoch(state, stage)
                done, taken = done + 1, 0
            for progress in self.chunks(state, stage, done, taken, self.arguments.debug):
                if self.start_seconds is None:
                    self.start_seconds = cli.running_seconds() - progress.seconds
                state = progress.state
                self.part.add(progress)
                self.compile_seconds += progress.compile_seconds
                show(progress)
                self.guard.signalled = cluster.any_signal(self.guard.signalled)
                if self.guard.signalled is not None:
                    self.save(state)
                    self.wait_for_save()
                    self.guard.stop()
                if progress.ended:
                    self.end_epoch(state, stage)
        return state

    def end_epoch(self, state: TrainState, stage: Stage) -> None:
        """Tests, adds a row to the history, saves and prints."""
        part, history = self.part, self.history
        if not self.is_main_process:
            self.history, self.part = [*history, {}], Part()
            return
        seconds = history[-1]["train_seconds"] if history else 0.0
        row = self.row(state, stage, part, len(history) + 1, seconds)
        self.csv += folder.format_row(row, header=not self.history)
        self.history, self.part = [*self.history, row], Part()
        # Losses of different stages do not compare: only the last stage has a best checkpoint.
        self.save(state, row["test_loss"] if stage is self.stages[-1] else float("inf"))
        self.trackers.epoch(row)
        epochs = stage.epochs.stop
        self.console.print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
            f"train {self.config.loss} {row['train_loss']:.5f}  "
            f"test {self.config.loss} {row['test_loss']:.5f}  "
            f"psnr {row['test_psnr']:.2f} dB  ssim {row['test_ssim']:.3f}  "
            f"{row['images_per_second']:,.0f} images/s"
        )

    @contextmanager
    def bar(self, epochs: range) -> Iterator[Callable[[Progress], None]]:
        """A progress bar, and the function that moves it."""
        images = len(epochs) * self.steps_per_epoch * self.config.batch_size
        first = {"description": f"epoch {epochs.start + 1}/{epochs.stop}", "status": "compiling"}
        with progress_bar(images, self.arguments.progress, self.console, **first) as change:

            def show(progress: Progress) -> None:
                speed = progress.images / progress.seconds
                change(
                    advance=progress.images,
                    description=f"epoch {progress.epoch + 1}/{epochs.stop}",
                    status=f"loss {progress.losses.mean():.5f}  {speed:,.0f} images/s",
                )

            yield show

    # The end

    def finish(self, params: Any) -> None:
        """Evaluates, and writes the network, the figures, the report and at last the summary."""
        config, out = self.config, self.out
        test, errors = self.evaluate(params)
        last = self.history[-1]
        images = len(self.history) * self.steps_per_epoch * config.batch_size
        device = self.devices[0]
        packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
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
                **{name: version(name) for name in packages},
            },
        }
        for row in test.values():  # an image that is restored exactly has an infinite PSNR
            row.update({name: None for name, value in row.items() if not np.isfinite(value)})
        about = {
            "about": f"Removes {self.task} from images of {config.dataset}.",
            "recipe": {name: x for name, x in asdict(config).items() if x is not None},
            "results": {"tested_on": f"the {self.tested.lower()} images", **test},
            "versions": summary["versions"],
        }
        pretrained.save(NAME, self.model, params, about, out)
        if self.show is not None and (self.arguments.figures or self.trackers.all):
            self.show(self, params, summary, errors, out)
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        write_whole(out / "summary.json", text)
        started = f", first step after {self.start_seconds:.1f} s" if self.start_seconds else ""
        self.console.print(
            f"{last['train_seconds']:.1f} s training ({summary['images_per_second']:,.0f} "
            f"images/s), {self.compile_seconds:.1f} s compiling{started}; results in {out}/"
        )

    def evaluate(self, params: Any) -> tuple[Results, np.ndarray | None]:
        """Evaluates at each noise level, or under the run's corruption, and prints the table.

        Returns:
          The metrics, and the mean squared error of each image under the run's own corruption, if
          that is among them.
        """
        own = str(self.task)
        if self.by_sigma is None:
            each = {own: self.stages[-1].test(params)}
        else:
            sigmas = self.config.eval_sigmas
            if len(self.config.sigma) == 1:
                own = str(float(self.config.sigma[0]))
                sigmas = tuple(sorted({*sigmas, self.config.sigma[0]}))
            evaluator: Evaluator = self.by_sigma
            # The digit classifier was trained on the images that are held out for validation.
            if self.config.dataset == "mnist" and not self.config.validation_images:
                evaluator = self.evaluator(self.at_sigma, labels=self.dataset.test.labels)
            each = {str(float(sigma)): evaluator.per_image(params, sigma) for sigma in sigmas}
        rows = {label: folder.rename_accuracy(means(values)) for label, values in each.items()}
        table = Table(
            "sigma" if self.by_sigma else "corruption", title=f"{self.tested} images, restored"
        )
        styles = {"mse": "{:.5f}", "psnr": "{:.2f} dB", "ssim": "{:.4f}", "bce": "{:.4f}"}
        if self.model.output != "sigmoid":
            del styles["bce"]
        if "accuracy" in next(iter(rows.values())):
            styles["accuracy"] = "{:.2%}"
        for name in styles:
            table.add_column(name, justify="right")
        for label, row in rows.items():
            table.add_row(label, *(style.format(row[name]) for name, style in styles.items()))
        self.console.print(table)
        return rows, each[own]["mse"] if own in each else None


# (experiment, params, summary, error of each test image or None, folder)
Show = Callable[[Experiment, Any, Mapping[str, Any], np.ndarray | None, Path], None]
