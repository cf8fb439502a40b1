"""Puts the network of a finished run among the pretrained ones that come with the package.

    python -m benchmarks.publish runs/blind-sigma0.15-1.05 digits-blind
    python -m benchmarks.publish runs/photo photo --half

Writes jaxdae/weights/NAME.npz and NAME.json, its model card; `jaxdae.pretrained.load(NAME)` gives
the network back.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from experiments.common import cli
from experiments.common.flags import to_command
from jaxdae.config import Config
from jaxdae.errors import InputError

# What the card says elsewhere, or that does not change the result.
NOT_RECIPE = {
    *("recipe", "dataset", "seed", "architecture", "features", "latent_dim", "upsampling"),
    *("corruption", "strength", "devices", "eval_sigmas", "bridge"),
    *("train_images", "validation_images", "test_images"),
}
PHOTOS = (
    "269 photographs, made by `python -m benchmarks.photo_data`: the 224 of CID22 (Cloudinary, CC "
    "BY-SA 4.0), and 63 wallpapers (budgie-backgrounds, CC0; Unsplash before 2017-06-08, CC0; "
    "lomiri-wallpapers, CC BY 4.0, CC BY-SA 4.0 and CC0), less those held out. weights/NOTICE "
    "names their authors."
)


def describe(config: Config, summary: dict[str, Any]) -> dict[str, Any]:
    """The model card of a run."""
    return {
        **(describe_photo(config) if config.architecture == "photo" else describe_digits(config)),
        **describe_run(config, summary),
    }


def describe_photo(config: Config) -> dict[str, str]:
    """What a card says of a network for photographs."""
    kind = "gray photographs" if config.gray else "photographs in colour"
    white = config.corruption == "gaussian"
    removes = "white Gaussian noise up to sigma 55/255" if white else "the noise of cameras"
    return {
        "about": f"Removes {removes} from {kind} of any size.",
        "data": PHOTOS,
        "limits": "It knows noise that is white, and fails on the noise of cameras: that is what "
        "`photo` is for."
        if white
        else "It was trained on simulated cameras. It may smooth fine "
        "texture that cannot be told from noise: a lower strength keeps more.",
    }


def describe_digits(config: Config) -> dict[str, str]:
    """What a card says of a network for digits."""
    level = " to ".join(map(str, config.sigma))
    return {
        "about": f"Removes noise N({config.mean}, sigma^2), sigma {level}, added to images in "
        "[0, 1] and clipped, from handwritten digits, 28x28, light on dark.",
        "data": "MNIST (Yann LeCun and Corinna Cortes, CC BY-SA 3.0): all 60,000 training images.",
        "limits": "It has seen digits only, and draws a digit whatever it is shown; noise of "
        "another mean or another kind it was not trained to remove.",
    }


def describe_run(config: Config, summary: dict[str, Any]) -> dict[str, Any]:
    """What a card says of how a network was trained."""
    from .classifier import machine

    photo = config.architecture == "photo"
    return {
        "recipe": {
            field.name: getattr(config, field.name)
            for field in fields(Config)
            if field.name not in NOT_RECIPE and getattr(config, field.name) is not None
        },
        "seed": config.seed,
        "command": to_command(config),
        "results": {
            "tested_on": f"{config.test_images} patches of photographs that were held out"
            if photo
            else "the 10,000 test images, by sigma",
            **summary["test"],
        },
        "machine": machine(),
        "versions": summary["versions"],
        "date": str(datetime.date.today()),
    }


def publish(folder: Path, name: str, to: Path | None = None, half: bool = False) -> None:
    """Writes the two files of a pretrained network from a run.

    Args:
      half: see `pretrained.save`.

    Raises:
      InputError: the run is not finished, or neither of photographs nor of the whole of MNIST under
        gaussian noise, or the name cannot be that of a denoiser.
    """
    from experiments.runs.finished import load_run
    from jaxdae import pretrained
    from jaxdae.recognition import SHIPPED

    if name == SHIPPED or Path(name).name != name:
        raise InputError(
            f"the name {name!r} must be a word without slashes, and not {SHIPPED}, which reads "
            "digits: choose another"
        )
    run = load_run(folder)
    config = run.config
    photo = config.architecture == "photo"
    if photo:
        config = replace(config, dataset="folder:photos")
    elif config.dataset != "mnist" or config.corruption != "gaussian":
        raise InputError(
            f"the run in {folder} is of {config.dataset} under {config.corruption}: the model card "
            "is written for MNIST under gaussian noise only"
        )
    tested = config.test_images and not photo
    if config.train_images or tested or config.validation_images:
        raise InputError(f"the run in {folder} left images out: publish one of all images")
    summary = json.loads((folder / "summary.json").read_text())
    about = describe(config, summary)
    pretrained.save(name, run.model, run.params, about, to or pretrained.FOLDER, half)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.publish", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="what to call the network")
    parser.add_argument("--to", type=Path, help="folder to write to, instead of the package's")
    parser.add_argument("--half", action="store_true", help="round the parameters to float16")
    flags = parser.parse_args(argv)

    def work() -> None:
        cli.prepare_jax(1)
        publish(flags.run, flags.name, flags.to, flags.half)
        print(f"{flags.name}: written")

    return cli.status(work, "choose another --to")


if __name__ == "__main__":
    sys.exit(main())
