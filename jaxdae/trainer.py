"""A configuration put together and trained: what a notebook and `experiments.run` share.

    config = jaxdae.recipe("default", sigma=0.5, epochs=2)
    for epoch in jaxdae.train(config):
        print(epoch.number, epoch.metrics["test_mse"])
    denoised = jaxdae.denoise(epoch.model, epoch.params, noisy)

Whatever the configuration names may be given as an object instead: a Flax module of one's own, a
corruption, a loss, an optimiser. Nothing is written to disk, and nothing printed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array

from jaxdae import corruption as corruptions
from jaxdae import data, pretrained, train_step, training
from jaxdae.corruption import Corruption
from jaxdae.errors import DivergenceError, InputError
from jaxdae.evaluation import Evaluator, means
from jaxdae.files import tree_sha256
from jaxdae.losses import LOSSES, Loss
from jaxdae.model import Denoiser, build
from jaxdae.optimizers import make_optimizer, make_schedule
from jaxdae.recipes import Config
from jaxdae.train_step import Params, TrainState
from jaxdae.training import AXIS, Progress

NOISE_LEVELS = ("gaussian", "speckle")  # corruptions that have a sigma
Test = Callable[[Any], dict[str, np.ndarray]]


class Epoch(NamedTuple):
    """What `train` says after each epoch.

    Fields:
      number: from 1.
      metrics: "train_loss"; of the test images "test_loss", "test_mse", "test_psnr" (dB),
        "test_ssim" and "test_bce" (nats); "learning_rate", unless the optimiser is one's own;
        "step", "train_seconds" (since the first epoch, compilation apart), "images_per_second".
      model: the network.
      params: its parameters, to evaluate and keep: the average where the configuration has one.
      state: all that training changes; it is given away to the next epoch: copy what is to stay.
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
    loss: Loss | None = None,
    optimizer: optax.GradientTransformation | None = None,
    callbacks: Sequence[Callable[[Epoch], Any]] = (),
) -> Iterator[Epoch]:
    """Trains as a configuration says, epoch by epoch: iterate over it, and stop when you like.

    Args:
      config: from `jaxdae.recipe`; what is checked is checked before this returns.
      dataset: instead of `config.dataset`, images at hand or another name.
      model: instead of the configuration's architecture, a network of one's own: a subclass of
        `jaxdae.model.Denoiser` with `restore`, from images to logits.
      corruption: instead of the configuration's: `Corruption("name", function of (key, image))`.
      loss: instead of the configuration's: (logits, clean images) to a loss for each image.
      optimizer: instead of the configuration's, with its schedule: an optax transformation.
      callbacks: called with each epoch before it is yielded.

    Yields:
      An `Epoch` after each.

    Raises:
      InputError: a value that cannot be.
      DivergenceError: a loss is not finite.
    """
    trainer = Trainer(
        config, dataset, model=model, corruption=corruption, loss=loss, optimizer=optimizer
    )

    def epochs() -> Iterator[Epoch]:
        for epoch in trainer.epochs():
            for callback in callbacks:
                callback(epoch)
            yield epoch

    return epochs()


