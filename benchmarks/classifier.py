"""Trains the classifier that reads restored digits, or one that reads noisy digits as they are.

    python -m benchmarks.classifier
    python -m benchmarks.classifier --sigma 0.1 1.05 --features 64 128 --shift 0 --out runs/a
    python -m benchmarks.classifier --sigma 0.1 1.05 --denoiser digits-unet --shift 0 --out runs/b

Without --sigma it learns clean digits: with the defaults, what jaxdae/weights/digit-classifier is.
With --sigma it learns noisy digits, with fresh noise at every step, and is tested on the noisy test
images that denoisers are evaluated on: how far one comes without a denoiser. With --denoiser there
are a denoiser and a classifier, trained as one on nothing but the digits. OUT holds, in the end,
the network, or both (.npz), with a card (.json), and result.json.
"""

import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

import jaxdae
from experiments.common import cli
from jaxdae import data, pretrained
from jaxdae.corruption import Corruption, compose, gaussian, identity
from jaxdae.errors import InputError
from jaxdae.evaluation import corrupted
from jaxdae.files import write_whole
from jaxdae.model import Denoiser, DigitClassifier, Images
from jaxdae.objectives import Classification, Labelled
from jaxdae.optimizers import make_optimizer, make_schedule
from jaxdae.recipes import DEFAULT
from jaxdae.recognition import SHIPPED, reader
from jaxdae.train_step import create_state, make_train_step
from jaxdae.training import AXIS, share_batch
from jaxdae.training import train as train_chunks

PROGRAM = "python -m benchmarks.classifier"


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    sigma: tuple[float, ...] = ()
    """Learn digits under noise of this standard deviation, on images in [0, 1]; two numbers: drawn
    between them for each image. Clean digits if not given."""
    epochs: int = 8
    """How often to go through the training images."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 3e-3
    """The highest learning rate of the one cycle."""
    features: tuple[int, ...] = (24, 48)
    """Channels after each halving of the image."""
    denoiser: str | None = None
    """Learn noisy digits with this pretrained denoiser in front, such as unet: it and the
    classifier begin as they come with the package, and are trained as one."""
    shift: int = 2
    """Move each image by up to so many pixels along both axes, anew at every step."""
    seed: int = 0
    """Decides the initial weights, the order of the images, the shifts and the noise."""
    train_images: int | None = None
    """Use only the first of the training images, so many."""
    validation: int | None = None
    """Learn without the last of the training images, so many, and test on them instead."""
    out: Path | None = None
    """Folder to write to, new or empty; without it, and only with the defaults, the network inside
    the package is written anew."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed or done, in one line.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    _check(arguments)
    return arguments


def _check(arguments: Arguments) -> None:
    lows = {"epochs": 1, "shift": 0, "seed": 0, "train_images": 1, "validation": 1}
    for name, low in lows.items():
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {low}")
    if arguments.seed >= 2**32:
        raise InputError(f"--seed {arguments.seed} must be less than 2**32")
    if len(arguments.sigma) > 2:
        raise InputError(f"--sigma takes one number or two, and got {len(arguments.sigma)}")
    if arguments.shift >= 28:
        raise InputError(f"--shift {arguments.shift} must be less than 28, an image's side")
    if not arguments.features or min(arguments.features) < 1:
        given = " ".join(map(str, arguments.features))
        raise InputError(f"--features {given} must be positive integers, such as 24 48")
    if arguments.denoiser and not arguments.sigma:
        raise InputError(f"--denoiser {arguments.denoiser} needs noise to remove: give --sigma")
    if arguments.denoiser and arguments.features != Arguments.features:
        raise InputError(
            f"--features cannot go with --denoiser {arguments.denoiser}, behind which the "
            "classifier is the one that comes with the package: leave it out"
        )
    out = arguments.out
    if out is None and changed(arguments):
        raise InputError(
            f"{' '.join(changed(arguments))} needs --out DIR: the network inside the package is "
            "what comes of the defaults"
        )
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {out} must be a new or empty folder: choose another name")


def changed(arguments: Arguments) -> list[str]:
    """The words of the command line that decide the result: what is not a default."""
    words = []
    for field in fields(Arguments):
        value = getattr(arguments, field.name)
        if field.name not in ("out", "cache") and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return words


