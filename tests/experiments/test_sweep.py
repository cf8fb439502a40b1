"""A sweep as a user meets it: its files, going on after a stop, and what is said of bad input."""

import csv
import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from experiments.common.flags import check_meant, parse
from experiments.reports.sweep import (
    AVERAGED,
    COLUMNS,
    fit_width,
    level_name,
    read_runs,
    summarize,
    table,
)
from experiments.runs import experiment
from experiments.sweep import main
from experiments.sweep import parse as parse_sweep
from jaxdae.config import Config
from jaxdae.errors import DivergenceError, InputError
from jaxdae.recipes import RECIPES

SMALL = ["--architecture", "dense", "--features", "8", "--latent-dim", "4", "--optimizer", "adam"]
SMALL += ["--no-centering", "--epochs", "1", "--eval-sigmas", "0.25", "1"]
SMALL += ["--devices", "1", "--no-figures", "--no-cache"]
NAMES = [
    f"{model}-seed{seed}"
    for model in ("classic-sigma0.4", "blind-sigma0.15-1.05")
    for seed in (0, 1)
]


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small data set."""
    place = tmp_path_factory.mktemp("sweep")
    pixels = np.random.default_rng(0).integers(0, 256, (140, 8, 8), np.uint8)
    np.savez(place / "small.npz", x_train=pixels[:128], x_test=pixels[128:])
    return place


@pytest.fixture(scope="module")
def words(place):
    words = [*SMALL, "--dataset", f"npz:{place}/small.npz", "--sigmas", "0.4", "--seeds", "0", "1"]
    return ["--recipes", "classic", "blind", *words, "--out", str(place / "out")]


@pytest.fixture(scope="module")
def stopped(words, place):
    """A sweep that was interrupted before its third run, and what was in its folder then."""
    run, calls = experiment.run, []

    def interrupted(arguments, *others):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        run(arguments, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "run", interrupted)
        assert main(words) == 130
    with (place / "out" / "results.csv").open() as file:
        return modified(place / "out"), list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(stopped, words, place):
    """The same sweep, gone on with to its end; its second run has lost its result before."""
    out = place / "out"
    lost = out / NAMES[1] / "summary.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    assert main(words) == 0
    return out, before


def test_interrupted_before_a_run_it_has_the_results_so_far(stopped):
    _, rows = stopped
    assert {(row["recipe"], row["seed"]) for row in rows} == {("classic", "0"), ("classic", "1")}


def test_goes_on_without_training_again(stopped, whole):
    """What was finished is not touched, and what was begun comes to the same bits."""
    before, _ = stopped
    out, lost = whole
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(NAMES)
    first = modified(out / NAMES[0])
    assert first == {path: time for path, time in before.items() if path in first}
    resumed = json.loads((out / NAMES[1] / "summary.json").read_text())
    assert resumed["params_sha256"] == lost["params_sha256"]
    assert resumed["train_seconds"] == lost["train_seconds"]


def test_again_when_all_is_finished(whole, words, capsys):
    out, _ = whole
    before = {name: modified(out / name) for name in NAMES}
    text = (out / "results.csv").read_text()
    assert main(words) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().out
    assert {name: modified(out / name) for name in NAMES} == before
    assert (out / "results.csv").read_text() == text


def test_writes_a_row_for_each_run_and_noise_level(whole):
    out, _ = whole
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    # What a run is trained at is among its own levels.
    levels = [["0.25", "0.4", "1.0"]] * 2 + [["0.25", "1.0"]] * 2
    expected = [(name, level) for name, each in zip(NAMES, levels, strict=True) for level in each]
    assert [
        (f"{row['recipe']}-sigma{row['train_sigma']}-seed{row['seed']}", row["test_sigma"])
        for row in rows
    ] == expected
    for row, (name, level) in zip(rows, expected, strict=True):
        summary = json.loads((out / name / "summary.json").read_text())
        assert (row["epochs"], row["accuracy"]) == ("1", "")
        for column in ("mse", "psnr", "ssim", "bce"):
            assert float(row[column]) == summary["test"][level][column]
        for column in ("parameters", "train_seconds", "params_sha256"):
            assert row[column] == str(summary[column])
    assert len({row["params_sha256"] for row in rows}) == 4


def test_writes_a_table_and_a_figure(whole, words):
    out, _ = whole
    text = (out / "results.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 3 + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "accuracy" not in text  # there are none in this data set
    values = [row["mse"] for row in read_runs(out / name for name in NAMES[2:])][::2]
    mean, sd = np.mean(values), np.std(values, ddof=1)
    assert f"| blind | 0.15-1.05 | 0.25 | 1 | 2 | {mean:.5f} ±\xa0{sd:.5f} |" in text
    assert f"python -m experiments.sweep {' '.join(words)}" in text
    with Image.open(out / "error_against_sigma.png") as image:
        image.verify()
    assert not list(out.glob(".*"))


def test_other_settings_are_refused_by_name(whole, words, capsys):
    out, _ = whole
    before = modified(out)
    changed = [*words, "--epochs", "2", "--train-images", "64", "--eval-sigmas", "0.25", "0.5"]
    assert main(changed) == 2
    err = capsys.readouterr().err
    assert err == (
        f"error: {out / NAMES[0]} holds a run with --epochs 1 (now 2), --train-images not given "
        "(now 64), --eval-sigmas 0.25 1.0 (now 0.25 0.5): give the same values again, or choose "
        "another --out\n"
    )
    assert modified(out) == before


def test_a_flag_that_no_recipe_has_a_use_for_is_refused(tmp_path, capsys):
    """And one that some have a use for is not."""
    words = [
        "--recipes",
        "unet",
        "maxpool-clean",
        "--latent-dim",
        "8",
        "--out",
        str(tmp_path / "x"),
    ]
    assert main(words) == 2
    assert "--latent-dim has no effect with --architecture unet" in capsys.readouterr().err
    options = parse_sweep(["--recipes", "default", "unet", "--latent-dim", "8"])
    configs = [parse(["--recipe", r, *options.rest], strict=False).config for r in options.recipes]
    check_meant(configs, options.rest)
    assert [config.latent_dim for config in configs] == [8, 8]


def test_a_range_is_kept_and_said(words, tmp_path, monkeypatch, capsys):
    """And a corruption without a sigma; one that diverges leaves the others to be run."""
    started = []

    def diverges(arguments, *_):
        started.append((arguments.out.name, arguments.config.sigma))
        raise DivergenceError("the loss is nan")

    monkeypatch.setattr(experiment, "run", diverges)
    words = [*words, "--recipes", "blind", "maxpool-clean", "--sigmas", "0.2", "0.3", "--seeds"]
    assert main([*words, "4", "4", "--clean-epochs", "0", "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert started == [
        ("blind-sigma0.15-1.05-seed4", (0.15, 1.05)),
        ("maxpool-clean-identity-seed4", RECIPES["maxpool-clean"][0].sigma),
    ]
    assert "blind draws sigma from 0.15 to 1.05: it is trained once for each seed" in captured.out
    assert "maxpool-clean has no sigma (identity): it is trained once for each seed" in captured.out
    assert captured.err.splitlines() == [f"stopped: {name}: the loss is nan" for name, _ in started]
    assert not (tmp_path / "out" / "results.csv").exists()


def finished_run(folder, config, test, **values):
    """A run's folder made by hand."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    summary = {"recipe": config.recipe, "seed": config.seed, "parameters": 9, "epochs": 5}
    summary |= {"train_seconds": 2.0, "params_sha256": "0" * 64, "test": test, **values}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_mean_and_deviation_over_seeds(tmp_path):
    random = np.random.default_rng(0)
    names = ("mse", "psnr", "ssim", "bce", "recovery")
    values = random.uniform(0.1, 0.9, (3, 2, len(names)))
    folders = [
        finished_run(
            tmp_path / str(seed),
            replace(Config(), seed=seed, sigma=(0.1, 1.05)),
            {
                level: dict(zip(names, row, strict=True))
                for level, row in zip(("0.5", "1.0"), each.tolist(), strict=True)
            },
            train_seconds=float(seed),
        )
        for seed, each in enumerate(values)
    ]
    rows = summarize(read_runs(folders))
    assert [(row["recipe"], row["train_sigma"], row["test_sigma"]) for row in rows] == [
        ("default", "0.1-1.05", "0.5"),
        ("default", "0.1-1.05", "1.0"),
    ]
    for i, row in enumerate(rows):
        assert row["seeds"] == 3
        for name, column in zip(AVERAGED, values[:, i].T, strict=False):
            assert row[f"{name}_mean"] == pytest.approx(column.mean(), rel=1e-12)
            assert row[f"{name}_sd"] == pytest.approx(column.std(ddof=1), rel=1e-12)
        assert (row["train_seconds_mean"], row["train_seconds_sd"]) == (1.0, 1.0)
    for width in (80, 110):
        lines = fit_width(table(rows), width)
        assert ("BCE" in lines[0]) == (width > 80)
        cells = [[max(map(len, cell.split("\n"))) for cell in line] for line in lines]
        assert sum(max(column) + 3 for column in zip(*cells, strict=True)) + 1 <= width
    recovered = 100 * values[:, 0, -1]
    assert table(rows)[0][-1] == "accuracy (%)"
    assert table(rows)[1][-1] == f"{recovered.mean():.2f} ±\xa0{recovered.std(ddof=1):.2f}"


