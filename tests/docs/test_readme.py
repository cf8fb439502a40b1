"""What the README says can be typed, works, and is what was measured."""

import json
import re
import statistics
from pathlib import Path

import numpy as np

from benchmarks import performance, photos, results
from docs.pages import blocks
from experiments.common.flags import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def rows(heading):
    """The cells of the one table under a heading, without its head."""
    section = README[README.index(f"## {heading}\n") :].split("\n## ")[0]
    lines = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[2:]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


def test_it_is_short():
    assert len(README.encode()) <= 7000


def test_the_python_in_it_runs():
    (code,) = blocks(README, "python")  # all of it
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    clean, noisy, denoised = (names[name] for name in ("clean", "noisy", "denoised"))
    assert denoised.shape == (9, 28, 28, 1)
    assert np.mean((denoised - clean) ** 2) < 0.015 < np.mean((noisy - clean) ** 2)


def test_every_command_parses():
    commands = re.findall(r"python -m experiments\.run((?: --?[\w-]+(?: [\w.:/]+)*)*)", README)
    assert len(commands) >= 2
    for command in commands:
        assert parse(command.split())


def test_the_two_commands_come_first():
    train, test = blocks(README, "sh")[:2]
    assert train.endswith("python -m experiments.run --sigma 0.5\n")
    assert test.endswith("python -m pytest\n")
    assert README.index(test) < README.index("```python")


def test_the_quality_is_what_was_measured():
    runs, keras, peers = (
        json.loads((ROOT / results.DATA / f"{name}.json").read_text())
        for name in ("runs", "keras", "denoisers")
    )
    found = {row[0]: row[1:] for row in rows("Quality")}
    assert len(found) == 5
    for label, cells in found.items():
        if recipe := re.match(r"`(--recipe .*)`, (\d+) epochs", label):
            group = [row for row in runs if row["command"].endswith(f" {recipe[1]}")]
            assert {row["epochs"] for row in group} == {int(recipe[2])}
            tests = [row["test"] for row in group]
        elif "Keras" in label:
            tests = [row["test"] for row in keras]
        else:
            assert label.startswith("best classical denoiser")
            tests = [results._classical(peers)]
        assert len(tests) == (1 if "classical" in label else 3)
        errors = [statistics.fmean(t[str(s)]["mse"] for t in tests) for s in results.SIGMAS]
        accuracy = statistics.fmean(t["1.0"]["accuracy"] for t in tests)
        assert cells == [*(f"{error:.4f}" for error in errors), f"{accuracy:.1%}"], label


def test_photographs_are_as_measured():
    """And as published: docs/photos.md has those."""
    measured = json.loads((ROOT / photos.FIGURES).read_text())["quality"]
    page = (ROOT / photos.PAGE).read_text()
    for label, *cells, _ in rows("Photographs"):
        method, comma, _ = label.strip("`").partition(", as published")
        if comma:
            found = re.findall(rf"^\| {method}\b.*\| published \| (.*) \|$", page, re.MULTILINE)[-1]
            expected = [cell.split(" / ")[1] for cell in found.split(" | ")]
        else:
            names = ("CBSD68", "Kodak24", "McMaster")
            expected = [f"{measured[method][f'{name}-25']['psnr']:.2f}" for name in names]
        assert cells == expected


def test_the_speed_is_what_was_measured(monkeypatch):
    monkeypatch.chdir(ROOT)
    data = performance.measured("cpu-zen5")
    found = rows("Speed")
    assert len(found) == len(performance.TASKS) == 4
    for cells, task in zip(found, performance.TASKS, strict=True):
        ours, *ratios = performance.cell(performance.speeds(data["peers"], task)).split("<br>")
        assert cells[1:] == [ours.strip("*"), *(ratio.split()[0] for ratio in ratios)]
    about = data["peers"]["report"]["about"].values()
    versions = {name: value for one in about for name, value in one.items()}
    for name, said in (("jax", "jax"), ("keras", "Keras"), ("torch", "PyTorch")):
        assert f"{said} {versions[name].partition('+')[0]}" in README
    assert f"TensorFlow\n{versions['tensorflow']}" in README
    assert data["peers"]["machine"]["date"] in README
    train = performance.speeds(data["peers-bfloat16"], ("train", 32))["jaxdae"]
    assert f"trains {statistics.median(train):,.0f}\nimages" in README
    seconds = re.findall(r"[\d.]+ s\b", performance.time_cell(data["quality"], "bfloat16"))
    assert f"in {seconds[0]}; Keras takes {seconds[1]}." in README