def run(arguments: Arguments, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains, tests and writes the files; returns the results, as the card has them.

    Raises:
      InputError: a value or a folder that cannot be, said before any work starts.
      DivergenceError: a loss is not finite.
    """
    learned, tested, tested_on = splits(arguments)
    share_batch(arguments.batch_size, 1, len(learned))
    make_schedule("one-cycle", arguments.learning_rate, 10)
    sigma: Any = arguments.sigma[0] if len(arguments.sigma) == 1 else arguments.sigma
    parts = [shift(arguments.shift)] if arguments.shift else []
    parts += [gaussian(sigma)] if arguments.sigma else []
    tests = {"clean": identity()}
    if arguments.sigma:
        tests = {str(strength): gaussian(strength) for strength in DEFAULT.eval_sigmas}
    model: DigitClassifier | Chain = DigitClassifier(features=arguments.features)
    params = None
    if arguments.denoiser:
        model, params = chain(arguments.denoiser)
    folder = arguments.out or pretrained.FOLDER
    folder.mkdir(parents=True, exist_ok=True)

    trained = train(model, compose(*parts), learned, arguments, report, params)
    read = reader(model, trained.params)
    accuracy = {}
    for name, corruption in tests.items():
        _, inputs = corrupted(corruption, tested.images)  # the noise that denoisers are shown
        accuracy[name] = share = float(np.mean(read(inputs) == tested.labels))
        label = f"at sigma {name}" if arguments.sigma else name
        report(f"{label}: {100 * share:.2f} % of {tested_on} read right")
    images = arguments.epochs * (len(learned) // arguments.batch_size) * arguments.batch_size
    results = {
        "tested_on": tested_on,
        "accuracy": accuracy,
        "train_seconds": round(trained.seconds, 1),
        "processor_seconds": round(trained.processor_seconds, 1),
        "compile_seconds": round(trained.compile_seconds, 1),
        "images_per_second": round(images / trained.seconds),
    }
    about = describe(arguments, len(learned), results)
    name = f"noisy-{SHIPPED}" if arguments.sigma else SHIPPED
    if isinstance(model, Chain):
        pretrained.save(name, model.classifier, trained.params["classifier"], about, folder)
        pretrained.save("denoiser", model.denoiser, trained.params["denoiser"], about, folder)
    else:
        pretrained.save(name, model, trained.params, about, folder)
    if arguments.out is not None:
        command = {"command": about["command"], "sigma": arguments.sigma, "seed": arguments.seed}
        write_whole(folder / "result.json", json.dumps({**command, **results}, indent=2) + "\n")
    report(
        f"{trained.seconds:.1f} s training ({results['images_per_second']:,} images/s), "
        f"{trained.processor_seconds:.1f} s of processors, {trained.compile_seconds:.1f} s "
        f"compiling; all in {folder}/"
    )
    return results


def describe(arguments: Arguments, images: int, results: dict[str, Any]) -> dict[str, Any]:
    """What the card says beside the network itself; `images` is how many it learned from."""
    if arguments.sigma:
        level = " to ".join(map(str, arguments.sigma))
        about = f"under noise: N(0.5, sigma^2) added, sigma {level}, then clipped to [0, 1]"
        limits = "It knows this noise only."
    else:
        about = "clean or restored by a denoiser"
        limits = "It knows no noise, and reads what it sees of it as ink."
    anew = [f"shifts by up to {arguments.shift} pixels along each axis"] * bool(arguments.shift)
    anew += ["noise"] * bool(arguments.sigma)
    count = "all" if images == 60_000 else f"{images:,} of"
    return {
        "about": f"Reads handwritten digits, 28x28, light on dark, {about}.",
        "data": f"MNIST (Yann LeCun and Corinna Cortes, CC BY-SA 3.0): {count} its 60,000 "
        "training images.",
        "recipe": {
            "loss": "cross-entropy",
            "optimizer": "nadam",
            "schedule": "one-cycle",
            "learning_rate": arguments.learning_rate,
            "batch_size": arguments.batch_size,
            "epochs": arguments.epochs,
            "drawn_at_every_step": anew,
        },
        "seed": arguments.seed,
        "command": " ".join([PROGRAM, *changed(arguments)]),
        "results": results,
        "machine": machine(),
        "versions": {
            "jaxdae": jaxdae.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        },
        "date": str(datetime.date.today()),
        "limits": f"It names a digit whatever it is shown. {limits} Digits that are dark on "
        "light, or that are not centred and sized as MNIST's are, are misread.",
    }


def splits(arguments: Arguments) -> tuple[data.Split, data.Split, str]:
    """The images to learn from, those to test on, and what to call the latter.

    Raises:
      InputError: there are not as many.
    """
    mnist = data.load("mnist")
    images, labels = mnist.train.images, mnist.train.labels
    assert labels is not None
    held = arguments.validation or 0
    last = len(images) - held
    if last < 1:
        raise InputError(
            f"--validation {held} must be less than the {len(images)} images there are"
        )
    count = last if arguments.train_images is None else arguments.train_images
    if count > last:
        raise InputError(f"--train-images {count} must be at most the {last} there are")
    learned = data.Split(images[:count], labels[:count])
    if held:
        return learned, data.Split(images[last:], labels[last:]), f"the last {held:,} of training"
    return learned, mnist.test, f"the {len(mnist.test):,} test images"


def shift(pixels: int) -> Corruption:
    """Moves an image by up to so many whole pixels along each axis; what comes in is black."""

    def corrupt(key: Array, image: Array) -> Array:
        by = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        wider = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
        return lax.dynamic_slice(wider, (*by, 0), image.shape)

    return Corruption(f"shift({pixels})", corrupt)


class Chain(nn.Module):
    """A classifier that reads what a denoiser makes of an image."""

    denoiser: Denoiser
    classifier: DigitClassifier

    @property
    def example(self) -> Images:
        return self.denoiser.example

    def __call__(self, images: Images) -> Float[Array, "batch classes"]:
        return self.classifier(self.denoiser(images))


def chain(name: str) -> tuple[Chain, Any]:
    """A pretrained denoiser and the classifier that comes with the package, and their parameters.

    Raises:
      InputError: there is no such denoiser.
    """
    (denoiser, before), (classifier, after) = map(pretrained.load, (name, SHIPPED))
    if not isinstance(denoiser, Denoiser) or not isinstance(classifier, DigitClassifier):
        raise InputError(
            f"--denoiser {name} restores no images: choose another, such as digits-unet"
        )
    return Chain(denoiser, classifier), {"denoiser": before, "classifier": after}


class Trained(NamedTuple):
    """What training gives.

    Fields:
      params: the network's parameters.
      seconds: what the steps took, compilation apart.
      processor_seconds: the same on all processors together.
      compile_seconds: what was spent compiling.
    """

    params: Any
    seconds: float
    processor_seconds: float
    compile_seconds: float


def train(
    model: DigitClassifier | Chain,
    corruption: Corruption,
    split: data.Split,
    arguments: Arguments,
    report: Callable[[str], None],
    params: Any = None,
) -> Trained:
    """Trains with Nadam on one cycle of the learning rate and on cross-entropy.

    An image's corruption is decided by (seed, step, its place in the batch), as in
    `jaxdae.training`.

    Args:
      params: where to begin; drawn from the seed if not given.

    Raises:
      DivergenceError: a loss is not finite.
    """
    epochs, batch_size = arguments.epochs, arguments.batch_size
    steps = epochs * (len(split) // batch_size)
    optimizer = make_optimizer("nadam", make_schedule("one-cycle", arguments.learning_rate, steps))
    state = create_state(model, optimizer, arguments.seed)
    if params is not None:
        params = jax.tree.map(jnp.asarray, params)
        state = state.replace(params=params, opt_state=optimizer.init(params))
    chunks = train_chunks(
        make_train_step(model, Classification(corruption), optimizer, axis_name=AXIS),
        state,
        Labelled(split.images, np.asarray(split.labels)),
        seed=arguments.seed,
        epochs=range(epochs),
        batch_size=batch_size,
        devices=jax.devices()[:1],
    )
    seconds = compile_seconds = processor_seconds = epoch_seconds = 0.0
    images, losses = 0, np.zeros(0)
    used = time.process_time()
    for progress in chunks:
        # The time of compiling is left out of the processors', as of the other.
        processor_seconds += max(0.0, time.process_time() - used - progress.compile_seconds)
        used = time.process_time()
        seconds += progress.seconds
        epoch_seconds += progress.seconds
        compile_seconds += progress.compile_seconds
        images += progress.images
        losses = np.concatenate([losses, progress.losses])
        state = progress.state
        if progress.ended:
            report(
                f"epoch {progress.epoch + 1:>{len(str(epochs))}}/{epochs}  "
                f"train cross-entropy {losses.mean():.4f}  "
                f"{images / epoch_seconds:,.0f} images/s"
            )
            images, losses, epoch_seconds = 0, np.zeros(0), 0.0
            trained = jax.tree.map(np.asarray, state.params)
    return Trained(trained, seconds, processor_seconds, compile_seconds)


def machine() -> str:
    """The processor and the system, in a line."""
    kind, info = platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        named = [line.split(":")[1] for line in info.open() if line.startswith("model name")]
        kind = named[0].strip() if named else kind
    device = jax.devices()[0]
    kind = kind if device.platform == "cpu" else device.device_kind
    return f"{kind}, {os.cpu_count()} processors, {platform.system()}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 diverged, 2 bad input, 130 interrupted."""

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        cli.prepare_jax(cache=arguments.cache)
        run(arguments)

    return cli.status(work, "choose another --out")


if __name__ == "__main__":
    sys.exit(main())