def test_one_seed_has_no_deviation_and_a_missing_value_no_mean(tmp_path):
    metrics = {"mse": 0.0, "psnr": None, "ssim": 1.0, "bce": 0.1}  # restored exactly
    one = finished_run(tmp_path / "1", Config(), {"0.5": metrics})
    other = replace(Config(), recipe="masked", corruption="masking")
    two = [
        finished_run(tmp_path / name, other, {"masking(p=0.3)": {**metrics, "psnr": psnr}})
        for name, psnr in [("2", None), ("3", 30.0)]
    ]
    first, second = summarize(read_runs([one, *two]))
    assert (first["seeds"], first["mse_mean"], first["mse_sd"]) == (1, 0.0, None)
    assert (first["psnr_mean"], first["accuracy_mean"]) == (None, None)
    assert (second["seeds"], second["mse_sd"], second["psnr_mean"]) == (2, 0.0, None)
    assert (second["train_sigma"], second["test_sigma"]) == ("", "masking(p=0.3)")
    assert table([first])[1] == ["default", "0.5", "0.5", "5", "1", "0.00000", "1.0000", "0.1000"]


def test_runs_of_other_lengths_are_not_averaged(tmp_path):
    metrics = {"mse": 0.5, "psnr": 3.0, "ssim": 0.5, "bce": 0.5}
    folders = [
        finished_run(tmp_path / str(epochs), Config(), {"0.5": metrics}, epochs=epochs)
        for epochs in (1, 2)
    ]
    assert [(row["epochs"], row["seeds"]) for row in summarize(read_runs(folders))] == [
        (1, 1),
        (2, 1),
    ]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"test": {"0.5": 1}}', "\x00"])
