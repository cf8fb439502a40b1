"""Measures every system of the results page, and writes the page: docs/results.md.

    python -m benchmarks.results              # write the page from docs/results/
    python -m benchmarks.results --measure    # first train and measure what is missing: hours

The figures lie in docs/results/, and the page is a function of them. The runs that they come from
lie in runs/results/. After an interruption the same command continues.
"""

import argparse
import csv
import json
import operator
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import cli
from experiments.common.flags import parse
from experiments.runs.folder import rename_accuracy
from jaxdae.config import read_config
from jaxdae.errors import InputError
from jaxdae.files import write_whole

PROGRAM = "python -m benchmarks.results"
DATA, IMAGES, PAGE = Path("docs/results"), Path("docs/images"), Path("docs/results.md")
SIGMAS = (0.25, 0.5, 0.75, 1.0)
KERAS_SEEDS = {0, 1, 2}
PATCHES = "--longest 160 --stride 4 --per-photo 300"
COLOUR = "--recipe colorize"
CEILING = "--sigma 0.1 1.05 --denoiser digits-unet --shift 0 --epochs 2 --learning-rate 1e-3"
OURS = "--optimizer nadam --learning-rate 5e-3 --schedule one-cycle --batch-size 32 --centering"


class System(NamedTuple):
    """A row of a table.

    Fields:
      label: its name on the page.
      command: the flags of `experiments.run`.
      seeds: how many, from 0.
      stages: the names of its stages, with the published loss of each, or None.
    """

    label: str
    command: str
    seeds: int = 1
    stages: tuple[tuple[str, float | None], ...] = ()


NETWORKS = {
    "classic": System("`classic`, 10 epochs at 0.5", "--recipe classic"),
    "default": System("`default`, 5 epochs at 0.5", "--recipe default", 3),
    "default-10": System("`default`, 10 epochs at 0.5", "--recipe default --epochs 10", 3),
    "blind": System(
        "`blind`, 120 epochs at 0.15 to 1.05, bfloat16", "--recipe blind --dtype bfloat16", 3
    ),
    "unet": System("`unet`, 24 epochs at 0.1 to 1.05", "--recipe unet", 3),
}
KERAS = "Keras, 10 epochs at 0.5"
CLASSICAL = "best classical denoiser at each sigma"
PUBLISHED = {
    "classic": System("strided, at sigma 0.5", "--recipe classic", 1, (("noisy", 0.0157),)),
    "classic-0.75": System("strided, at sigma 0.75", "--recipe classic --sigma 0.75"),
    "classic-1": System("strided, at sigma 1.0", "--recipe classic --sigma 1.0"),
    "default-10": System("strided, at sigma 0.5, our training", "--recipe default --epochs 10", 3),
    "default-0.75": System(
        "strided, at sigma 0.75, our training", "--recipe default --epochs 10 --sigma 0.75"
    ),
    "default-1": System(
        "strided, at sigma 1.0, our training", "--recipe default --epochs 10 --sigma 1.0"
    ),
    "maxpool": System(
        "max-pool 16-8-8", "--recipe maxpool-noisy", 1, (("clean", 0.0993), ("noisy", 0.1130))
    ),
    "maxpool-ours": System(
        "max-pool 16-8-8, our training",
        f"--recipe maxpool-noisy --clean-epochs 10 --epochs 10 {OURS}",
        1,
        (("clean", 0.0993), ("noisy", 0.1130)),
    ),
    "keras-io": System(
        "keras.io 32-32",
        "--recipe keras-io --clean-epochs 5 --epochs 10",
        1,
        (("clean", 0.0622), ("noisy", 0.0839)),
    ),
    "keras-io-ours": System(
        "keras.io 32-32, our training",
        f"--recipe keras-io --clean-epochs 10 --epochs 10 {OURS}",
        1,
        (("clean", 0.0622), ("noisy", 0.0839)),
    ),
    "dense": System("dense", "--recipe dense"),
    "dense-ours": System("dense, our training", f"--recipe dense {OURS}"),
}