class Stage(NamedTuple):
    """Epochs that share a corruption and an optimiser's state.

    Fields:
      epochs: their numbers, from 0 over the whole run.
      corruption: what the images are trained under.
      test: parameters to each metric of each test image under it, float64 (n,).
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

    def add(self, progress: Progress) -> None:
        self.losses += progress.losses.tolist()
        self.seconds += progress.seconds
        self.images += progress.images


class Trainer:
    """A configuration's parts, built and checked at construction, before any work starts.

    Args: as `train`.

    Attributes:
      config, dataset, corruption, model, loss, teacher, devices: what is trained, on what.
      stages: the epochs, in parts that share a corruption.
      by_sigma: the evaluator at any sigma; None where the corruption has none.
      evaluator: makes an `Evaluator` of the test images from a corruption's maker.
      steps_per_epoch: how many.

    Raises:
      InputError: a value that cannot be, said in one line.
    """

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset | str | None = None,
        *,
        model: Denoiser | None = None,
        corruption: Corruption | None = None,
        loss: Loss | None = None,
        optimizer: optax.GradientTransformation | None = None,
    ) -> None:
        check(config)
        self.own_corruption, self.own_optimizer = corruption, optimizer
        if corruption is None and config.corruption != "paired":
            make_corruption(config)  # a strength that cannot be is told before the data is read
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
            dataset = data.load(dataset or config.dataset, crop=config.crop)
        if config.validation_images:
            dataset = _hold_out(dataset, config.validation_images)
        self.dataset = replace(
            dataset,
            train=_first(dataset.train, config.train_images, "train-images"),
            test=_first(dataset.test, config.test_images, "test-images"),
        )
        self.corruption = self.at_sigma(None)
        self.teacher, self.teacher_sha256 = make_teacher(config, dataset)
        devices, examples = len(self.devices), len(self.dataset.train)
        training.share_batch(config.batch_size, devices, examples, config.microbatches)
        self.loss = LOSSES[config.loss] if loss is None else loss
        self.model = self._fitting(model) or make_model(config, dataset, self.corruption)
        self.steps_per_epoch = len(self.dataset.train) // config.batch_size

        own = [device for device in self.devices if device.process_index == jax.process_index()]
        self.evaluator = make = partial(
            Evaluator,
            self.model,
            images=self.dataset.test.images,
            devices=own,
            losses={} if loss is None else {"loss": loss},
        )
        has_level = corruption is None and config.corruption in NOISE_LEVELS
        self.by_sigma = make(self.at_sigma) if has_level else None
        test: Test
        if self.by_sigma is not None and len(config.sigma) == 1:
            test = partial(self.by_sigma.per_image, strength=config.sigma[0])
        else:
            test = make(lambda _: self.corruption).per_image
        border, last = config.clean_epochs, config.clean_epochs + config.epochs
        self.stages = [Stage(range(border, last), self.corruption, test)]
        if border and (self.corruption.out_channels or self.corruption.clean):
            raise InputError(
                f"--clean-epochs {border} cannot go with {self.corruption}, whose images are "
                "of another kind than the clean ones: leave it out"
            )
        if border:
            clean = corruptions.identity()
            self.stages.insert(0, Stage(range(border), clean, make(lambda _: clean).per_image))

    def at_sigma(self, sigma: Any) -> Corruption:
        """The corruption, at another sigma if given."""
        if self.own_corruption is not None:
            return self.own_corruption
        paired, dataset = self.config.corruption == "paired", self.dataset
        if paired and not dataset.noisy_channels:
            raise InputError(
                f"--corruption paired needs pairs of noisy and clean images, and {dataset.name} "
                "has none: give --dataset pairs:NOISY_DIR,CLEAN_DIR"
            )
        if dataset.noisy_channels and not paired:
            raise InputError(
                f"--corruption {self.config.corruption} cannot go with {dataset.name}, whose "
                "images have their noise: --corruption paired"
            )
        if paired:
            return corruptions.paired(dataset.image_shape[2], dataset.noisy_channels)
        return make_corruption(self.config, sigma)

    def _fitting(self, model: Denoiser | None) -> Denoiser | None:
        """A network of one's own, if it suits the images."""
        if model is None:
            return None
        if not isinstance(model, Denoiser):
            what = type(model).__name__ if isinstance(model, nn.Module) else repr(model)
            raise InputError(
                f"model {what} must be a jaxdae.model.Denoiser: subclass it, with `restore` from "
                "images to logits"
            )
        height, width, channels = self.dataset.image_shape
        taken = (height, width, self.corruption.out_channels or channels)
        made = model.out_channels or model.image_shape[2]
        if tuple(model.image_shape) != taken or made != channels:
            raise InputError(
                f"model {type(model).__name__} takes images of shape {model.image_shape} and makes "
                f"{made} channels, but those of {self.dataset.name} are {taken} and have "
                f"{channels}: build it with image_shape={taken}, out_channels={channels}"
            )
        return model

    def create_state(self) -> TrainState:
        """A fresh state, its parameters drawn from the configuration's seed."""
        ema = self.config.ema_decay is not None
        optimizer, _ = self.optimizer(self.stages[0])
        return train_step.create_state(self.model, optimizer, self.config.seed, ema=ema)

    def optimizer(self, stage: Stage) -> tuple[optax.GradientTransformation, optax.Schedule | None]:
        """The optimiser and the schedule of a stage, whose steps count from its beginning.

        There is no schedule where the optimiser is the caller's own.
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
        """The learning rate at a step of the run, in a stage."""
        begin, (_, schedule) = stage.epochs.start * self.steps_per_epoch, self.optimizer(stage)
        return schedule and (lambda step: float(schedule(step - begin)))

    def chunks(
        self, state: TrainState, stage: Stage, done: int = 0, taken: int = 0, debug: bool = False
    ) -> Iterator[Progress]:
        """Trains the epochs of a stage, chunk by chunk.

        Args:
          state: where to begin.
          done: the epochs of the run that it has been through already.
          taken: the steps of the next epoch that it has been through, too.
          debug: see `training.train`.
        """
        config, epochs = self.config, range(max(done, stage.epochs.start), stage.epochs.stop)
        optimizer, _ = self.optimizer(stage)
        if epochs == stage.epochs and not taken:
            state = state.replace(opt_state=jax.jit(optimizer.init)(state.params))
        make_step = partial(
            train_step.make_train_step,
            self.model,
            stage.corruption,
            self.loss,
            optimizer,
            teacher=self.teacher,
            ema_decay=config.ema_decay,
            microbatches=config.microbatches,
        )
        return training.train(
            make_step(axis_name=AXIS),
            state,
            self.dataset.train.images,
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
        """The metrics of an epoch that has ended, after a test: a row of the history.

        Args:
          part: the epoch.
          number: its own, from 1.
          seconds: of training before it.

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


