"""Measures every system of the results page, and writes the page: docs/results.md.

    python -m benchmarks.results              # write the page from docs/results/
    python -m benchmarks.results --measure    # first train and measure what is missing: hours

What was measured lies in docs/results/, small files that the page is a function of; the runs
themselves in runs/results/. A measurement that was stopped goes on where it was.
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
from jaxdae.errors import InputError
from jaxdae.files import write_whole
from jaxdae.recipes import read_config

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
      label: what the page calls it.
      command: the words for `experiments.run`.
      seeds: how many, from 0.
      stages: the names of its stages, with the published loss of each (None: none is known).
    """

    label: str
    command: str
    seeds: int = 1
    stages: tuple[tuple[str, float | None], ...] = ()


NETWORKS = {
    "classic": System("`classic`, at 0.5, 10 epochs", "--recipe classic"),
    "default": System("`default`, at 0.5, 5 epochs", "--recipe default", 3),
    "default-10": System("`default`, at 0.5, 10 epochs", "--recipe default --epochs 10", 3),
    "blind": System(
        "`blind`, one network for all, 120 epochs, bfloat16", "--recipe blind --dtype bfloat16", 3
    ),
    "unet": System("`unet`, 923,673 parameters, 24 epochs", "--recipe unet", 3),
}
PUBLISHED = {
    "classic": System("strided, at sigma 0.5", "--recipe classic", 1, (("noisy", 0.0157),)),
    "classic-0.75": System("strided, at sigma 0.75", "--recipe classic --sigma 0.75"),
    "classic-1": System("strided, at sigma 1.0", "--recipe classic --sigma 1.0"),
    "default-10": System("strided, at 0.5, ours", "--recipe default --epochs 10", 3),
    "default-0.75": System("strided, at 0.75, ours", "--recipe default --epochs 10 --sigma 0.75"),
    "default-1": System("strided, at 1.0, ours", "--recipe default --epochs 10 --sigma 1.0"),
    "maxpool": System(
        "max-pool 16-8-8", "--recipe maxpool-noisy", 1, (("clean", 0.0993), ("noisy", 0.1130))
    ),
    "maxpool-ours": System(
        "max-pool 16-8-8, ours",
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
        "keras.io 32-32, ours",
        f"--recipe keras-io --clean-epochs 10 --epochs 10 {OURS}",
        1,
        (("clean", 0.0622), ("noisy", 0.0839)),
    ),
    "dense": System("dense", "--recipe dense"),
    "dense-ours": System("dense, ours", f"--recipe dense {OURS}"),
}