def test_damaged_result_is_named(text, tmp_path):
    folder = finished_run(tmp_path / "run", Config(), {})
    (folder / "summary.json").unlink()
    if text is not None:
        (folder / "summary.json").write_text(text)
    with pytest.raises(InputError, match=r"summary\.json is (missing|damaged)") as raised:
        read_runs([folder])
    assert f"--resume {folder}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_sigmas_that_are_near_have_their_own_folders():
    assert level_name([1]) == "1.0"
    assert level_name([0.1, 1.05]) == "0.1-1.05"
    assert level_name([0.5]) != level_name([0.5000001])


BAD = [
    ("--sigma 0.5", ["--sigma ", "--sigmas"]),
    ("--seed=3", ["--seed ", "--seeds"]),
    ("--recipe classic", ["--recipe ", "--recipes"]),
    ("--resume runs/x", ["--resume", "command again"]),
    ("--recipes default clasic", ["'clasic'", "classic"]),
    ("--recipes default colorize", ["grayscale", "colour", "mnist"]),
    ("--sigmas", ["--sigmas", "at least one"]),
    ("--sigmas 0.5 -1", ["sigma=-1", "at least 0"]),
    ("--sigmas half", ["--sigmas", "half"]),
    ("--seeds 0 x", ["--seeds", "x"]),
    ("--seeds 0 -1", ["--seed -1", "at least 0"]),
    ("--epochs 0", ["--epochs 0", "at least 1"]),
    ("--epochs many", ["--epochs", "many"]),
    ("--sigmass 0.5", ["--sigmass"]),
    ("extra", ["extra"]),
    ("--eval-sigmas -2", ["eval-sigmas", "-2", "at least 0"]),
    ("--train-images 0", ["--train-images 0", "60000"]),
    ("--out /dev/null", ["/dev/null", "choose another"]),
    ("--out /dev/null/x", ["/dev/null/x", "choose another"]),
    (f"--out {'x' * 300}", ["xxx", "choose another"]),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[words for words, _ in BAD])
def test_bad_input_is_one_line_before_anything_is_written(
    words, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["--seeds", "0", "--devices", "1", "--no-cache", *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    for part in said:
        assert part in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("out/config.json", "is the folder of a single run"),
        ("out/default-sigma0.5-seed0/notes.txt", "holds no run"),
        ("out/default-sigma0.5-seed0", "holds no run"),
    ],
)
def test_other_files_are_left_alone(file, said, tmp_path, capsys):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = modified(tmp_path)
    assert main(["--no-cache", "--devices", "1", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert modified(tmp_path) == before


def test_help_and_reading_import_nothing_heavy():
    code = (
        "import sys; from experiments.sweep import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'jax', 'flax', 'orbax', 'matplotlib'} & {*sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("--recipes", "--sigmas", "--seeds", "--out", "--eval-sigmas", "blind:"):
        assert word in out.stdout
    assert out.stdout.strip().endswith("[]")