# What was tried: three epochs of a recipe, tested on held-out training images.
TRY = "--epochs 3 --validation-images 5000"
DEFAULT_TRIED = {
    "base": ("the recipe", ""),
    "no-centering": ("without centring", "--no-centering"),
    "adam": ("Adam", "--optimizer adam"),
    "b2": ("faster decay of the second moment", "--b2 0.99"),
    "rate-high": ("learning rate 0.01", "--learning-rate 1e-2"),
    "batch-16": ("batches of 16, learning rate 0.0035", "--batch-size 16 --learning-rate 3.5e-3"),
    "batch-64": ("batches of 64, learning rate 0.007", "--batch-size 64 --learning-rate 7e-3"),
    "decay": ("AdamW, weight decay 0.01", "--optimizer adamw --weight-decay 0.01"),
    "average": ("exponential average of the weights, decay 0.999", "--ema-decay 0.999"),
    "bce": ("binary cross-entropy", "--loss bce"),
}
BLIND_TRIED = {
    "base": ("sigma from 0.1 to 1.05", "--sigma 0.1 1.05 --learning-rate 3e-3"),
    "rate-high": ("the same, a higher learning rate", "--sigma 0.1 1.05 --learning-rate 5e-3"),
    "range-high": ("sigma from 0.1 to 1.2", "--sigma 0.1 1.2 --learning-rate 3e-3"),
    "range-low": (
        "sigma from 0.2 to 1.1, a higher learning rate",
        "--sigma 0.2 1.1 --learning-rate 5e-3",
    ),
    "taught": (
        "distillation: the outputs of digits-unet as targets",
        "--sigma 0.1 1.05 --learning-rate 3e-3 --teacher digits-unet",
    ),
}
# By the name of the run: the recipe, what was changed, and the words that change it.
TRIED = {
    f"{recipe}-{name}": (recipe, *change)
    for recipe, changes in [("default", DEFAULT_TRIED), ("blind", BLIND_TRIED)]
    for name, change in changes.items()
}
# The same, with code that was not kept.
BY_HAND = [
    "Centring with one mean for each input and output of a layer, instead of one for each input: "
    "0.0150 to 0.0151 after 3 epochs, no better. `blind` at learning rate 0.005 diverged in epoch "
    "6.",
    "Adam in the eigenbasis of the gradient's second moment (one side of each kernel, as in SOAP), "
    "without centring: 0.0157; Nadam has 0.0156.",
    "Standardised noisy images as the input, without centring: 0.0154; without this, 0.0156.",
    "A third of the learning rate for the encoder's dense layer, without centring: 0.0158.",
    "Random shifts by up to one pixel in every step: 0.01592 after 3 epochs of `default`; without "
    "them, 0.01510.",
    "Sigma drawn so that its square is uniform, from 0.1 to 1.05, for `blind`: 0.01314, 0.01678, "
    "0.02339 and 0.03169; drawn uniformly, 0.01187, 0.01615, 0.02351 and 0.03221.",
    "Muon, five epochs, without centring: 0.0151 and 0.0154 (learning rates 0.004 and 0.012) in "
    "twice the time; Nadam has 0.0149.",
    "Cosine decay, five epochs of Adam without centring: 0.0152; linear decay has 0.0151.",
    "A teacher for longer: `--recipe blind --sigma 0.1 1.05 --epochs 20`, on the test images. With "
    "`--teacher digits-unet --learning-rate 5e-3` (an earlier version of that network): 0.00981, "
    "0.01429, 0.02155 and 0.03005. With `--learning-rate 3e-3` and no teacher: 0.01002, 0.01437, "
    "0.02166 and 0.03023, in two fifths of the time. A teacher helps for the same number of steps, "
    "and not for the same time.",
    "A classifier like that of clean digits, trained on noisy digits (`benchmarks.classifier "
    "--sigma 0.1 1.05 --features 64 128 --shift 0 --epochs 12`): an accuracy of 98.9, 97.4, 92.2 "
    "and 82.0%. The classifier of clean digits is more accurate on the U-Net's outputs.",
    "A classifier in the loss of `blind`: the cross-entropy between its predictions for the "
    "restored and for the clean digit (a second classifier, of 99.4% on clean test digits, not the "
    "one that measures). After 3 epochs at sigma 0.5 the accuracy on held-out digits is 94.7% "
    "without it, 95.1% at weight 0.001 and 95.2% at 0.004; the error is 0.01615, 0.01629 and "
    "0.01677.",
    "`unet` on the same held-out images after 2 epochs at learning rate 0.003: 0.00417, 0.00954, "
    "0.01656 and 0.02501. With a relu after each sum, as it was before: 0.00423, 0.00969, 0.01673 "
    "and 0.02522; this with batches of 64: 0.00439, 0.00990, 0.01703 and 0.02543; this with one "
    "more convolution at the smallest size (996,753 parameters): 0.00424, 0.00971, 0.01681 and "
    "0.02527.",
    "The same `unet` with GELU instead of relu: 0.00429, 0.00972, 0.01684 and 0.02536; with `--b2 "
    "0.99`: 0.00413, 0.00955, 0.01659 and 0.02509; with `--learning-rate 5e-3`: 0.00414, 0.00963, "
    "0.01672 and 0.02525; with `--features 24 48 96`, a sixth slower: 0.00411, 0.00950, 0.01653 "
    "and 0.02497.",
    "`unet` at learning rate 0.003 for 20 epochs, on the test images: 0.00367, 0.00876, 0.01538 "
    "and 0.02351 (seeds 0 and 1). From the third to the fifth epoch, at the highest rate, the "
    "error rose; trials of two epochs do not show this. With `--features 24 64 128` (1,157,593 "
    "parameters) the error was no lower after 11 epochs at that rate. After ten epochs the error "
    "over all levels was 0.01251 at rate 0.003, 0.01205 at 0.0016 and 0.01190 at 0.001.",
    "`unet` with `--features 16 48 96 --epochs 20` (913,713 parameters): 0.00363, 0.00854, 0.01506 "
    "and 0.02305, one seed.",
    "`blind` at learning rate 0.004 for 40 epochs, three seeds, on the test images: 0.01009, "
    "0.01435, 0.02152 and 0.02992, and an accuracy of 94.9% at sigma 0.5. The rate came from "
    "trials of 3 epochs, and short trials prefer high rates.",
    "`blind` from 0.15 to 1.08 in float32: three seeds of 40 epochs at learning rate 0.002 have "
    "0.00992, 0.01420, 0.02137 and 0.02974, and an accuracy of 95.1% at 0.5; two seeds of 80 "
    "epochs at 0.0015 have 0.00967, 0.01396, 0.02116 and 0.02952, and 95.3%. Longer training "
    "lowers the error further, and the accuracy stays the same.",
]