# What was tried: three epochs of a recipe, tested on training images that are held out.
TRY = "--epochs 3 --validation-images 5000"
DEFAULT_TRIED = {
    "base": ("the recipe", ""),
    "no-centering": ("without centring", "--no-centering"),
    "adam": ("Adam", "--optimizer adam"),
    "b2": ("second moment forgotten sooner", "--b2 0.99"),
    "rate-high": ("learning rate 0.01", "--learning-rate 1e-2"),
    "batch-16": ("batches of 16, learning rate 0.0035", "--batch-size 16 --learning-rate 3.5e-3"),
    "batch-64": ("batches of 64, learning rate 0.007", "--batch-size 64 --learning-rate 7e-3"),
    "decay": ("AdamW, weight decay 0.01", "--optimizer adamw --weight-decay 0.01"),
    "average": ("average of the weights, decay 0.999", "--ema-decay 0.999"),
    "bce": ("binary cross-entropy", "--loss bce"),
}
BLIND_TRIED = {
    "base": ("sigma from 0.1 to 1.05", "--sigma 0.1 1.05 --learning-rate 3e-3"),
    "rate-high": ("a higher learning rate", "--sigma 0.1 1.05 --learning-rate 5e-3"),
    "range-high": ("sigma to 1.2", "--sigma 0.1 1.2 --learning-rate 3e-3"),
    "range-low": ("sigma from 0.2, to 1.1, higher rate", "--sigma 0.2 1.1 --learning-rate 5e-3"),
    "taught": (
        "the U-Net's outputs as targets",
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
    "Centring with a mean for each input and output of a layer, instead of each input: 0.0150 to "
    "0.0151 after 3 epochs, no better, and `blind` at learning rate 0.005 diverged in epoch 6.",
    "Adam in the eigenbasis of the gradient's second moment (one side of each kernel, as in SOAP), "
    "without centring: 0.0157, against 0.0156 for Nadam.",
    "Noisy images standardised before the first layer, without centring: 0.0154, against 0.0156.",
    "A third of the learning rate for the encoder's dense layer, without centring: 0.0158.",
    "Images shifted by up to a pixel at every step: 0.01592 after 3 epochs of `default`, against "
    "0.01510.",
    "Sigma drawn with its square uniform, from 0.1 to 1.05, for `blind`: 0.01314, 0.01678, 0.02339 "
    "and 0.03169, against 0.01187, 0.01615, 0.02351 and 0.03221.",
    "Muon, five epochs, without centring: 0.0151 and 0.0154 (learning rates 0.004 and 0.012), "
    "against 0.0149 for Nadam, in twice the time.",
    "Cosine decay, five epochs of Adam without centring: 0.0152, against 0.0151 for linear.",
    "`--recipe blind --sigma 0.1 1.05 --epochs 20` at length, on the test images at the four "
    "sigmas: 0.00981, 0.01429, 0.02155, 0.03005 with `--teacher digits-unet --learning-rate 5e-3`, "
    "and 0.01002, 0.01437, 0.02166, 0.03023 with `--learning-rate 3e-3` alone, in two fifths of "
    "the time (the teacher an earlier U-Net): a teacher pays by the step, not by the minute.",
    "A classifier of the same kind as the one of clean digits, trained on noisy ones "
    "(`benchmarks.classifier --sigma 0.1 1.05 --features 64 128 --shift 0 --epochs 12`): 98.9, "
    "97.4, 92.2 and 82.0% read right, fewer than of the U-Net's outputs.",
    "`blind` held to what a second classifier reads (99.4% of the clean test digits; not the one "
    "that counts), the cross-entropy between its readings of the restored and of the clean digit "
    "added to the loss, 3 epochs: at sigma 0.5 94.7% of the held-out digits are read right without "
    "it, 95.1% at weight 0.001 and 95.2% at 0.004, and the error is 0.01615, 0.01629 and 0.01677.",
    "`unet` on the same held-out images after 2 epochs at learning rate 0.003, at the four sigmas: "
    "0.00417, 0.00954, 0.01656 and 0.02501. With relus behind the sums, as it was: 0.00423, "
    "0.00969, 0.01673 and 0.02522; so with batches of 64: 0.00439, 0.00990, 0.01703 and 0.02543; "
    "with another convolution at the smallest size, 996,753 parameters: 0.00424, 0.00971, 0.01681 "
    "and 0.02527.",
    "The same with GELU for relu: 0.00429, 0.00972, 0.01684 and 0.02536; with `--b2 "
    "0.99`: 0.00413, 0.00955, 0.01659 and 0.02509; `--learning-rate 5e-3`: 0.00414, 0.00963, "
    "0.01672 and 0.02525; `--features 24 48 96`, a sixth slower: 0.00411, 0.00950, 0.01653 and "
    "0.02497.",
    "`unet` at learning rate 0.003 for all of its 20 epochs, on the test images: 0.00367, 0.00876, "
    "0.01538 and 0.02351 (seeds 0 and 1). Its error rose from the third epoch to the fifth, at the "
    "highest rate, which two epochs do not show; with `--features 24 64 128` (1,157,593 "
    "parameters) at that rate it was no lower after 11 epochs. At 0.0016 the error over all levels "
    "was 0.01205 after ten epochs, at 0.001 0.01190, and at 0.003 0.01251.",
    "`unet` with `--features 16 48 96 --epochs 20` (913,713 parameters): 0.00363, 0.00854, 0.01506 "
    "and 0.02305, one seed.",
    "`blind` at learning rate 0.004 for all of its 40 epochs, three seeds: 0.01009, 0.01435, "
    "0.02152 and 0.02992 on the test images, and 94.9% of the digits read right at sigma 0.5: the "
    "rate was chosen by trials of 3 epochs, which favour high ones.",
    "`blind` from 0.15 to 1.08 in float32, three seeds of 40 epochs at learning rate 0.002: "
    "0.00992, 0.01420, 0.02137 and 0.02974, and 95.1% of the digits read right at 0.5; two seeds "
    "of 80 epochs at 0.0015: 0.00967, 0.01396, 0.02116 and 0.02952, and 95.3%. The error goes on "
    "falling with the length of the training, and the share of digits that are read does not rise.",
]


def measure(runs: Path, keras: str | None, photos: Path | None) -> None:
    """Trains and evaluates what neither `runs` nor docs/results/ holds yet."""
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
    """Puts what `runs` holds into docs/results/, over what was there."""
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
    """The words for `experiments.run` of a trial."""
    recipe, _, words = TRIED[name]
    return f"--recipe {recipe} {TRY} {words}".strip()


def _same_run(folder: Path, words: str) -> None:
    """Raises if the run in a folder is not what the words ask for."""
    asked, found = parse(words.split()).config, read_config(folder)
    if replace(asked, devices=None) != replace(found, devices=None):
        raise InputError(f"the run in {folder} is not that of `{words}`: delete it, or rename it")


def _run(folder: Path, system: System) -> dict[str, Any]:
    """What the page needs to know of a run."""
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
    """What the page needs to know of the network that colours."""
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
    """Keras's network on the noisy test images that all others are evaluated on."""
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
        raise InputError(f"stopped in: {' '.join(command)}: mend it and give the command again")


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
            f"`{PROGRAM} --measure` trains and measures everything here, and `{PROGRAM}` writes",
            "this page from the figures in [results/](results/runs.json). Test images are MNIST's",
            "10,000; noise is N(0.5, sigma²), added to images in [0, 1] and clipped, the same for",
            "all.",
            "An AMD EPYC (Zen 5) virtual machine of two cores, float32 unless it says otherwise, "
            f"{machine}, November 2026.",
            "± is the standard deviation over seeds 0, 1, 2; without it a figure is of seed 0.",
            "",
            "## Mean squared error",
            "",
            "Lower is better. All networks but `unet` are the same 178,001 parameters.",
            "",
            *_markdown(_noise_table(best, keras, peers, "mse", "{:.5f}")),
            "",
            "![Error against sigma, a line for each network](images/results-error.png)",
            "",
            "## Digit recovery",
            "",
            "The share, in percent, of restored digits that a classifier still reads as the right",
            "digit. It was trained on clean digits only and reads 99.5% of the clean test digits.",
            "The ceiling is a U-Net with a classifier behind it, trained as one to read noisy",
            f"digits (`benchmarks.classifier {CEILING}`).",
            "",
            *_markdown(_noise_table(best, keras, peers, "accuracy", "{:.1f}", ceiling)),
            "",
            "![The first test digits, as each method restores them](images/results-digits.png)",
            "",
            "Classical denoisers have their parameters tuned on noisy training images and are told",
            "the noise's mean and clipping (`python -m benchmarks.denoisers --help` says how).",
            "BM3D is that of its authors (Dabov, Foi, Katkovnik, Egiazarian; Mäkinen, Azzari), the",
            "others are scikit-image's and SciPy's.",
            "",
            "## The tutorials' systems",
            "",
            "Test loss at the end of each stage: mean squared error for the strided and the dense",
            "network, binary cross-entropy for the max-pool ones. *Ours* is the same network under",
            f"`{OURS}`.",
            "The max-pool networks were published after 50 epochs without noise and 100 more with",
            "it; keras.io's own recipe is run for a tenth of that here.",
            "",
            *_markdown(_published_table(runs)),
            "",
            "## What was tried",
            "",
            "Each change by itself: mean squared error on the last 5,000 training images, which",
            f"were left out of training (`{TRY}`, seed 0); the U-Net that",
            "teaches, an earlier one, has seen them. A difference of less than 1% may be chance.",
            "First `default`, trained at sigma 0.5:",
            "",
            *_markdown(_tried_table(tried, "default", [0.5])),
            "",
            "and `blind`:",
            "",
            *_markdown(_tried_table(tried, "blind", SIGMAS)),
            "",
            "Without a flag, and on the same images:",
            "",
            *(f"- {line}" for line in BY_HAND),
            "",
            *_colour(),
        ]
    )


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
    groups = {"Keras, trained at 0.5, 10 epochs": list(keras)}
    for name, system in NETWORKS.items():
        groups[system.label] = [row for row in runs if row["system"] == name]
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
                "ceiling: trained to read noisy digits",
                *(style.format(100 * accuracy[str(s)]) for s in SIGMAS),
            ]
        )
    metric = {"accuracy": "digit_recovery"}.get(metric, metric)
    for method in dict.fromkeys(row["method"] for row in peers["rows"]):
        rows = {row["sigma"]: row for row in peers["rows"] if row["method"] == method}
        count = min(row["images"] for row in rows.values())
        note = "" if count == 10_000 else f" (first {count:,} images)"
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
        f"The same train step with the grayscale corruption, on {len(train) + len(test)}",
        "photographs: those of the Debian packages lomiri-wallpapers-16.04 and -20.04,",
        "mate-backgrounds and plasma-workspace-wallpapers, and of scikit-image. They are cut into",
        f"patches of 32x32 (`benchmarks.patches PHOTOS {PATCHES}`); the",
        f"{result['images']:,} test patches are those of {len(test)} photographs that the network",
        f"never saw: {', '.join(test)}. A U-Net of {result['parameters']:,} parameters",
        f"(`{COLOUR}`, {result['epochs']} epochs) is compared",
        "(`benchmarks.colorize`) with gray, with the one tint that is best for the training",
        "patches, and with the best tint for each level of gray. The strided network with 256",
        "numbers between its halves redraws a patch too coarsely: 0.0201 after 30 epochs of Adam",
        "on fewer patches of the same photographs, where gray has 0.0167.",
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
    curves: dict[str, dict[float, float]] = {
        "Keras, at 0.5": _curve(_read("keras")),
    }
    for name, system in NETWORKS.items():
        group = [row for row in runs if row["system"] == name]
        if group:
            curves[system.label.replace("`", "")] = _curve(group)
    best: dict[float, float] = {}
    for row in peers["rows"]:
        if row["method"] not in ("noisy", "pixelwise"):
            best[row["sigma"]] = min(row["mse"], best.get(row["sigma"], 1.0))
    curves["best classical denoiser"] = best
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
        help="folder of the runs that are measured (default: runs/results)",
    )
    parser.add_argument(
        "--keras",
        metavar="PYTHON",
        help="a Python that has Keras, to train the tutorials' own network with; for --measure, "
        "unless it is trained",
    )
    parser.add_argument("--photos", type=Path, help="a folder of photographs, to learn colours of")
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

    return cli.status(work, "mend that", "interrupted: the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
