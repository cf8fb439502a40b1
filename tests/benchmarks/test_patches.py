"""Patches of photographs, runs read back, and colours judged: on small photographs made here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs
from skimage.color import rgb2ycbcr
from skimage.metrics import structural_similarity

from benchmarks import colorize, patches
from experiments.run import main as train
from experiments.runs.finished import load_run
from jaxdae.data import load
from jaxdae.errors import InputError
from jaxdae.files import tree_sha256
from jaxdae.from_config import make_corruption
from jaxdae.recipes import RECIPES

SMALL = ["--features", "4", "8", "--epochs", "2", "--devices", "1"]
QUIET = ["--no-figures", "--no-cache", "--no-progress"]

jax.devices()  # all of them, before a command asks for one


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Real photographs in a folder, and beside them what is none."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        pixels = getattr(photographs, name)()
        save(folder / "sub" / f"{name}.png", pixels[: pixels.shape[0] // 2, ::2])
    save(folder / "copy.png", photographs.chelsea()[: photographs.chelsea().shape[0] // 2, ::2])
    save(folder / "gray.png", photographs.camera())
    save(folder / "gray-rgb.png", np.repeat(photographs.camera()[..., None], 3, 2))
    save(folder / "tiny.png", photographs.coffee()[:7, :50])
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def cut(*words):
    patches.run(patches.parse([str(word) for word in words]))


@pytest.fixture(scope="module")
def dataset(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("cut") / "patches"
    cut(
        *(photos, "--out", out, "--size", 8, "--longest", 64, "--per-photo", 40),
        *("--test-photos", "coffee.png", "--min-contrast", 0.01),
    )
    return out


@pytest.fixture(scope="module")
def colored(dataset, tmp_path_factory):
    """A run of the colorize recipe on them."""
    out = tmp_path_factory.mktemp("runs") / "color"
    words = ["--recipe", "colorize", "--dataset", f"folder:{dataset}", *SMALL, *QUIET]
    assert train([*words, "--batch-size", "8", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A run of another recipe: two stages, a moving average, many devices and microbatches."""
    out = tmp_path_factory.mktemp("runs") / "noisy"
    words = ["--recipe", "dense", "--features", "8", "--clean-epochs", "1"]
    words += ["--epochs", "1", "--train-images", "64", "--test-images", "16", "--batch-size", "16"]
    words += ["--ema-decay", "0.9", "--devices", "2", "--microbatches", "2", *QUIET]
    assert train([*words, "--out", str(out)]) == 0
    return out


# --- patches -----------------------------------------------------------------------------------


def test_photographs_stay_whole_and_the_rest_is_counted(dataset):
    about = json.loads((dataset / "patches.json").read_text())
    assert {photo["name"]: photo["split"] for photo in about["photos"]} == {
        "copy.png": "train",  # comes before chelsea.png, of which it is a copy
        "astronaut.png": "train",
        "coffee.png": "test",
        "rocket.png": "train",
    }
    assert about["skipped"] == {
        "unreadable": 1,
        "in gray": 2,
        "not images": 1,
        "too small": 1,
        "copies": 1,
    }
    assert all(0 < photo["patches"] <= 40 for photo in about["photos"])
    split = load(f"folder:{dataset}")
    assert split.image_shape == (8, 8, 3)
    for images, name in ((split.train.images, "train"), (split.test.images, "test")):
        found = sum(photo["patches"] for photo in about["photos"] if photo["split"] == name)
        assert len(images) == found
        gray = images / 255 @ np.array([0.299, 0.587, 0.114])
        assert gray.std((1, 2)).min() >= 0.01
    # The first patches are of different photographs.
    first = sorted((dataset / "train").iterdir())[:3]
    assert len({path.stem.split("-")[1] for path in first}) == 3


def test_patches_are_pieces_of_the_photograph():
    pixels = photographs.chelsea()[:40, :50]
    found = patches.windows(pixels, 16, 12)
    corners = [(top, left) for top in (0, 12, 24) for left in (0, 12, 24)]
    assert len(found) == len(corners)
    for patch, (top, left) in zip(found, corners, strict=True):
        np.testing.assert_array_equal(patch, pixels[top : top + 16, left : left + 16])


def test_shrinks_without_aliasing_and_never_grows():
    stripes = np.zeros((60, 120, 3), np.uint8)
    stripes[:, ::2] = 200
    small = patches.shrink(stripes, 30)
    assert small.shape == (15, 30, 3)
    assert np.abs(small[:, 2:-2].astype(int) - 100).max() <= 4
    assert patches.shrink(stripes, 200) is stripes
    assert patches.shrink(stripes, None) is stripes


def test_same_seed_same_patches_whatever_the_other_photographs(photos, tmp_path):
    words = ["--size", 8, "--longest", 64, "--per-photo", 5, "--test-photos", "coffee.png"]
    runs = {
        "all": [photos],
        "again": [photos],
        "two": [photos / "sub" / "coffee.png", photos / "sub" / "rocket.png"],
        "other": [photos, "--seed", 1],
    }
    coffee = {}
    for name, first in runs.items():
        cut(*first, "--out", tmp_path / name, *words)
        coffee[name] = load(f"folder:{tmp_path / name}").test.images
    np.testing.assert_array_equal(coffee["all"], coffee["again"])
    np.testing.assert_array_equal(coffee["all"], coffee["two"])
    assert not np.array_equal(coffee["all"], coffee["other"])


