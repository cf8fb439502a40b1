"""A run from its configuration to its last figure: calls to `jaxdae`, files out."""

import csv
import io
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import jaxdae
from jaxdae import corruption as corruptions
from jaxdae import data, pretrained, training
from jaxdae.checkpoint import Checkpoints
from jaxdae.corruption import Corruption
from jaxdae.digest import tree_sha256
from jaxdae.errors import DivergenceError, InputError
from jaxdae.evaluation import Evaluator
from jaxdae.losses import LOSSES
from jaxdae.model import Denoiser, build, parameter_count
from jaxdae.optimizers import make_optimizer, make_schedule
from jaxdae.recipes import Config
from jaxdae.training import AXIS, TrainState
from jaxdae.training import Progress as TrainingProgress

from . import cli, cluster, program, report, trackers
from .guard import Guard, locked
from .models import NAME

if TYPE_CHECKING:
    from .run import Arguments

NOISE_LEVELS = ("gaussian", "speckle")  # corruptions that have a sigma
# What a checkpoint must agree with to go on from it, as it is called when it does not.
IDENTITY = {"config": "configuration", "data_sha256": "data set", "teacher_sha256": "teacher"}
Results = dict[str, dict[str, Any]]  # the metrics at each noise level
Test = Callable[[Any], dict[str, float]]


def run(arguments: "Arguments") -> None:
    """Trains, or resumes, and writes everything; see `experiments.run`."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    out = arguments.resume
    if out is not None and (out / "summary.json").exists():
        console.print(f"The run in {out} is finished: its result is in {out}/summary.json.")
        return
    experiment = Experiment(arguments, console)
    out = out or _choose(arguments.out, experiment.config)
    if not experiment.leads:
        experiment.go(out)
        return
    with _folder(out):
        if arguments.resume is None:
            _claim(out, experiment.config)
        experiment.go(out)


class Stage(NamedTuple):
    """Epochs that share a corruption and an optimiser's state.

    Fields:
      epochs: their numbers, from 0 over the whole run.
      corruption: what the images are trained under.
      test: parameters to the metrics of the test images under it.
    """

    epochs: range
    corruption: Corruption
    test: Test


@dataclass
class Part:
    """What there is of the epoch under way: the losses of its steps, the time, the images."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    images: int = 0

    def add(self, progress: TrainingProgress) -> None:
        self.losses += progress.losses.tolist()
        self.seconds += progress.seconds
        self.images += progress.images


