"""A configuration, built and trained: what a notebook and `experiments.run` share.

    config = jaxdae.recipe("default", sigma=0.5, epochs=2)
    for epoch in jaxdae.train(config):
        print(epoch.number, epoch.metrics["test_mse"])
    denoised = jaxdae.denoise(epoch.model, epoch.params, noisy)

Each part that the configuration names can be given as an object instead: a network, a corruption,
an objective, a loss, an optimiser. Nothing is written to disk, and nothing is printed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxdae import corruption as corruptions
from jaxdae import data, train_step, training
from jaxdae.config import Config
from jaxdae.corruption import Corruption
from jaxdae.errors import DivergenceError, InputError
from jaxdae.evaluation import METRICS, Evaluator, Task, means
from jaxdae.from_config import (
    check,
    examples_of,
    first_images,
    has_sigma,
    hold_out,
    make_corruption,
    make_initial,
    make_model,
    make_teacher,
    with_patches,
)
from jaxdae.losses import LOSSES, Loss
from jaxdae.model import Denoiser
from jaxdae.objectives import Objective, Paired, Supervised, as_objective
from jaxdae.optimizers import make_optimizer, make_schedule
from jaxdae.train_step import Params, TrainState
from jaxdae.training import AXIS, Progress

Test = Callable[[Any], dict[str, np.ndarray]]


class Epoch(NamedTuple):
    """What `train` yields after each epoch.

    Fields:
      number: from 1.
      metrics: "train_loss"; on the test images "test_loss", "test_mse", "test_psnr" (dB),
        "test_ssim" and "test_bce" (nats); "learning_rate", unless you gave the optimiser;
        "step", "train_seconds" (since the first epoch, without compilation), "images_per_second".
      model: the network.
      params: its parameters, to evaluate and keep: the average where the configuration has one.
      state: all that training changes. The next epoch reuses its memory: copy what should stay.
    """

    number: int
    metrics: dict[str, float]
    model: Denoiser
    params: Params
    state: TrainState


def train(
    config: Config,
    dataset: data.Dataset | str | None = None,
    *,
    model: Denoiser | None = None,
    corruption: Corruption | None = None,
    objective: Objective | None = None,
    loss: Loss | None = None,
    optimizer: optax.GradientTransformation | None = None,
    callbacks: Sequence[Callable[[Epoch], Any]] = (),
) -> Iterator[Epoch]:
    """Trains a configuration, epoch by epoch: iterate over it, and stop when you like.

    Args:
      config: from `jaxdae.recipe`. All checks are made before this returns.
      dataset: a data set, or its name, instead of `config.dataset`.
      model: your own network, instead of the configuration's: a subclass of
        `jaxdae.model.Denoiser` with `forward`.
      corruption: your own corruption: `Corruption("name", function of (key, image))`.
      objective: your own objective, see `jaxdae.objectives`, instead of corruption and loss.
      loss: your own loss: (outputs, clean images) to a number for each image.
      optimizer: your own optax transformation, instead of the optimiser and its schedule.
      callbacks: called with each epoch before it is yielded.

    Yields:
      An `Epoch` after each.

    Raises:
      InputError: a value that cannot be.
      DivergenceError: a loss is not finite.
    """
    trainer = Trainer(
        config,
        dataset,
        model=model,
        corruption=corruption,
        objective=objective,
        loss=loss,
        optimizer=optimizer,
    )

    def epochs() -> Iterator[Epoch]:
        for epoch in trainer.epochs():
            for callback in callbacks:
                callback(epoch)
            yield epoch

    return epochs()


class Stage(NamedTuple):
    """Epochs that share an objective and an optimiser's state.

    Fields:
      epochs: their numbers, from 0 over the whole run.
      objective: what is learnt.
      test: parameters to each metric of each test image, float64 (n,).
    """

    epochs: range
    objective: Objective
    test: Test


@dataclass
class Part:
    """The current epoch so far: the losses of its steps, its time, the number of images."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    images: int = 0

    def add(self, progress: Progress) -> None:
        self.losses += progress.losses.tolist()
        self.seconds += progress.seconds
        self.images += progress.images


