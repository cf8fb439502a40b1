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
from typing import Any

from benchmarks.systems import (
    ACCURACY,
    BY_HAND,
    BY_HAND_TEXT,
    CEILING,
    CLASSICAL,
    CLASSICAL_TEXT,
    COLOUR,
    DIFFERENCE,
    KERAS,
    KERAS_SEEDS,
    NETWORKS,
    PATCHES,
    PUBLISHED,
    PUBLISHED_TEXT,
    SIGMAS,
    SUMMARY,
    TRIED,
    TRIED_TEXT,
    TRY,
    System,
)
from experiments.common import cli
from experiments.common.flags import parse
from experiments.runs.folder import rename_accuracy
from jaxdae.config import read_config
from jaxdae.errors import InputError
from jaxdae.files import write_whole

PROGRAM = "python -m benchmarks.results"


DATA, IMAGES, PAGE = Path("docs/results"), Path("docs/images"), Path("docs/results.md")


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