class Experiment:
    """A run: everything checked and built at construction, before any work starts.

    Raises:
      InputError: a value that cannot be, said in one line.
    """

    def __init__(self, arguments: "Arguments", console: Console) -> None:
        config = arguments.config
        self.arguments, self.console = arguments, console
        # Of several processes the first alone tests, writes and speaks.
        self.leads = jax.process_index() == 0
        console.quiet = console.quiet or not self.leads
        _check(config)
        if arguments.keep < 1:
            raise InputError(f"keep={arguments.keep} checkpoints must be at least 1")
        if self.leads:
            trackers.check(arguments.tensorboard, arguments.wandb)
        self.corruption = make_corruption(config)
        self.devices = jax.devices()[: config.devices]
        self.config = config = replace(config, devices=config.devices or len(self.devices))
        if len(self.devices) < (config.devices or 1):
            raise InputError(
                f"--devices {config.devices} exceeds the {len(self.devices)} here: "
                f"choose at most {len(self.devices)}"
            )
        if jax.process_count() > 1 and config.devices != jax.device_count():
            raise InputError(
                f"--devices {config.devices} must be the {jax.device_count()} of all processes: "
                "leave it out"
            )
        dataset = data.load(config.dataset)
        if config.validation_images:
            dataset = _hold_out(dataset, config.validation_images)
        self.dataset = data.Dataset(
            dataset.name,
            _first(dataset.train, config.train_images, "train-images"),
            _first(dataset.test, config.test_images, "test-images"),
        )
        self.teacher, digest = make_teacher(config, self.dataset.image_shape)
        # The devices may be others than a checkpoint's: the result is the same, to rounding.
        splits = (self.dataset.train.images, self.dataset.test.images)
        self.identity = {
            "config": json.loads(json.dumps(asdict(replace(config, devices=None)))),
            "data_sha256": tree_sha256(splits),
            "teacher_sha256": digest,
        }
        devices, examples = len(self.devices), len(self.dataset.train)
        training.share_batch(config.batch_size, devices, examples, config.microbatches)
        self.model = make_model(config, dataset.image_shape, self.corruption)
        self.steps_per_epoch = len(self.dataset.train) // config.batch_size

        own = [device for device in self.devices if device.process_index == jax.process_index()]
        test_images = self.dataset.test.images
        self.evaluator = make = partial(Evaluator, self.model, images=test_images, devices=own)
        self.by_sigma = make(self.at_sigma) if config.corruption in NOISE_LEVELS else None
        test: Test
        if self.by_sigma is not None and len(config.sigma) == 1:
            test = partial(self.by_sigma, strength=config.sigma[0])
        else:
            test = make(lambda _: self.corruption)
        border, last = config.clean_epochs, config.clean_epochs + config.epochs
        self.stages = [Stage(range(border, last), self.corruption, test)]
        if border and self.corruption.out_channels:
            raise InputError(
                f"--clean-epochs {border} cannot go with {self.corruption}, which changes the "
                "number of channels: leave it out"
            )
        if border:
            clean = corruptions.identity()
            self.stages.insert(0, Stage(range(border), clean, make(lambda _: clean)))

        self.tested = "Validation" if config.validation_images else "Test"
        self.history: list[dict[str, float]] = []
        self.csv = ""  # the same, as metrics.csv: to a checkpoint, text is cheap, however long
        self.part = Part()
        self.compile_seconds = 0.0
        self.start_seconds: float | None = None  # from the process's start to its first step

    def go(self, out: Path) -> None:
        """Trains from where the checkpoints in `out` are to the end."""
        config = self.config
        self.out = out
        with (
            Guard(self.last_words) as self.guard,
            cluster.together(self.last_words),
            self.opened(out) as self.checkpoints,
            self.followed(out) as self.trackers,
        ):
            state = training.create_state(
                self.model,
                self.optimizer(self.stages[0])[0],
                config.seed,
                ema=config.ema_decay is not None,
            )
            self.count = parameter_count(state.params)
            self.console.print(self.headline(out))
            state = self.take_up(state)
            self.trackers.begin(config, self.history)
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
            f"{len(self.devices)} x {device.platform} ({kind}); into {out}"
        )

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

    def optimizer(self, stage: Stage) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The optimiser and the schedule of a stage, whose steps count from its beginning."""
        config = self.config
        steps = len(stage.epochs) * self.steps_per_epoch
        schedule = make_schedule(config.schedule, config.learning_rate, steps)
        optimizer = make_optimizer(
            config.optimizer,
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            centering=config.centering,
            plateau_steps=self.steps_per_epoch if config.schedule == "plateau" else None,
        )
        return optimizer, schedule

    def at_sigma(self, sigma: Any) -> Corruption:
        return make_corruption(self.config, sigma)

    def train(self, state: TrainState, stage: Stage) -> TrainState:
        """Trains the epochs of a stage that the history does not hold yet."""
        config = self.config
        optimizer, schedule = self.optimizer(stage)
        begin = stage.epochs.start * self.steps_per_epoch
        epochs = range(max(len(self.history), stage.epochs.start), stage.epochs.stop)
        if not epochs:
            return state
        taken = len(self.part.losses)
        if epochs == stage.epochs and not taken:
            state = state.replace(opt_state=optimizer.init(state.params))
        make_step = partial(
            training.make_train_step,
            self.model,
            stage.corruption,
            LOSSES[config.loss],
            optimizer,
            teacher=self.teacher,
            ema_decay=config.ema_decay,
            microbatches=config.microbatches,
        )

        def rate(step: int) -> float:
            return float(schedule(step - begin))

        with self.guard.holding(), self.bar(epochs) as show:
            if taken == self.steps_per_epoch:  # stopped between its last step and its test
                self.end_epoch(state, stage, rate)
                epochs, taken = epochs[1:], 0
            for progress in training.train(
                make_step(axis_name=AXIS),
                state,
                self.dataset.train.images,
                seed=config.seed,
                epochs=epochs,
                batch_size=config.batch_size,
                taken=taken,
                fixed_noise=config.noise == "fixed",
                devices=self.devices,
                learning_rate=rate,
                debug=make_step() if self.arguments.debug else None,
            ):
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
                    self.end_epoch(state, stage, rate)
        return state

    def end_epoch(self, state: TrainState, stage: Stage, rate: Callable[[int], float]) -> None:
        """Tests, and saves with the epoch's row in the history."""
        config, part = self.config, self.part
        if not self.leads:
            self.history, self.part = [*self.history, {}], Part()
            return
        metrics = stage.test(state.eval_params)
        step = int(state.step)
        scale = float(optax.tree_utils.tree_get(state.opt_state, "scale", 1.0))
        row = {
            "epoch": len(self.history) + 1,
            "step": step,
            "train_loss": float(np.mean(part.losses)),
            "test_loss": metrics[config.loss],
            **{f"test_{name}": value for name, value in metrics.items()},
            "learning_rate": rate(step - 1) * scale,
            "train_seconds": part.seconds
            + (self.history[-1]["train_seconds"] if self.history else 0.0),
            "images_per_second": part.images / part.seconds,
        }
        if not np.isfinite(row["test_loss"]):
            raise DivergenceError(
                f"the test loss is {row['test_loss']} after step {step} at learning rate "
                f"{row['learning_rate']:.3g}: lower the learning rate"
            )
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
        test = self.closing_table(params)
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
        report.finish(self, params, summary, out)
        began = f", begun after {self.start_seconds:.1f} s" if self.start_seconds else ""
        about = {
            "about": f"Removes {self.corruption} from images of {config.dataset}.",
            "recipe": {name: x for name, x in asdict(config).items() if x is not None},
            "results": {"tested_on": f"the {self.tested.lower()} images", **test},
            "versions": summary["versions"],
        }
        pretrained.save(NAME, self.model, params, about, out)
        write_text(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        self.console.print(
            f"{last['train_seconds']:.1f} s training ({summary['images_per_second']:,.0f} "
            f"images/s), {self.compile_seconds:.1f} s compiling{began}; all in {out}/"
        )

    def closing_table(self, params: Any) -> Results:
        """Evaluates at each noise level (or under the run's corruption), and prints the table."""
        if self.by_sigma is None:
            rows = {str(self.corruption): self.stages[-1].test(params)}
        else:
            sigmas = self.config.eval_sigmas
            if len(self.config.sigma) == 1:
                sigmas = tuple(sorted({*sigmas, self.config.sigma[0]}))
            evaluate = self.by_sigma
            # The classifier that reads them has seen the images that are held out.
            if self.config.dataset == "mnist" and not self.config.validation_images:
                evaluate = self.evaluator(self.at_sigma, labels=self.dataset.test.labels)
            rows = {str(float(sigma)): evaluate(params, sigma) for sigma in sigmas}
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
        return rows


def make_corruption(config: Config, sigma: Any = None) -> Corruption:
    """The configuration's corruption, at another sigma if given."""

    def one_or_range(values: tuple[float, ...], flag: str) -> Any:
        if len(values) not in (1, 2):
            raise InputError(f"--{flag} takes one number or two, and got {len(values)}")
        return values[0] if len(values) == 1 else values

    if config.corruption == "gaussian":
        sigma = one_or_range(config.sigma, "sigma") if sigma is None else sigma
        return corruptions.gaussian(sigma, config.mean)
    if config.corruption == "speckle":
        sigma = one_or_range(config.sigma, "sigma") if sigma is None else sigma
        return corruptions.speckle(sigma)
    if config.corruption in ("masking", "salt_and_pepper", "poisson"):
        strength = one_or_range(config.strength, "strength")
        return getattr(corruptions, config.corruption)(strength)
    return getattr(corruptions, config.corruption)()


def make_model(config: Config, shape: tuple[int, int, int], corruption: Corruption) -> Denoiser:
    """The configuration's network, for images of a shape."""
    height, width, channels = shape
    if config.corruption == "grayscale" and channels != 3:
        raise InputError(
            f"the grayscale corruption needs images in colour, and {config.dataset} has "
            f"{channels} channel{'s' * (channels != 1)}: choose another --dataset"
        )
    fields_: dict[str, Any] = {
        "image_shape": (height, width, corruption.out_channels or channels),
        "out_channels": channels,
        "features": config.features,
        "dtype": jnp.dtype(config.dtype),
    }
    if config.architecture == "maxpool":
        fields_["upsampling"] = config.upsampling
    elif config.architecture != "unet":
        fields_["latent_dim"] = config.latent_dim
    return build(config.architecture, **fields_)


def make_teacher(
    config: Config, shape: tuple[int, int, int]
) -> tuple[Callable[[Array], Array] | None, str | None]:
    """The pretrained network to learn from, and the SHA-256 of its parameters.

    Raises:
      InputError: there is none of that name, or it does not suit the images or their noise.
    """
    if config.teacher is None:
        return None, None
    model, params = pretrained.load(config.teacher)
    if not isinstance(model, Denoiser):
        raise InputError(f"--teacher {config.teacher} restores no images: choose another, as unet")
    if model.image_shape != shape:
        raise InputError(
            f"--teacher {config.teacher} restores images of shape {model.image_shape}, and those "
            f"of {config.dataset} have {shape}: leave it out"
        )
    if config.corruption != "gaussian" or config.mean != 0.5 or config.clean_epochs:
        raise InputError(
            f"--teacher {config.teacher} knows gaussian noise of mean 0.5 only: leave out "
            "--corruption, --mean and --clean-epochs, or the teacher"
        )

    def teacher(images: Array) -> Array:
        return cast(Array, model.apply({"params": params}, images))

    return teacher, tree_sha256(params)


def _check(config: Config) -> None:
    """The rules that no later constructor knows."""
    for name, low in [("epochs", 1), ("clean_epochs", 0), ("batch_size", 1), ("seed", 0)]:
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


def _hold_out(dataset: data.Dataset, count: int) -> data.Dataset:
    """The data set with the last of its training images in the place of the test images."""
    train = dataset.train
    if not 0 < count < len(train):
        raise InputError(
            f"--validation-images {count} must be between 0 and {len(train) - 1}: some of the "
            f"{len(train)} training images must be left"
        )

    def part(which: slice) -> data.Split:
        return data.Split(
            train.images[which], None if train.labels is None else train.labels[which]
        )

    return data.Dataset(dataset.name, part(slice(-count)), part(slice(-count, None)))


def _first(split: data.Split, count: int | None, flag: str) -> data.Split:
    if count is None:
        return split
    if not 1 <= count <= len(split):
        raise InputError(f"--{flag} {count} must be between 1 and the {len(split)} there are")
    labels = None if split.labels is None else split.labels[:count]
    return data.Split(split.images[:count], labels)


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