def test_a_sixth_goes_to_the_test_by_name_alone(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        save(tmp_path / "in" / f"{i}.png", rng.integers(0, 256, (8, 8, 3), np.uint8))
    cut(tmp_path / "in", "--out", tmp_path / "all", "--size", 8)
    splits = json.loads((tmp_path / "all" / "patches.json").read_text())["photos"]
    everything = {photo["name"]: photo["split"] for photo in splits}
    assert 2 <= list(everything.values()).count("test") <= 14
    fewer = [tmp_path / "in" / name for name in list(everything)[::2]]
    cut(*fewer, "--out", tmp_path / "fewer", "--size", 8)
    for photo in json.loads((tmp_path / "fewer" / "patches.json").read_text())["photos"]:
        assert everything[photo["name"]] == photo["split"]


def test_stands_photographs_upright(tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8] = (250, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    save(tmp_path / "in" / "turned.png", pixels, exif=exif)
    save(tmp_path / "in" / "other.png", photographs.coffee()[:24, :24])
    out = tmp_path / "out"
    words = ["--size", 16, "--stride", 8, "--test-photos", "other.png"]
    cut(tmp_path / "in", "--out", out, *words)
    upright = load(f"folder:{out}").train.images
    assert len(upright) == 2  # 16 wide, 24 high
    np.testing.assert_array_equal(upright[0], np.rot90(pixels, -1)[:16])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required"),
        (["{photos}/sub", "--out", "{tmp}/full"], "must be a new or empty folder"),
        (["{tmp}/none", "--out", "{tmp}/o"], "does not exist"),
        (["--out", "{tmp}/o"], "no photographs"),
        (["{photos}/gray.png", "--out", "{tmp}/o"], "no photograph to cut; skipped: in gray (1)"),
        (["{photos}/notes.txt", "--out", "{tmp}/o"], "skipped: not images (1)"),
        (["{photos}/sub", "--out", "{tmp}/o", "--test-photos", "x.png"], "'x.png' is no file name"),
        (["{photos}/sub/coffee.png", "--out", "{tmp}/o"], "falls to the"),
        (["{photos}/sub", "--out", "{tmp}/o", "--size", "0"], "--size 0 must be at least 1"),
        (["{photos}/sub", "--out", "{tmp}/o", "--longest", "9"], "at least 32, the --size"),
        (["{photos}/sub", "--out", "{tmp}/o", "--stride", "0"], "--stride 0 must be at least 1"),
        (["{photos}/sub", "--out", "{tmp}/o", "--per-photo", "0"], "--per-photo 0 must be"),
        (["{photos}/sub", "--out", "{tmp}/o", "--seed", "-1"], "--seed -1 must be"),
        (["{photos}/sub", "--out", "{tmp}/o", "--min-contrast", "nan"], "--min-contrast nan"),
        (["{photos}/sub", "--out", "{tmp}/o", "--longest", "many"], "--longest"),
    ],
)
def test_says_what_cannot_be_cut_in_one_line(photos, tmp_path, capsys, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert patches.main([word.format(photos=photos, tmp=tmp_path) for word in words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert not (tmp_path / "o").exists()


# --- runs read back ----------------------------------------------------------------------------


def test_a_run_is_read_back_to_its_bits(colored, dataset):
    run = load_run(colored)
    summary = json.loads((colored / "summary.json").read_text())
    assert tree_sha256(run.params) == summary["params_sha256"]
    assert run.config.recipe == "colorize"
    assert run.dataset.name == f"folder:{dataset}"
    output = run.model.apply({"params": run.params}, np.zeros((2, 8, 8, 1), np.float32))
    assert output.shape == (2, 8, 8, 3)


def test_any_recipe_is_read_back(noisy):
    run = load_run(noisy)
    assert run.config.devices == 2
    assert len(run.dataset.train) == 64
    assert str(run.task) == str(make_corruption(RECIPES["dense"][0]))
    summary = json.loads((noisy / "summary.json").read_text())
    assert tree_sha256(run.params) == summary["params_sha256"]


def break_file(name, text):
    def act(folder):
        path = folder / name
        path.unlink()
        if text is not None:
            path.write_text(text)

    return act


def lose_last_checkpoint(folder):
    last = max((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    last.rename(folder / "elsewhere")


def change_data(folder):
    config = json.loads((folder / "config.json").read_text())
    place = Path(config["dataset"].removeprefix("folder:"))
    changed = folder / "data"
    for split in ("train", "test"):
        for path in (place / split).iterdir():
            save(changed / split / path.name, 255 - np.asarray(Image.open(path)))
    config["dataset"] = f"folder:{changed}"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (break_file("config.json", None), "holds no run"),
        (break_file("config.json", "{"), "is damaged or cannot be read"),
        (
            break_file("summary.json", None),
            "continue it with python -m experiments.run",
        ),
        (break_file("summary.json", "[]"), "summary.json is damaged"),
        (lambda folder: (folder / "checkpoints").rename(folder / "x"), "has no checkpoints/"),
        (lose_last_checkpoint, "the last checkpoint of the run"),
        (change_data, "no checkpoint"),
    ],
)
def test_says_what_keeps_a_run_from_being_read(colored, tmp_path, act, message):
    folder = tmp_path / "run"
    shutil.copytree(colored, folder)
    act(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


# --- colours judged ----------------------------------------------------------------------------


def test_tints_are_the_means_of_what_gray_lacks():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (700, 4, 4, 3), np.uint8)  # more than a batch
    tint, by_level = colorize.tints(images)
    pixels = images.reshape(-1, 3) / 255
    gray = pixels @ colorize.LUMA
    np.testing.assert_allclose(tint, (pixels - gray[:, None]).mean(0), atol=1e-12)
    np.testing.assert_allclose(tint @ colorize.LUMA, 0, atol=1e-12)  # it adds no light
    at = np.rint(255 * gray) == 120
    np.testing.assert_allclose(by_level[120], (pixels[at] - gray[at, None]).mean(0), atol=1e-12)
    np.testing.assert_allclose(colorize.tints(images[:1])[1][0], colorize.tints(images[:1])[0])


def test_errors_are_those_of_scikit_image():
    truth = np.stack([photographs.astronaut()[:32, :32], photographs.coffee()[:32, :32]])
    noise = np.random.default_rng(0).normal(0, 0.1, truth.shape)
    truth = (truth / 255).astype(np.float32)
    guess = np.clip(truth + noise, 0, 1).astype(np.float32)
    found = colorize.errors(guess, truth)
    assert found["mse"] == pytest.approx(((guess - truth) ** 2).mean(), rel=1e-4)
    assert found["psnr"] == pytest.approx(-10 * np.log10(found["mse"]))
    expected = [
        structural_similarity(a, b, data_range=1, channel_axis=-1)
        for a, b in zip(guess, truth, strict=True)
    ]
    assert found["ssim"] == pytest.approx(np.mean(expected), abs=1e-4)
    # scikit-image scales Y to 16 .. 235 and the others to 16 .. 240.
    squares = (rgb2ycbcr(guess) - rgb2ycbcr(truth)) ** 2
    assert found["luma_mse"] == pytest.approx(squares[..., 0].mean() / 219**2, rel=1e-3)
    assert found["chroma_mse"] == pytest.approx(squares[..., 1:].mean() / 224**2, rel=1e-3)
    same = colorize.errors(truth, truth)
    assert (same["mse"], same["psnr"], same["chroma_mse"]) == (0, None, 0)


def test_guesses_are_what_their_names_say():
    images = photographs.astronaut()[:64].reshape(-1, 8, 8, 3)[:90]
    truth = images / np.float32(255)
    tint, by_level = colorize.tints(images)
    guesses = colorize.colourings(images, truth, tint, by_level)
    result = {name: colorize.errors(guess, truth) for name, guess in guesses.items()}
    assert list(result) == list(colorize.GUESSES)
    # Each knows more than the one before; the network here is one that knows all.
    chroma = [result[name]["chroma_mse"] for name in colorize.GUESSES[:3]]
    assert chroma == sorted(chroma, reverse=True)
    assert len(set(chroma)) == 3
    assert result["gray"]["luma_mse"] == pytest.approx(0, abs=1e-12)
    assert result["network"]["mse"] == pytest.approx(0, abs=1e-12)
    assert result["its colour on gray"]["mse"] == pytest.approx(0, abs=1e-12)
    darker = colorize.colourings(images, truth * np.float32(0.5) + 0.25, tint, by_level)
    colour = darker["its colour on gray"]
    inside = ((colour > 0) & (colour < 1)).all(-1)
    np.testing.assert_allclose(
        colorize.luma(colour)[inside], colorize.luma(truth)[inside], atol=1e-6
    )


def test_colorize_judges_the_run_as_it_judged_itself(colored, capsys):
    assert colorize.main([str(colored), "--no-cache"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((colored / "colorize.json").read_text())
    summary = json.loads((colored / "summary.json").read_text())["test"]["grayscale()"]
    for name in ("mse", "ssim"):
        assert result["test"]["network"][name] == pytest.approx(summary[name], rel=1e-4)
    for name in colorize.GUESSES:
        assert name in printed
        assert f"{result['test'][name]['mse']:.5f}" in printed
    with Image.open(colored / "figures" / "colorize.png") as image:
        image.verify()


def test_colorize_refuses_what_it_cannot_judge(noisy, tmp_path, capsys):
    assert colorize.main([str(noisy), "--no-cache"]) == 2
    said = capsys.readouterr().err
    assert "undoes gaussian" in said and said.count("\n") == 1
    for words in ([], [str(tmp_path)], [str(noisy), "--what"]):
        assert colorize.main([*words, "--no-cache"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize("command", ["patches", "colorize"])
def test_helps(command):
    words = [sys.executable, "-m", f"benchmarks.{command}", "--help"]
    helped = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert f"python -m benchmarks.{command}" in helped.stdout