def measure(runs: Path, keras: str | None, photos: Path | None) -> None:
    """Trains and evaluates what is neither in `runs` nor in docs/results/."""
    seeds = {row["seed"] for row in _read("keras", [])} | {
        seed for seed in KERAS_SEEDS if (runs / f"keras-seed{seed}.npz").exists()
    }
    if keras is None and seeds != KERAS_SEEDS:
        raise InputError(
            "the tutorials' own network is not trained yet: give --keras PYTHON, a Python that has "
            "Keras (python3 -m venv keras && keras/bin/pip install tensorflow)"
        )
    runs.mkdir(parents=True, exist_ok=True)
    python = [sys.executable, "-m"]
    known = {(row["system"], row["seed"], row["command"]) for row in _read("runs", [])}
    for name, system in {**NETWORKS, **PUBLISHED}.items():
        for seed in range(system.seeds):
            out = runs / f"{name}-seed{seed}"
            done = (name, seed, f"python -m experiments.run {system.command}") in known
            if done or (out / "summary.json").exists():
                continue
            command = [*system.command.split(), "--seed", str(seed), "--out", str(out)]
            if (out / "config.json").exists():
                command = ["--resume", str(out)]
            _call([*python, "experiments.run", *command, "--no-figures"])
    have = {(row["name"], row["command"]) for row in _read("tried", [])}
    for name in TRIED:
        out, words = runs / f"tried-{name}", _trial(name)
        if (name, words) not in have and not (out / "summary.json").exists():
            words = f"--resume {out}" if out.exists() else f"{words} --out {out}"
            _call([*python, "experiments.run", *words.split(), "--no-figures"])
    ceiling = runs / "ceiling"
    if not (ceiling / "result.json").exists() and not (DATA / "ceiling.json").exists():
        _call([*python, "benchmarks.classifier", *CEILING.split(), "--out", str(ceiling)])
    peers = runs / "denoisers.json"
    if not peers.exists() and not (DATA / "denoisers.json").exists():
        partial = runs / "denoisers-begun.json"
        arrays = ["--arrays", str(runs / "denoisers.npz")]
        _call([*python, "benchmarks.denoisers", "--json", str(partial), *arrays])
        os.replace(partial, peers)
    for seed in sorted(KERAS_SEEDS - seeds):
        weights = runs / f"keras-seed{seed}.npz"
        script = ["benchmarks/keras_network.py", "--seed", str(seed), "--out", str(weights)]
        _call([str(keras), *script])
    colour, patches = runs / "colorize", runs / "patches"
    if photos and not (colour / "colorize.json").exists():
        if not (patches / "patches.json").exists():  # written last
            shutil.rmtree(patches, ignore_errors=True)
            cut = [str(photos), *PATCHES.split(), "--out", str(patches)]
            _call([*python, "benchmarks.patches", *cut])
        flags = [*COLOUR.split(), "--dataset", f"folder:{patches}", "--out", str(colour)]
        flags = ["--resume", str(colour)] if (colour / "config.json").exists() else flags
        _call([*python, "experiments.run", *flags, "--no-figures"])
        _call([*python, "benchmarks.colorize", str(colour)])


