"""The main job as a user meets it: files, resuming, and what is said of bad input."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.common.flags import parse
from experiments.run import main
from jaxdae import pretrained, training
from jaxdae.config import Config
from jaxdae.errors import DivergenceError
from jaxdae.model import DenoisingAutoencoder, gray_params
from jaxdae.recipes import RECIPES
from jaxdae.trainer import Trainer
from tests.caches import own_cache
from tests.data.sources import write_images

SMALL = ["--train-images", "512", "--test-images", "64", "--features", "4"]
FIGURES = ["curves", "digits", "error_against_sigma", "first_ten", "latent_space"]
TIMES = ("train_seconds", "images_per_second")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def start(heeded, place):
    """Starts the command as a user would, with a cache folder of its own.

    Compiled as for a user, or quickly where the bits are not those of `finished`.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": own_cache(place)}
    environment.pop("XLA_FLAGS", None)  # one device, as on a laptop

    def start(*words, quick=False):
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.run", *map(str, words)],
            env=environment | ({"XLA_FLAGS": os.environ["TESTS_XLA_FLAGS"]} if quick else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(process, condition, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows(folder):
    """metrics.csv without what the clock says."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(start, place):
    """A run of three epochs, and what it printed."""
    code, out, err = finish(start("--epochs", 3, "--sigma", 0.4, *SMALL, "--out", place / "whole"))
    assert (code, err) == (0, "")
    return place / "whole", out


def test_writes_everything_it_promises(finished):
    folder, out = finished
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.json",
        "figures",
        "metrics.csv",
        "model.json",
        "model.npz",
        "report.html",
        "summary.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert (config["recipe"], config["sigma"], config["epochs"]) == ("default", [0.4], 3)
    result = summary(folder)
    assert (result["recipe"], result["seed"], result["epochs"]) == ("default", 0, 3)
    assert list(result["test"]) == ["0.25", "0.4", "0.5", "0.75", "1.0"]
    for metrics in result["test"].values():
        assert set(metrics) == {"mse", "psnr", "ssim", "bce", "accuracy"}
        assert 0 < metrics["mse"] < 1
        assert 0 < metrics["accuracy"] < 1
    assert result["images_per_second"] == pytest.approx(3 * 512 / result["train_seconds"])
    assert result["device"]["platform"] == "cpu"
    assert result["compile_seconds"] > 0
    assert result["compile_seconds"] < result["start_seconds"] < 3600
    assert len(result["params_sha256"]) == 64
    assert {"jax", "flax", "jaxdae", "python"} <= set(result["versions"])

    table = rows(folder)
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert [row["step"] for row in table] == ["16", "32", "48"]
    assert float(table[-1]["test_loss"]) == pytest.approx(result["test"]["0.4"]["mse"], rel=1e-6)
    for name in FIGURES:
        with Image.open(folder / "figures" / f"{name}.png") as image:
            image.verify()
    assert "epoch 3/3" in out
    assert f"{result['test']['0.4']['mse']:.5f}" in out
    assert f"{result['parameters']:,} parameters" in out


@pytest.mark.slow
def test_same_seed_same_result_and_resumed_is_never_stopped(finished, start, place):
    """Killed after its first epoch and resumed, the run ends in the same bits and the same rows."""
    whole, _ = finished
    cut = place / "cut"
    process = start("--epochs", 3, "--sigma", 0.4, *SMALL, "--out", cut)
    deadline = time.monotonic() + 100
    while not list(cut.glob("checkpoints/16/commit_success.txt")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cut / "summary.json").exists()
    assert len(rows(cut)) < 3

    code, out, err = finish(start("--resume", cut))
    assert (code, err) == (0, "")
    assert "resumed after epoch" in out
    assert summary(cut)["params_sha256"] == summary(whole)["params_sha256"]
    assert summary(cut)["test"] == summary(whole)["test"]
    assert rows(cut) == rows(whole)


def test_weights_that_diverge_in_the_last_step_are_not_kept(tmp_path, capsys):
    """The loss of that step was taken before its update, and was finite."""
    words = [*SMALL, "--batch-size", "512", "--epochs", "1", "--schedule", "constant"]
    words += ["--optimizer", "adam", "--learning-rate", "1e37", "--devices", "1", "--no-cache"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "stopped: the test loss is " in capsys.readouterr().err
    assert not list(tmp_path.glob("out/checkpoints/1"))
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.slow
def test_damaged_checkpoint_is_skipped_in_a_line(finished, start, place, capsys):
    """The newest is damaged: the run goes on from the one before, to the same end."""
    whole, _ = finished
    folder = place / "damaged"
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    for path in folder.glob("checkpoints/48/state/**/d/*"):
        path.write_bytes(path.read_bytes()[:-9])
    code, out, err = finish(start("--resume", folder))
    assert (code, err) == (0, "")
    assert "skipped the checkpoint of step 48: " in out
    assert "resumed after epoch 2" in out
    assert summary(folder)["params_sha256"] == summary(whole)["params_sha256"]

    (folder / "summary.json").unlink()
    for path in folder.glob("checkpoints/*/state/**/d/*"):
        path.write_bytes(b"")
    assert main(["--resume", str(folder), "--no-cache"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no checkpoint in ")
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "word"), [(2, "interrupted"), (15, "terminated")])
def test_stopped_in_an_epoch_it_goes_on_from_there(number, word, start, place):
    """Within 5 s, with the command that goes on in the last line; to the bits of a whole run."""
    words = ["--epochs", 2, *SMALL, "--train-images", 30720, "--no-figures"]
    out = place / f"stopped-{word}"
    process = start(*words, "--out", out, quick=True)
    wait_for(process, lambda: list(out.glob("checkpoints/960/commit_success.txt")))
    process.send_signal(number)
    asked = time.monotonic()
    code, _, err = finish(process)
    assert time.monotonic() - asked < 5
    assert code == 128 + number
    assert err.count("\n") == 1
    assert err.startswith(f"{word}; the checkpoint of step ")
    assert err.endswith(f"python -m experiments.run --resume {out}\n")
    step = int(re.search(r"of step (\d+)", err)[1])
    assert 960 < step < 1920  # not the end of an epoch
    assert len(rows(out)) == 1

    code, said, err = finish(start("--resume", out, quick=True))
    assert (code, err) == (0, "")
    assert f"resumed after epoch 1 and {step - 960} steps" in said
    whole = place / "not-stopped"
    if not whole.exists():
        assert finish(start(*words, "--out", whole, quick=True))[0] == 0
    assert summary(out)["params_sha256"] == summary(whole)["params_sha256"]
    assert summary(out)["test"] == summary(whole)["test"]
    assert rows(out) == rows(whole)


@pytest.mark.slow
def test_a_folder_in_use_is_left_alone(start, place, capsys):
    out = place / "in-use"
    process = start("--epochs", 2000, *SMALL, "--no-figures", "--out", out, quick=True)
    wait_for(process, lambda: list(out.glob("checkpoints/16/commit_success.txt")))
    for flag in ("--resume", "--out"):
        assert main([flag, str(out), "--no-cache"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.startswith(f"error: {out} is in use by a run that has not ended: ")
    process.kill()
    process.communicate()
    process = start("--resume", out, quick=True)  # the lock has gone with the process that held it
    wait_for(process, lambda: process.stdout.readline().startswith("resumed after epoch"))
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_disk_that_is_full_costs_no_training(finished, start, place):
    """The run goes on in memory, says what it could not save, and what is on disk stays good."""
    whole, _ = finished
    out = place / "full"
    words = ["--epochs", 3, "--sigma", 0.4, *SMALL, "--out", out]
    process = start(*words)
    wait_for(process, lambda: list(out.glob("checkpoints/16/commit_success.txt")))
    # From here on no file may grow beyond 10 kB: as a full disk, for an array.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
    code, said, err = finish(process)
    assert code == 2
    assert "warning: a checkpoint cannot be saved (File too large): free some space" in said
    assert "epoch 3/3" in said
    assert err.count("\n") == 1
    assert err.startswith(f"error: the state after the last epoch cannot be saved in {out} (File ")
    step = int(re.search(r"of step (\d+) is kept", err)[1])
    assert step in (16, 32)
    assert not list(out.glob("checkpoints/*tmp*"))  # nothing that would fill the disk further

    code, said, err = finish(start("--resume", out))
    assert (code, err) == (0, "")
    assert f"resumed after epoch {step // 16}\n" in said
    assert summary(out)["params_sha256"] == summary(whole)["params_sha256"]
    assert rows(out) == rows(whole)


def test_finished_run_says_so(finished, capsys):
    whole, _ = finished
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert main(["--resume", str(whole), "--no-cache"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "finished" in said.out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.slow
def test_devices_share_the_batch(finished, start, place):
    whole, _ = finished
    words = ["--epochs", 3, "--sigma", 0.4, *SMALL, "--devices", 2, "--no-figures"]
    code, _, err = finish(start(*words, "--out", place / "two", quick=True))
    assert (code, err) == (0, "")
    assert summary(place / "two")["device"]["count"] == 2
    for sigma, metrics in summary(whole)["test"].items():
        assert summary(place / "two")["test"][sigma]["mse"] == pytest.approx(metrics["mse"], 1e-4)


def test_divergence_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    """It is named, and the run can be looked at, as it was after that epoch."""

    original = training.train

    def train(*args, **options):
        for progress in original(*args, **options):
            if progress.epoch == 1:
                raise DivergenceError("the loss is nan at step 20")
            yield progress

    monkeypatch.setattr("jaxdae.trainer.training.train", train)
    out = tmp_path / "out"
    words = ["--epochs", "3", *SMALL, "--devices", "1", "--no-cache", "--out", str(out)]
    assert main(words) == 1
    said = f"stopped: the loss is nan at step 20; the checkpoint of step 16 is kept in {out}\n"
    assert capsys.readouterr().err == said
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["16"]
    assert len(rows(out)) == 1


@pytest.mark.slow
def test_divergence_is_told(start, place):
    words = ["--epochs", 9, *SMALL, "--features", 4, 8, "--optimizer", "adam"]
    words += ["--schedule", "one-cycle", "--learning-rate", "1e37", "--debug"]
    out = place / "diverges"
    code, _, err = finish(start(*words, "--out", out, quick=True))
    assert code == 1
    assert "(invalid value (" in err and "conv.py:" in err
    assert err.startswith("stopped: the loss is ")
    assert err.count("\n") == 1
    for word in ("at step", "at learning rate"):
        assert word in err
    assert not (out / "summary.json").exists()


@pytest.mark.slow
def test_validation_images_are_held_out_of_training(tmp_path):
    """A data set of two kinds of images, the last of which the network must never have seen."""
    images = np.zeros((160, 8, 8, 1), np.uint8)
    images[128:] = 255
    np.savez(tmp_path / "two.npz", x_train=images, x_test=images[:16])
    words = ["--dataset", f"npz:{tmp_path}/two.npz", "--validation-images", "32", "--epochs", "20"]
    words += ["--no-figures", "--no-cache", "--devices", "1", "--features", "4", "8"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    row = rows(tmp_path / "out")[-1]
    assert row["step"] == "80"  # four batches of 32 an epoch
    assert float(row["train_loss"]) < 0.1 < 0.5 < float(row["test_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs(recipe, tmp_path, capfd):
    """On a few images, an epoch of each of its stages."""
    pixels = np.random.default_rng(0).integers(0, 256, (192, 12, 13, 3), np.uint8)
    np.savez(tmp_path / "colour.npz", images=pixels)
    words = ["--recipe", recipe, "--epochs", "1", "--train-images", "128"]
    words += ["--devices", "1", "--no-cache", "--out", str(tmp_path / "out")]
    if recipe == "colorize":
        words += ["--dataset", f"npz:{tmp_path}/colour.npz", "--features", "4", "8"]
    if RECIPES[recipe][0].architecture == "photo":
        write_images(tmp_path / "photos", 24, (40, 48, 3))
        words += ["--dataset", f"folder:{tmp_path}/photos", "--crop", "16", "--features", "4", "8"]
        words[words.index("--train-images") + 1] = "64"
    stages = 1
    if RECIPES[recipe][0].clean_epochs:
        words += ["--clean-epochs", "1"]
        stages = 2
    drawn = recipe in ("default", "maxpool-noisy", "colorize", "photo", "photo-gaussian")
    # What is drawn is also read by the classifier, which images that are held out are not.
    words += ["--test-images", "16"] if drawn else ["--validation-images", "16", "--no-figures"]
    assert main(words) == 0
    result = summary(tmp_path / "out")
    assert result["recipe"] == recipe
    assert result["epochs"] == stages
    assert len(rows(tmp_path / "out")) == stages
    figures = sorted(path.stem for path in (tmp_path / "out").glob("figures/*.png"))
    by_sigma = RECIPES[recipe][0].corruption == "gaussian"
    latent = RECIPES[recipe][0].architecture not in ("unet", "photo")
    has = {"error_against_sigma": by_sigma, "latent_space": latent}
    expected = [name for name in FIGURES if has.get(name, True)]
    assert figures == (expected if drawn else [])
    assert (tmp_path / "out" / "report.html").exists() == drawn
    parameters = {"classic": 178_001, "maxpool-noisy": 4_385, "keras-io": 28_353}
    assert result["parameters"] == parameters.get(recipe, result["parameters"])


def test_starts_from_the_weights_of_another_network(tmp_path, capsys):
    """Those in colour start a gray network; at a tiny rate it stays there."""
    write_images(tmp_path / "photos", 24, (40, 48, 3))
    words = ["--recipe", "photo-gaussian", "--dataset", f"folder:{tmp_path}/photos"]
    words += ["--crop", "16", "--features", "4", "8", "--epochs", "1", "--train-images", "32"]
    words += ["--no-figures", "--no-cache", "--devices", "1", "--test-images", "8", "--out"]
    assert main([*words, str(tmp_path / "first")]) == 0
    _, first = pretrained.load("model", tmp_path / "first")
    started = ["--init", str(tmp_path / "first/model.npz"), "--learning-rate", "1e-9"]
    assert main([*words, str(tmp_path / "gray"), *started, "--gray"]) == 0
    model, found = pretrained.load("model", tmp_path / "gray")
    assert model.channels == 1
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(gray_params(first)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    trainer = Trainer(parse([*words, str(tmp_path), *started]).config)  # in colour, as they are
    jax.tree.map(np.testing.assert_array_equal, trainer.create_state().params, first)
    capsys.readouterr()
    assert main([*words, str(tmp_path / "other"), *started, "--features", "4", "9"]) == 2
    error = capsys.readouterr().err
    assert "another network than this run's: choose one of the same" in error


def test_photographs_resume_to_the_bit(tmp_path):
    """Patches, turns, noise levels and the average go on where they stopped."""
    write_images(tmp_path / "photos", 24, (40, 48, 3))
    words = ["--recipe", "photo-gaussian", "--dataset", f"folder:{tmp_path}/photos"]
    words += ["--noise-level", "estimated", "--crop", "16"]
    words += ["--features", "4", "8", "--epochs", "2", "--train-images", "32", "--keep", "2"]
    words += ["--no-figures", "--no-cache", "--devices", "1", "--test-images", "8", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part/summary.json").unlink()
    shutil.rmtree(tmp_path / "part/checkpoints/4")
    assert main(["--resume", str(tmp_path / "part"), "--no-figures", "--no-cache"]) == 0
    hashes = [summary(tmp_path / name)["params_sha256"] for name in ("whole", "part")]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("corruption", "said"),
    [
        ("masking", "p=2000000.0"),
        ("salt_and_pepper", "p=2000000.0"),
        ("speckle", "sigma=-3.0"),
        ("poisson", "peak=2000000.0"),
    ],
)
def test_other_corruptions_take_their_own_flag(corruption, said, tmp_path, capsys):
    flag = ["--sigma", "-3"] if corruption == "speckle" else ["--strength", "2000000"]
    assert (
        main(["--corruption", corruption, *flag, "--no-cache", "--out", str(tmp_path / "out")]) == 2
    )
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_images_of_four_channels(tmp_path):
    """From an array file, to figures, under masking."""
    pixels = np.random.default_rng(0).integers(0, 256, (140, 9, 8, 4), np.uint8)
    np.savez(tmp_path / "four.npz", images=pixels)
    words = ["--dataset", f"npz:{tmp_path}/four.npz", "--corruption", "masking", "--epochs", "1"]
    words += ["--features", "4", "--ema-decay", "0.9", "--devices", "1", "--no-cache"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert list(summary(tmp_path / "out")["test"]) == ["masking(p=0.3)"]
    assert (tmp_path / "out" / "figures" / "digits.png").exists()


def test_a_network_of_any_size_with_a_linear_output(tmp_path, capfd):
    """It has no cross-entropy, and figures of what leaves [0, 1]."""
    words = ["--architecture", "photo", "--features", "4", "8", "--train-images", "640"]
    words += ["--test-images", "60", "--epochs", "1", "--devices", "1", "--no-cache"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = summary(tmp_path / "out")["test"]
    assert set(rows["0.5"]) == {"mse", "psnr", "ssim", "accuracy"}
    assert (tmp_path / "out" / "report.html").exists()
    assert "warn" not in "".join(capfd.readouterr()).lower()


@pytest.mark.slow
def test_resumes_across_the_border_of_two_stages(tmp_path, capfd):
    """One epoch without noise and two with it, stopped after the first, to the same bits."""
    words = ["--recipe", "keras-io", "--architecture", "dense", "--features", "8", "--devices", "1"]
    words += ["--train-images", "512", "--validation-images", "64", "--clean-epochs", "1"]
    words += ["--epochs", "2", "--no-figures", "--no-cache"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*words, "--out", str(whole)]) == 0
    shutil.copytree(whole, cut)
    (cut / "summary.json").unlink()
    for step in ("8", "12"):
        shutil.rmtree(cut / "checkpoints" / step)
    assert main(["--resume", str(cut), "--no-figures", "--no-cache"]) == 0
    assert "resumed after epoch 1" in capfd.readouterr().out
    assert summary(cut)["params_sha256"] == summary(whole)["params_sha256"]
    assert rows(cut) == rows(whole)


def test_checkpoints_of_another_configuration_are_refused(finished, place, capsys):
    whole, _ = finished
    folder = place / "edited"
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "seed": 7}))
    assert main(["--resume", str(folder), "--no-cache"]) == 2
    assert "another configuration" in capsys.readouterr().err


@pytest.mark.slow
def test_teacher_is_part_of_the_run(tmp_path, monkeypatch, capsys):
    """What is learned depends on it, and another in its place is refused."""

    def teach(seed):
        network = DenoisingAutoencoder(features=(2, 2))
        params = jax.jit(network.init)(jax.random.key(seed), np.zeros((1, 28, 28, 1)))["params"]
        monkeypatch.setattr("jaxdae.pretrained.load", lambda name: (network, params))

    words = [*SMALL, "--epochs", "1", "--devices", "1", "--no-figures", "--no-cache", "--out"]
    alone, taught = tmp_path / "alone", tmp_path / "taught"
    assert main([*words, str(alone)]) == 0
    teach(0)
    assert main([*words, str(taught), "--teacher", "digits-unet"]) == 0
    assert summary(alone)["params_sha256"] != summary(taught)["params_sha256"]
    (taught / "summary.json").unlink()
    teach(1)
    assert main(["--resume", str(taught), "--no-figures", "--no-cache"]) == 2
    assert "another teacher" in capsys.readouterr().err


BAD = [
    ("--sigma -1", ["sigma=-1", "at least 0"]),
    ("--sigma nan", ["sigma=nan", "finite"]),
    ("--sigma 0.1 0.2 0.3", ["one number or two", "3"]),
    ("--sigma 1 0.5", ["(1.0, 0.5)", "in order"]),
    ("--eval-sigmas -2", ["eval-sigmas", "-2", "at least 0"]),
    ("--mean inf", ["mean=inf", "finite"]),
    ("--recipe clasic", ["'clasic'", "classic"]),
    ("--corruption rain", ["rain", "gaussian"]),
    ("--dataset folder:/no/such/folder", ["/no/such/folder", "is no folder"]),
    ("--dataset minst", ["'minst'", "did you mean 'mnist'"]),
    ("--batch-size 0", ["--batch-size 0", "at least 1"]),
    ("--batch-size 70000", ["70000", "at most 60000"]),
    ("--epochs 0", ["--epochs 0", "at least 1"]),
    ("--epochs many", ["--epochs", "many"]),
    ("--epoch 3", ["--epoch"]),
    ("--seed -1", ["--seed -1", "at least 0"]),
    ("--seed 4294967296", ["--seed", "2**32"]),
    ("--learning-rate 0", ["learning rate 0", "above 0"]),
    ("--learning-rate nan", ["learning rate nan"]),
    ("--ema-decay 1", ["--ema-decay 1", "less than 1"]),
    ("--latent-dim 0", ["latent_dim=0", "positive"]),
    ("--features 8 -1", ["features", "-1", "positive"]),
    ("--train-images 0", ["--train-images 0", "60000"]),
    ("--validation-images 60000", ["--validation-images 60000", "59999"]),
    ("--validation-images 50000 --train-images 10001", ["--train-images 10001", "10000"]),
    ("--corruption masking --sigma 0.5", ["--sigma", "masking", "gaussian or speckle"]),
    ("--strength 0.5", ["--strength", "gaussian", "masking"]),
    ("--recipe maxpool-noisy --latent-dim 8", ["--latent-dim", "maxpool", "strided or dense"]),
    ("--weight_decay=0.1", ["--weight-decay", "nadam", "adamw"]),
    ("--keep 0", ["--keep 0", "at least 1"]),
    ("--devices 0", ["--devices 0", "at least 1"]),
    ("--microbatches 5", ["5 microbatches", "batch size 32", "1, 2, 4, 8, 16, 32"]),
    ("--recipe colorize", ["grayscale", "colour", "mnist"]),
    ("--recipe photo", ["--crop 64", "'mnist' has none", "folder:DIR"]),
    ("--turns", ["--turns", "--crop 64"]),
    ("--candidates 2", ["--candidates", "--crop 64"]),
    ("--candidates 0", ["--candidates 0", "at least 1"]),
    ("--gray", ["--gray", "'mnist' has none", "folder:DIR"]),
    ("--init nobody", ["no pretrained network 'nobody'", "photo"]),
    ("--init digits-unet", ["--init digits-unet", "another network", "same architecture"]),
    ("--init digit-classifier", ["another network"]),
    ("--corruption masking --no-clip", ["--no-clip", "masking", "gaussian"]),
    ("--noise-level estimated", ["--noise-level", "strided", "photo"]),
    ("--teacher nobody", ["'nobody'", "digits-unet"]),
    ("--teacher digit-classifier", ["digit-classifier", "restores no images"]),
    ("--teacher digits-unet --corruption masking", ["gaussian", "leave out"]),
    ("--teacher digits-unet --mean 0", ["mean 0.5", "leave out"]),
    ("--resume /no/such/run", ["/no/such/run", "config.json"]),
    ("--resume runs/x --epochs 5", ["--epochs", "--resume", "leave it out"]),
    ("--resume runs/x --epochs 3", ["--epochs", "--resume", "leave it out"]),
    ("--recipe colorize --clean-epochs 1 --dataset npz:/nope", ["/nope"]),
    (f"--out {'x' * 300}", ["xxx", "choose another"]),
    ("--out /dev/null", ["/dev/null", "must be a folder"]),
    ("--out /dev/null/x", ["/dev/null/x", "choose another"]),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[words for words, _ in BAD])
def test_bad_input_is_one_line_with_value_rule_and_mend(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--devices", "1", *words.split(), "--no-cache"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for words in said:
        assert words in captured.err
    assert list(tmp_path.iterdir()) == []


def test_truncated_file_is_named(tmp_path, capsys):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 9]))
    assert main(["--dataset", f"idx:{tmp_path}", "--out", str(tmp_path / "o"), "--no-cache"]) == 2
    assert "train-images-idx3-ubyte" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_another_run_is_not_overwritten(finished, capsys):
    whole, _ = finished
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert main(["--out", str(whole), "--no-cache"]) == 2
    err = capsys.readouterr().err
    assert "holds another run" in err
    assert f"--resume {whole}" in err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"recipe": "default"}',
        "\x00\xff",
        {"epochs": None},
        {"loss": "foo"},
        {"sigma": ["0.5"]},
        {"seed": True},
    ],
)
def test_damaged_configuration_is_named(text, tmp_path, capsys):
    text = json.dumps({**asdict(Config()), **text}) if isinstance(text, dict) else text
    (tmp_path / "config.json").write_text(text)
    assert main(["--resume", str(tmp_path), "--no-cache"]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "config.json") in err
    assert err.count("\n") == 1


def test_help_answers_soon_and_shows_the_recipe(start):
    """Nothing heavy is imported for it."""
    began = time.monotonic()
    code, out, _ = finish(start("--recipe", "classic", "--help"))
    assert code == 0
    assert time.monotonic() - began < 1.5
    for word in ("--sigma", "--resume", "--learning-rate", "(default: 0.001)", "blind:"):
        assert word in out


def test_help_imports_no_jax():
    code = (
        "import sys; from experiments.run import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'jax', 'flax', 'orbax', 'matplotlib'} & {*sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("[]")