class Trainer:
    """A configuration's parts, built and checked at construction, before any work starts.

    Args: as `train`.

    Attributes:
      config, dataset, model, loss, teacher, devices: what is trained, on what.
      task: the corruption that is undone, or the objective.
      stages: the epochs, in parts that share an objective.
      by_sigma: the evaluator at any sigma; None if the task has no sigma.
      evaluator: makes an `Evaluator` of the test images from a function of the strength.
      steps_per_epoch: the number of steps in an epoch.

    Raises:
      InputError: a value cannot be used; one line says why.
    """

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset | str | None = None,
        *,
        model: Denoiser | None = None,
        corruption: Corruption | None = None,
        objective: Objective | None = None,
        loss: Loss | None = None,
        optimizer: optax.GradientTransformation | None = None,
    ) -> None:
        check(config)
        if objective is not None and (corruption or loss):
            raise InputError(
                "an objective has a corruption and a loss of its own: give it alone, or without "
                "an objective the other two"
            )
        self.own_task: Task | None = objective or corruption
        self.own_optimizer = optimizer
        if self.own_task is None:
            make_corruption(config)  # a bad strength is reported before the data is read
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
        if not isinstance(dataset, data.Dataset):
            dataset = data.load(dataset or config.dataset, crop=config.crop, gray=config.gray)
        dataset = with_patches(dataset, config)
        if config.validation_images:
            dataset = hold_out(dataset, config.validation_images)
        self.dataset = replace(
            dataset,
            train=first_images(dataset.train, config.train_images, "train-images"),
            test=first_images(dataset.test, config.test_images, "test-images"),
        )
        self.loss = LOSSES[config.loss] if loss is None else loss
        self.task = self.at_sigma(None)
        self.teacher, self.teacher_sha256 = make_teacher(config, dataset)
        devices, examples = len(self.devices), len(self.dataset.train)
        training.share_batch(config.batch_size, devices, examples, config.microbatches)
        channels = getattr(self.task, "out_channels", None) or dataset.image_shape[2]
        self.model = self._fitting(model, channels) or make_model(config, dataset, channels)
        self.initial = make_initial(config, self.model)
        self.steps_per_epoch = len(self.dataset.train) // config.batch_size

        own = [device for device in self.devices if device.process_index == jax.process_index()]
        self.evaluator = make = partial(
            Evaluator,
            self.model,
            images=examples_of(self.dataset.test),
            devices=own,
            losses={"loss": self.loss} if loss or config.loss not in METRICS else {},
        )
        self.by_sigma = make(self.at_sigma) if self.own_task is None and has_sigma(config) else None
        test: Test
        if self.by_sigma is not None and len(config.sigma) == 1:
            test = partial(self.by_sigma.per_image, strength=config.sigma[0])
        else:
            test = make(lambda _: self.task).per_image
        border, last = config.clean_epochs, config.clean_epochs + config.epochs
        self.stages = [Stage(range(border, last), self.objective(self.task), test)]
        plain = isinstance(self.task, Corruption) and self.task.out_channels is None
        if border and not plain:
            raise InputError(
                f"--clean-epochs {border} cannot go with {self.task}, whose input is not a "
                "corrupted image of the same channels: leave it out"
            )
        if border:
            clean = corruptions.identity()
            test = make(lambda _: clean).per_image
            self.stages.insert(0, Stage(range(border), self.objective(clean), test))

    def at_sigma(self, sigma: Any) -> Task:
        """The corruption that is undone, at another sigma if given; or the objective."""
        if self.own_task is not None:
            return self.own_task
        name, dataset = self.config.objective, self.dataset
        if name == "paired" and dataset.train.noisy is None:
            raise InputError(
                f"--objective paired needs pairs of noisy and clean images, and {dataset.name} "
                "has none: give --dataset pairs:NOISY_DIR,CLEAN_DIR"
            )
        if dataset.train.noisy is not None and name != "paired":
            raise InputError(
                f"--objective {name} cannot go with {dataset.name}, which holds noisy images "
                "already: give --objective paired"
            )
        if name == "paired":
            return Paired(self.loss)
        return make_corruption(self.config, sigma)

    def objective(self, task: Task) -> Objective:
        """What is learnt: to undo a corruption, or an objective as it is."""
        if isinstance(task, Corruption):
            return Supervised(task, self.loss, self.teacher, self.model.estimates)
        if isinstance(task, Paired):
            return replace(task, estimates=self.model.estimates)
        return as_objective(task)

    def _fitting(self, model: Denoiser | None, channels: int) -> Denoiser | None:
        """The caller's own network, if it fits the images."""
        if model is None:
            return None
        if not isinstance(model, Denoiser):
            what = type(model).__name__ if isinstance(model, nn.Module) else repr(model)
            raise InputError(
                f"model {what} must be a jaxdae.model.Denoiser: subclass it, with `forward` from "
                "images to the output before its nonlinearity"
            )
        *size, outputs = self.dataset.image_shape
        if model.image_size is not None and list(model.image_size) != size:
            raise InputError(
                f"model {type(model).__name__} takes images of {tuple(model.image_size)}, and "
                f"those of {self.dataset.name} have {tuple(size)}: build it with "
                f"image_size={tuple(size)}"
            )
        if (model.channels, model.outputs) != (channels, outputs):
            raise InputError(
                f"model {type(model).__name__} has {model.channels} channels in and "
                f"{model.outputs} out, and {self.dataset.name} needs {channels} and {outputs}: "
                f"build it with channels={channels}, out_channels={outputs}"
            )
        return model

    def create_state(self) -> TrainState:
        """A fresh state, its parameters drawn from the configuration's seed."""
        ema = self.config.ema_decay is not None
        optimizer, _ = self.optimizer(self.stages[0])
        return train_step.create_state(
            self.model, optimizer, self.config.seed, ema=ema, params=self.initial
        )

    def optimizer(self, stage: Stage) -> tuple[optax.GradientTransformation, optax.Schedule | None]:
        """The optimiser and the schedule of a stage; the schedule's steps count from its start.

        The caller's own optimiser has no schedule.
        """
        if self.own_optimizer is not None:
            return self.own_optimizer, None
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

    def rate(self, stage: Stage) -> Callable[[int], float] | None:
        """A function from a step of the run to the learning rate, in a stage."""
        begin, (_, schedule) = stage.epochs.start * self.steps_per_epoch, self.optimizer(stage)
        return schedule and (lambda step: float(schedule(step - begin)))

    def chunks(
        self, state: TrainState, stage: Stage, done: int = 0, taken: int = 0, debug: bool = False
    ) -> Iterator[Progress]:
        """Trains the epochs of a stage, chunk by chunk.

        Args:
          state: where to begin.
          done: the epochs of the run that are done already.
          taken: the steps of the next epoch that are done, too.
          debug: see `training.train`.
        """
        config, epochs = self.config, range(max(done, stage.epochs.start), stage.epochs.stop)
        optimizer, _ = self.optimizer(stage)
        if epochs == stage.epochs and not taken:
            state = state.replace(opt_state=jax.jit(optimizer.init)(state.params))
        make_step = partial(
            train_step.make_train_step,
            self.model,
            stage.objective,
            optimizer,
            ema_decay=config.ema_decay,
            microbatches=config.microbatches,
        )
        return training.train(
            make_step(axis_name=AXIS),
            state,
            examples_of(self.dataset.train),
            seed=config.seed,
            epochs=epochs,
            batch_size=config.batch_size,
            taken=taken,
            fixed_noise=config.noise == "fixed",
            devices=self.devices,
            learning_rate=self.rate(stage),
            debug=make_step() if debug else None,
        )

    def row(
        self, state: TrainState, stage: Stage, part: Part, number: int, seconds: float
    ) -> dict[str, float]:
        """Tests after an epoch, and returns its metrics: a row of the history.

        Args:
          part: the epoch.
          number: the epoch's number, from 1.
          seconds: the training time before it.

        Raises:
          DivergenceError: the test loss is not finite.
        """
        metrics = means(stage.test(state.eval_params))
        step, rate = int(state.step), self.rate(stage)
        row = {
            "epoch": number,
            "step": step,
            "train_loss": float(np.mean(part.losses)),
            "test_loss": metrics["loss" if "loss" in metrics else self.config.loss],
            **{f"test_{name}": value for name, value in metrics.items() if name != "loss"},
        }
        at = ""
        if rate is not None:
            scale = float(optax.tree_utils.tree_get(state.opt_state, "scale", 1.0))
            row["learning_rate"] = rate(step - 1) * scale
            at = f" at learning rate {row['learning_rate']:.3g}"
        row["train_seconds"] = seconds + part.seconds
        row["images_per_second"] = part.images / part.seconds
        if not np.isfinite(row["test_loss"]):
            raise DivergenceError(
                f"the test loss is {row['test_loss']} after step {step}{at}: lower the learning "
                "rate"
            )
        return row

    def epochs(self) -> Iterator[Epoch]:
        """Trains from fresh parameters to the end of the configuration."""
        state, number, seconds = self.create_state(), 0, 0.0
        for stage in self.stages:
            part = Part()
            for progress in self.chunks(state, stage):
                state = progress.state
                part.add(progress)
                if progress.ended:
                    number += 1
                    row = self.row(state, stage, part, number, seconds)
                    params = jax.tree.map(jnp.copy, state.eval_params)
                    yield Epoch(number, row, self.model, params, state)
                    seconds, part = row["train_seconds"], Part()