def collect(runs: Path) -> None:
    """Copies the figures of `runs` to docs/results/; they replace older ones."""
    DATA.mkdir(parents=True, exist_ok=True)
    rows = {f"{row['system']}-seed{row['seed']}": row for row in _read("runs", [])}
    for name, system in {**NETWORKS, **PUBLISHED}.items():
        for seed in range(system.seeds):
            folder = runs / f"{name}-seed{seed}"
            if (folder / "summary.json").exists():
                _same_run(folder, f"{system.command} --seed {seed}")
                rows[folder.name] = {"system": name, "seed": seed, **_run(folder, system)}
    order = [*NETWORKS, *(name for name in PUBLISHED if name not in NETWORKS)]
    kept = [row for row in rows.values() if row["system"] in order]
    _write("runs", sorted(kept, key=lambda row: (order.index(row["system"]), row["seed"])))
    tried = {row["name"]: row for row in _read("tried", [])}
    for name in TRIED:
        path = runs / f"tried-{name}" / "summary.json"
        if path.exists():
            _same_run(path.parent, _trial(name))
            errors = {s: row["mse"] for s, row in json.loads(path.read_text())["test"].items()}
            tried[name] = {"name": name, "command": _trial(name), "mse": errors}
    _write("tried", [tried[name] for name in TRIED if name in tried])
    if files := sorted(runs.glob("keras-seed*.npz")):
        keras = {row["seed"]: row for row in [*_read("keras", []), *map(_keras, files)]}
        _write("keras", [keras[seed] for seed in sorted(keras)])
    for source, name in [("ceiling/result.json", "ceiling"), ("denoisers.json", "denoisers")]:
        if (runs / source).exists():
            _write(name, json.loads((runs / source).read_text()))
    if (runs / "denoisers.npz").exists():
        shutil.copy(runs / "denoisers.npz", DATA / "denoisers.npz")
    colour = runs / "colorize"
    if (colour / "colorize.json").exists():
        _write("colorize", _coloured(colour, runs / "patches"))
        shutil.copy(colour / "figures" / "colorize.png", IMAGES / "results-colorize.png")


def _trial(name: str) -> str:
    """The flags of `experiments.run` for a trial."""
    recipe, _, words = TRIED[name]
    return f"--recipe {recipe} {TRY} {words}".strip()


def _same_run(folder: Path, words: str) -> None:
    """Raises InputError if the run in a folder has another configuration than these flags."""
    asked, found = parse(words.split()).config, read_config(folder)
    if replace(asked, devices=None) != replace(found, devices=None):
        raise InputError(f"the run in {folder} is not that of `{words}`: delete it, or rename it")


def _run(folder: Path, system: System) -> dict[str, Any]:
    """A run's row in docs/results/runs.json."""
    summary = json.loads((folder / "summary.json").read_text())
    config = read_config(folder)
    with open(folder / "metrics.csv", newline="") as file:
        history = list(csv.DictReader(file))
    ends = {"noisy": history[-1]}
    if config.clean_epochs:
        ends = {"clean": history[config.clean_epochs - 1], **ends}
    return {
        "command": f"python -m experiments.run {system.command}",
        "stages": {
            stage: {"epochs": int(row["epoch"]), "loss": float(row["test_loss"])}
            for stage, row in ends.items()
        },
        **summary,
    }