def make_model(config: Config, dataset: data.Dataset, corruption: Corruption) -> Denoiser:
    """The configuration's network, for the images of a data set."""
    height, width, channels = dataset.image_shape
    if config.corruption == "grayscale" and channels != 3:
        raise InputError(
            f"the grayscale corruption needs images in colour, and {dataset.name} has "
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
    config: Config, dataset: data.Dataset
) -> tuple[Callable[[Array], Array] | None, str | None]:
    """The pretrained network to learn from, and the SHA-256 of its parameters.

    Raises:
      InputError: there is none of that name, or it does not suit the images or their noise.
    """
    if config.teacher is None:
        return None, None
    model, params = pretrained.load(config.teacher)
    if not isinstance(model, Denoiser):
        raise InputError(
            f"--teacher {config.teacher} restores no images: choose another, such as digits-unet"
        )
    if model.image_shape != dataset.image_shape:
        raise InputError(
            f"--teacher {config.teacher} restores images of shape {model.image_shape}, and those "
            f"of {dataset.name} have {dataset.image_shape}: leave it out"
        )
    if config.corruption != "gaussian" or config.mean != 0.5 or config.clean_epochs:
        raise InputError(
            f"--teacher {config.teacher} knows gaussian noise of mean 0.5 only: leave out "
            "--corruption, --mean and --clean-epochs, or the teacher"
        )

    def teacher(images: Array) -> Array:
        return cast(Array, model.apply({"params": params}, images))

    return teacher, tree_sha256(params)


def check(config: Config) -> None:
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

    held = part(slice(-count, None))
    held = replace(held, images=np.asarray(held.images))
    return replace(dataset, train=part(slice(-count)), test=held)


def _first(split: data.Split, count: int | None, flag: str) -> data.Split:
    if count is None:
        return split
    if not 1 <= count <= len(split):
        raise InputError(f"--{flag} {count} must be between 1 and the {len(split)} there are")
    labels = None if split.labels is None else split.labels[:count]
    return data.Split(split.images[:count], labels)
