"""The results page: what it is made from, and that it is what it was made from."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import results
from experiments.common.flags import parse
from jaxdae.errors import InputError
from jaxdae.recipes import RECIPES

ROOT = Path(__file__).parents[2]


def a_run(system, seed, mse, stages=("noisy",)):
    row = {"mse": mse, "accuracy": 0.9}
    return {
        "system": system,
        "seed": seed,
        "stages": {stage: {"epochs": 3, "loss": mse} for stage in stages},
        "test": {str(sigma): row for sigma in results.SIGMAS},
        "versions": {"python": "3", "jax": "1", "flax": "1", "optax": "1"},
    }


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "DATA", tmp_path)
    monkeypatch.setattr(results, "IMAGES", tmp_path)
    monkeypatch.setattr(results, "PAGE", tmp_path / "results.md")
    runs = [a_run("classic", seed, 0.01 + 0.002 * seed) for seed in range(3)]
    runs.append(a_run("maxpool", 0, 0.1, ("clean", "noisy")))
    results._write("runs", runs)
    results._write("keras", [a_run("", 0, 0.5)])
    results._write("ceiling", {"accuracy": {str(sigma): 0.99 for sigma in results.SIGMAS}})
    rows = [
        {"method": "tv", "sigma": sigma, "images": 1000, "mse": 0.25, "accuracy": 0.5}
        for sigma in results.SIGMAS
    ]
    results._write("denoisers", {"rows": rows})
    trials = [("default-base", 0.02), ("default-adam", 0.021), ("blind-base", 0.03)]
    results._write(
        "tried",
        [
            {"name": n, "command": "", "mse": {str(s): mse for s in results.SIGMAS}}
            for n, mse in trials
        ],
    )
    return tmp_path


def test_the_page_says_what_was_measured(written):
    page = results.page()
    # The table at the top: means alone, the network that is listed last first.
    top = page[: page.index("## ")]
    assert (
        "| `classic`, 10 epochs at 0.5 | 0.0120 | 0.0120 | 0.0120 | 0.0120 | 90.0% | 90.0% |" in top
    )
    assert "| best classical denoiser at each sigma | 0.2500 |" in top and "| 50.0% |" in top
    assert top.index("`classic`, 10 epochs") < top.index("| Keras") < top.index("| best classical")
    assert "| `classic`, 10 epochs at 0.5 | 0.01200 ± 0.00200 |" in page
    assert "| Keras, 10 epochs at 0.5 | 0.50000 |" in page
    assert "| tv (on 1,000 images) | 0.25000 |" in page
    assert "| U-Net and classifier, trained on labels | 99.0 |" in page
    assert "| max-pool 16-8-8 | clean | 3 | 0.1000 | 0.0993 | 1 |" in page
    assert "| Adam | `--optimizer adam` | 0.02100 | +5.0% |" in page


def test_a_figure_that_is_missing_is_named(written, capsys):
    (written / "ceiling.json").unlink()
    assert results.main(["--runs", str(written / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "ceiling.json" in error and "--measure" in error
    assert not (written / "results.md").exists()


def test_measuring_wants_keras_before_it_starts(written, capsys):
    assert results.main(["--measure", "--runs", str(written / "runs")]) == 2
    assert "--keras PYTHON" in capsys.readouterr().err
    assert not (written / "runs").exists()


def test_what_is_measured_is_collected(tmp_path, written):
    runs = tmp_path / "runs"
    folder = runs / "default-seed1"
    folder.mkdir(parents=True)
    config = asdict(parse(["--seed", "1"]).config)
    (folder / "config.json").write_text(json.dumps(config))
    summary = a_run("", 1, 0.03)
    for name in ("system", "stages"):
        del summary[name]
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text("epoch,test_loss\n1,0.5\n2,0.25\n")
    results.collect(runs)
    rows = {(row["system"], row["seed"]): row for row in results._read("runs")}
    assert len(rows) == 5
    assert rows["default", 1]["stages"] == {"noisy": {"epochs": 2, "loss": 0.25}}
    assert rows["default", 1]["test"]["0.5"]["mse"] == 0.03
    assert rows["classic", 0]["test"]["0.5"]["mse"] == 0.01

    (folder / "config.json").write_text(json.dumps({**config, "epochs": 3}))
    with pytest.raises(InputError, match="is not that of `--recipe default --seed 1`"):
        results.collect(runs)


@pytest.mark.parametrize("name", [*results.NETWORKS, *results.PUBLISHED])
def test_every_system_is_a_run_that_can_be_started(name):
    system = {**results.NETWORKS, **results.PUBLISHED}[name]
    config = parse(system.command.split()).config
    assert config.recipe in RECIPES
    assert {stage for stage, _ in system.stages} <= {"clean", "noisy"}
    assert ("clean" in dict(system.stages)) == bool(config.clean_epochs)


@pytest.mark.parametrize("name", results.TRIED)
def test_every_trial_is_a_run_that_can_be_started(name):
    recipe, _, words = results.TRIED[name]
    config = parse(f"--recipe {recipe} {results.TRY} {words}".split()).config
    assert (config.recipe, config.validation_images, config.epochs) == (recipe, 5000, 3)


def test_the_committed_page_is_what_the_figures_say(monkeypatch):
    monkeypatch.setattr(results, "DATA", ROOT / results.DATA)
    assert results.page() == (ROOT / results.PAGE).read_text()