def _coloured(folder: Path, patches: Path) -> dict[str, Any]:
    """The contents of docs/results/colorize.json."""
    cut = json.loads((patches / "patches.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    photos: dict[str, list[str]] = {"train": [], "test": []}
    for photo in cut["photos"]:
        photos[photo["split"]].append(photo["name"])
    return {
        "photos": photos,
        "parameters": summary["parameters"],
        "epochs": summary["epochs"],
        **json.loads((folder / "colorize.json").read_text()),
    }


def _keras(file: Path) -> dict[str, Any]:
    """Evaluates Keras's network on the same noisy test images as all others."""
    import numpy as np
    from flax.traverse_util import unflatten_dict

    from jaxdae.corruption import gaussian
    from jaxdae.data import load
    from jaxdae.evaluation import Evaluator
    from jaxdae.model import DenoisingAutoencoder

    with np.load(file, allow_pickle=False) as arrays:
        params = unflatten_dict({name: arrays[name] for name in arrays.files}, sep="/")
    model, test = DenoisingAutoencoder(), load("mnist").test
    evaluate = Evaluator(model, gaussian, test.images, labels=test.labels)
    result = {str(sigma): evaluate(params, sigma) for sigma in SIGMAS}
    return {"seed": int(file.stem.removeprefix("keras-seed")), "test": result}


def _call(command: list[str]) -> None:
    print("$ " + " ".join(command), flush=True)
    if subprocess.run(command).returncode:
        raise InputError(f"stopped in: {' '.join(command)}: fix it and repeat the command")


def _read(name: str, default: Any = None) -> Any:
    path = DATA / f"{name}.json"
    if not path.exists():
        if default is None:
            raise InputError(f"{path} is missing: measure it with {PROGRAM} --measure")
        return default
    return json.loads(path.read_text())


def _write(name: str, value: Any) -> None:
    write_whole(DATA / f"{name}.json", json.dumps(value, indent=1) + "\n")


# --- the page ----------------------------------------------------------------------------------


SUMMARY = """\
Each row names the epochs and the noise level of the training. The error is the mean squared error
on the 10,000 test images of MNIST; lower is better. The accuracy is that of a classifier, trained
on clean digits, on the restored test digits; on the clean ones it has 99.5%. The noise is
N(0.5, sigma²), added to images in [0, 1] and clipped. It is the same for all rows. Figures are
means over three seeds, except for `classic` (one seed).

- `unet` is the best at every level. It has 923,673 parameters and no latent vector.
- All other networks have the same 178,001 parameters and a latent vector of 16 numbers. They differ
  in how they are trained. `default` reaches a lower error in five epochs than the tutorial's own
  training (`classic`, Keras) in ten.
- A network trained at one level is worse at other levels. `blind` is trained at all of them.
- At sigma 0.25 most classical denoisers have a lower error than any network with a latent vector of
  16 numbers, because such a network redraws the digit. From 0.5 on they have a higher one.
"""
CLASSICAL_TEXT = """\
The classical denoisers are tuned on noisy training images, and know the noise's mean and its
clipping (`pip install -e ".[peers]"`; `python -m benchmarks.denoisers --help` says how). BM3D is
the package of its authors (Dabov, Foi, Katkovnik, Egiazarian; Mäkinen, Azzari); the others are from
scikit-image and SciPy.
*noisy* is the input itself, and *pixelwise* maps each pixel by itself. Non-local means and BM3D are
slow, and were given the first 1,000 test images.
"""
ACCURACY = f"""\
A low error does not show if an image still shows the same digit. So a classifier that was trained
on clean digits only (`jaxdae.recognition`) classifies the restored test digits. The table gives its
accuracy in percent. One row is a U-Net with a classifier behind it, trained together on noisy
digits and their labels: `unet` reaches the same without labels. That row takes a few minutes:
`python -m benchmarks.classifier {CEILING}`.
"""
DIFFERENCE = """\
Three things make `default` better than `classic`: new noise in every step, Nadam with a one-cycle
learning rate, and centred coordinates (`jaxdae.optimizers.centered`). The first two bring the error
at sigma 0.5 from 0.0156 in ten epochs to 0.0147 in five (`--no-centering`), the third to 0.0145.

Centring is a linear change of variables. After a relu the inputs of a layer have a mean far from
zero, so a change of its kernel and a change of its bias have much the same effect. An optimiser
that treats each number alone, such as Adam, is slow along what they share. `centered` lets it step
in coordinates in which the inputs have mean zero. The network, and what it computes, stay the same.
It wraps any optax optimiser.
"""
PUBLISHED_TEXT = f"""\
Test loss at the end of each stage of training: mean squared error for the strided and the dense
network, binary cross-entropy for the max-pool ones. *Our training* is
`{OURS}`.
The max-pool networks were published after 50 epochs without noise and 100 with noise. keras.io's
own recipe is run for a tenth of its epochs here. `tests/model/test_model.py` holds the networks to
Keras's weights, outputs and gradients.
"""
TRIED_TEXT = f"""\
Each change on its own: mean squared error on the last 5,000 training images, which were held out
(`{TRY}`, seed 0). Only the U-Net that teaches, an earlier version,
was trained on them too. Differences of less than 1% may be chance. First `default`, trained at
sigma 0.5:
"""
BY_HAND_TEXT = """\
Then changes that have no flag. Four numbers are errors at the four sigmas. All are on the same
held-out images, unless a line says otherwise.
"""


def page() -> str:
    """The page, from docs/results/ alone."""
    runs, keras = _read("runs"), _read("keras")
    peers, ceiling, tried = _read("denoisers"), _read("ceiling"), _read("tried")
    versions = runs[0]["versions"]
    machine = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "flax", "optax"))
    best = [row for row in runs if row["system"] in NETWORKS]
    return "\n".join(
        [
            "# Results",
            "",
            "How close restored digits come to the clean ones, at four noise levels.",
            "",
            *_markdown(_summary(best, keras, peers)),
            "",
            SUMMARY,
            f"`{PROGRAM}` writes this page from the figures in [results/](results/runs.json);",
            f"`{PROGRAM} --measure` first trains and measures everything. It ran on two",
            "cores of an AMD EPYC (Zen 5) virtual machine, in float32 unless a row says otherwise,",
            f"{machine}, November 2026. ± is the standard deviation over",
            "seeds 0, 1 and 2; a figure without it is of seed 0.",
            "",
            "## Mean squared error",
            "",
            *_markdown(_noise_table(best, keras, peers, "mse", "{:.5f}")),
            "",
            "![Error against sigma, a line for each network](images/results-error.png)",
            "",
            CLASSICAL_TEXT,
            "## Classification accuracy",
            "",
            ACCURACY,
            *_markdown(_noise_table(best, keras, peers, "accuracy", "{:.1f}", ceiling)),
            "",
            "![The first test digits, as each method restores them](images/results-digits.png)",
            "",
            "## What makes the difference",
            "",
            DIFFERENCE,
            "## The tutorials' systems",
            "",
            PUBLISHED_TEXT,
            *_markdown(_published_table(runs)),
            "",
            "## What was tried",
            "",
            TRIED_TEXT,
            *_markdown(_tried_table(tried, "default", [0.5])),
            "",
            "Then `blind`:",
            "",
            *_markdown(_tried_table(tried, "blind", SIGMAS)),
            "",
            BY_HAND_TEXT,
            *(f"- {line}" for line in BY_HAND),
            "",
            *_colour(),
        ]
    )


def _summary(
    runs: Sequence[dict[str, Any]], keras: Sequence[dict[str, Any]], peers: dict[str, Any]
) -> list[list[str]]:
    """The table at the top: errors at all sigmas, accuracy at two, the best line first."""
    columns = [("mse", sigma) for sigma in SIGMAS] + [("accuracy", sigma) for sigma in (0.5, 1.0)]
    styles = {"mse": "{:.4f}", "accuracy": "{:.1%}"}
    groups = {
        label: [row["test"] for row in group]
        for label, group in [(KERAS, keras), *_networks(runs).items()]
    }
    groups = dict(reversed(groups.items()))
    groups[CLASSICAL] = [_classical(peers)]
    lines = [["", *(f"{'error' if m == 'mse' else m}, sigma {sigma:g}" for m, sigma in columns)]]
    for label, tests in groups.items():
        if tests:
            means = [statistics.fmean(t[str(s)][metric] for t in tests) for metric, s in columns]
            cells = [styles[m].format(mean) for (m, _), mean in zip(columns, means, strict=True)]
            lines.append([label, *cells])
    return lines


def _networks(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each network, by its label."""
    return {
        system.label: [row for row in runs if row["system"] == name]
        for name, system in NETWORKS.items()
    }


def _classical(peers: dict[str, Any]) -> dict[str, dict[str, float]]:
    """At each sigma the lowest error and the highest accuracy of all classical denoisers."""
    best: dict[str, dict[str, float]] = {}
    for sigma in sorted({row["sigma"] for row in peers["rows"]}):
        rows = [row for row in peers["rows"] if row["sigma"] == sigma and row["method"] != "noisy"]
        best[str(sigma)] = {
            "mse": min(row["mse"] for row in rows),
            "accuracy": max(row["accuracy"] for row in rows),
        }
    return best


def _noise_table(
    runs: Sequence[dict[str, Any]],
    keras: Sequence[dict[str, Any]],
    peers: dict[str, Any],
    metric: str,
    style: str,
    ceiling: dict[str, Any] | None = None,
) -> list[list[str]]:
    """A line for each network and each classical denoiser, a column for each sigma."""
    factor = 100 if metric == "accuracy" else 1
    lines = [["", *(f"sigma {sigma:g}" for sigma in SIGMAS)]]
    groups = {KERAS: list(keras), **_networks(runs)}
    for label, group in groups.items():
        if not group:
            continue
        columns = [
            [factor * rename_accuracy(row["test"][str(sigma)])[metric] for row in group]
            for sigma in SIGMAS
        ]
        lines.append([label, *(_mean(values, style) for values in columns)])
    if ceiling:
        accuracy = ceiling["accuracy"]
        lines.append(
            [
                "U-Net and classifier, trained on labels",
                *(style.format(100 * accuracy[str(s)]) for s in SIGMAS),
            ]
        )
    for method in dict.fromkeys(row["method"] for row in peers["rows"]):
        rows = {row["sigma"]: row for row in peers["rows"] if row["method"] == method}
        count = min(row["images"] for row in rows.values())
        note = "" if count == 10_000 else f" (on {count:,} images)"
        values = [style.format(factor * rows[s][metric]) if s in rows else "" for s in SIGMAS]
        lines.append([method + note, *values])
    return lines


def _tried_table(
    tried: Sequence[dict[str, Any]], recipe: str, sigmas: Sequence[float]
) -> list[list[str]]:
    """A line for each change to a recipe, with the mean of its relative differences."""
    rows = [row for row in tried if TRIED[row["name"]][0] == recipe]
    lines = [["change", "flags", *(f"sigma {sigma:g}" for sigma in sigmas), "difference"]]
    for row in rows:
        _, what, words = TRIED[row["name"]]
        errors = [row["mse"][str(sigma)] for sigma in sigmas]
        bases = [rows[0]["mse"][str(sigma)] for sigma in sigmas]
        ratio = statistics.fmean(map(operator.truediv, errors, bases))
        difference = "" if row is rows[0] else f"{ratio - 1:+.1%}"
        flags = f"`{words}`" if words else ""
        lines.append([what, flags, *(f"{error:.5f}" for error in errors), difference])
    return lines


def _published_table(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    lines = [["system", "stage", "epochs", "test loss", "published", "seeds", "command"]]
    for name, system in PUBLISHED.items():
        group = [row for row in runs if row["system"] == name]
        for stage in group[0]["stages"] if group else ():
            ends = [row["stages"][stage] for row in group]
            published = dict(system.stages).get(stage)
            lines.append(
                [
                    system.label,
                    stage,
                    str(ends[0]["epochs"]),
                    _mean([end["loss"] for end in ends], "{:.5f}" if len(ends) > 1 else "{:.4f}"),
                    "" if published is None else f"{published:.4f}",
                    str(len(group)),
                    f"`{system.command}`",
                ]
            )
    return lines


def _colour() -> list[str]:
    path = DATA / "colorize.json"
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    train, test = (result["photos"][split] for split in ("train", "test"))
    lines = [["colours", "mse", "luma mse", "chroma mse", "PSNR", "SSIM"]]
    for name, row in result["test"].items():
        errors = (f"{row[error]:.5f}" for error in ("mse", "luma_mse", "chroma_mse"))
        lines.append([name, *errors, f"{row['psnr']:.2f} dB", f"{row['ssim']:.3f}"])
    return [
        "## Colour from gray",
        "",
        f"A U-Net of {result['parameters']:,} parameters learns colours",
        f"(`{COLOUR}`, {result['epochs']} epochs) from {len(train) + len(test)} photographs: those",
        "of the Debian packages lomiri-wallpapers-16.04 and -20.04, mate-backgrounds and",
        "plasma-workspace-wallpapers, and of scikit-image. They are cut into patches of 32×32",
        f"(`python -m benchmarks.patches PHOTOS {PATCHES} --out patches`).",
        f"The {result['images']:,} test patches come from {len(test)} photographs that the network",
        f"never saw: {', '.join(test)}.",
        "`python -m benchmarks.colorize` compares it with gray, with the best single tint (for the",
        "training patches), and with the best tint for each gray level. A strided network with a",
        "latent vector of 256 numbers is too coarse: 0.0201 after 30 epochs of Adam on fewer",
        "patches of the same photographs, where gray has 0.0167.",
        "",
        *_markdown(lines),
        "",
        "![Gray, coloured and true patches](images/results-colorize.png)",
        "",
    ]


def _mean(values: Sequence[float], style: str) -> str:
    text = style.format(statistics.fmean(values))
    if len(values) > 1:
        text += f" ± {style.format(statistics.stdev(values))}"
    return text


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(lines[0])
    return ["| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]]]


def draw() -> None:
    """The figures of the page."""
    import numpy as np

    from jaxdae import figures

    runs, peers = _read("runs"), _read("denoisers")
    curves: dict[str, dict[float, float]] = {KERAS: _curve(_read("keras"))}
    for label, group in _networks(runs).items():
        if group:
            curves[label.replace("`", "")] = _curve(group)
    curves["best classical denoiser"] = {
        float(sigma): row["mse"] for sigma, row in _classical(peers).items()
    }
    figures.error_against_sigma(IMAGES / "results-error.png", curves)

    with np.load(DATA / "denoisers.npz", allow_pickle=False) as arrays:
        shown = {name: arrays[name][..., None] for name in arrays.files}
    groups = []
    for sigma in (0.5, 1.0):
        rows = {"clean": shown["clean"], f"noisy, {sigma:g}": shown[f"noisy_sigma{sigma:g}"]}
        for method in ("gaussian", "tv", "wavelets", "nl-means", "bm3d"):
            if f"{method}_sigma{sigma:g}" in shown:
                rows[method] = shown[f"{method}_sigma{sigma:g}"]
        for name in ("digits-blind", "digits-unet"):
            rows[name] = _restored(name, sigma, len(rows["clean"]))
        groups.append({name: np.clip(images, 0, 1) for name, images in rows.items()})
    title = "The first ten test digits at sigma 0.5 and 1.0"
    figures.image_rows(IMAGES / "results-digits.png", groups, title)


def _curve(group: Sequence[dict[str, Any]]) -> dict[float, float]:
    return {s: statistics.fmean(row["test"][str(s)]["mse"] for row in group) for s in SIGMAS}


def _restored(name: str, sigma: float, count: int) -> Any:
    from jaxdae import pretrained
    from jaxdae.corruption import gaussian
    from jaxdae.data import load
    from jaxdae.evaluation import reconstruct

    model: Any
    model, params = pretrained.load(name)
    return reconstruct(model, params, gaussian(sigma), load("mnist").test.images[:count])[2]


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, formatter_class=formatter)
    parser.add_argument("--measure", action="store_true", help="train and measure what is missing")
    parser.add_argument(
        *("--runs",),
        type=Path,
        default=Path("runs/results"),
        help="folder of the runs (default: runs/results)",
    )
    parser.add_argument(
        "--keras",
        metavar="PYTHON",
        help="a Python that has Keras, for --measure: it trains the tutorials' own network",
    )
    parser.add_argument(
        "--photos", type=Path, help="a folder of photographs, to learn colours from"
    )
    flags = parser.parse_args(argv)

    def work() -> None:
        if not Path("docs").is_dir():
            raise InputError("there is no docs/ here: go to the folder of the repository")
        if flags.measure:
            measure(flags.runs, flags.keras, flags.photos)
        if flags.runs.is_dir():
            collect(flags.runs)
        text = page()
        draw()
        write_whole(PAGE, text)
        print(f"wrote {PAGE}")

    return cli.status(work, "fix that", "interrupted: the same command continues")


if __name__ == "__main__":
    sys.exit(main())
