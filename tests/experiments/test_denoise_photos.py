"""Photographs in `denoise`: which network is taken, large images in windows, and the flags."""

import csv
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.restore import networks
from jaxdae import metrics, pretrained, tiling
from jaxdae.data import load
from tests.experiments.denoising import command, pixels, save, shipped_networks

DIGITS = load("mnist").test.images[:5]
PHOTO = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
GRAY = PHOTO[..., 0]
SIGMA = 0.2

jax.devices()  # all of them, before a command asks for one


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The folder of the networks that come with the package, with small ones for photographs."""
    return shipped_networks(tmp_path_factory.mktemp("weights"), 30)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "FOLDER", shipped)
    monkeypatch.setattr(networks, "has_bfloat16", lambda: False)
    return tmp_path


def expected(name, images, sigma=None, strength=1):
    """What a network makes of images in [0, 1]; it estimates the noise level without sigma."""
    model, params = pretrained.load(name, pretrained.FOLDER)
    images, variables = np.asarray(images, np.float32), {"params": params}
    if sigma is None and model.estimates:
        sigma = jax.jit(model.apply, static_argnames="method")(
            variables, images, method="noise_level"
        )
    sigma = None if sigma is None else strength * sigma
    return np.asarray(jax.jit(model.apply)(variables, images, sigma))


def check(path, values, top=255):
    values = np.clip(values, 0, 1).reshape(pixels(path).shape)
    np.testing.assert_allclose(pixels(path) / top, values, atol=0.5 / top + 1e-4)


def test_each_image_decides_for_its_network(here, capsys):
    save("in/digit.png", DIGITS[0, ..., 0])
    save("in/gray.png", GRAY)
    save("in/colour.png", PHOTO)
    save("in/equal.png", np.dstack([GRAY] * 3))
    save("in/wide.png", GRAY.astype(np.uint16) * 257)
    save("in/small.png", PHOTO[:28, :28])
    save("in/one.png", PHOTO[:1, :1])
    save("in/clear.png", PHOTO.repeat(2, 2)[..., 2:])  # alpha
    np.save("in/digits.npy", DIGITS)
    np.save("in/photos.npy", PHOTO[None, :30, :40] / np.float32(255))
    assert command("in", "--out", "out") == 0
    assert pixels("out/equal.png").shape == (45, 70, 3) and pixels("out/gray.png").ndim == 2
    colour, gray = PHOTO / 255, GRAY[..., None] / 255
    check("out/digit.png", expected("digits-blind", DIGITS[:1] / 255))
    check("out/gray.png", expected("photo-gray", gray[None]))
    check("out/wide.png", expected("photo-gray", gray[None]), 65535)
    check("out/colour.png", expected("photo", colour[None]))
    check("out/small.png", expected("photo", colour[None, :28, :28]))
    check("out/one.png", expected("photo", colour[None, :1, :1]))
    equal = expected("photo-gray", gray[None])
    check("out/equal.png", np.repeat(equal, 3, 3))
    clear = pixels("out/clear.png")
    np.testing.assert_array_equal(clear[..., 3], PHOTO[..., 2])
    found = np.load("out/digits.npy")
    np.testing.assert_allclose(found / 255, expected("digits-blind", DIGITS / 255), atol=0.003)
    found = np.load("out/photos.npy")
    values = np.clip(expected("photo", colour[None, :30, :40]), 0, 1)
    np.testing.assert_allclose(found, values, atol=1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split(" by ")[1] == (
        "photo (5 images), digits-blind (6 images), photo-gray (3 images); results in out/"
    )
    digits, gray, colour = sorted(lines[:-1])
    assert digits.startswith("digits-blind: Removes noise N(0.5")
    assert gray == "photo-gray: Removes noise from 1 channels."
    assert colour == "photo: Removes noise from 3 channels."


@pytest.mark.parametrize("kind", ["colour", "gray", "equal", "wide", "separate"])
def test_large_images_are_as_if_denoised_whole(here, monkeypatch, kind):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (211, 333, 3), np.uint8)
    name, top, words = "photo", 255, []
    if kind != "colour":
        name = "photo-gray"
    if kind == "gray":
        image = image[..., 0]
    if kind == "equal":
        image = image[..., :1].repeat(3, 2)
    if kind == "wide":
        image, top = rng.integers(0, 65536, image.shape[:2], np.uint16), 65535
    if kind == "separate":
        words = ["--model", "photo-gray"]
    save("in/a.png", image)
    sigma = SIGMA if kind == "gray" else None
    words += [] if sigma is None else ["--sigma", sigma]
    x = (image / top).astype(np.float32).reshape(1, *image.shape[:2], -1)
    whole = expected(name, x if name == "photo" else x.transpose(3, 1, 2, 0), sigma)
    whole = whole if name == "photo" else whole.transpose(3, 1, 2, 0)
    windows, made = tiling.windows, []

    def small_windows(*arguments):
        made.append(windows(*arguments, most=80 * 90))
        return made[-1]

    monkeypatch.setattr(tiling, "windows", small_windows)
    assert command("in", "--out", "out", *words) == 0
    assert len(made[0]) > 8
    check("out/a.png", whole, top)


def test_sigma_strength_and_blend(here):
    save("a.png", PHOTO)
    x = PHOTO[None] / 255
    assert command("a.png", "--out", "half", "--strength", 0.5) == 0
    check("half/a.png", expected("photo", x, strength=0.5))
    assert np.abs(expected("photo", x, strength=0.5) - expected("photo", x)).mean() > 0.01
    assert command("a.png", "--out", "both", "--strength", 2, "--sigma", SIGMA) == 0
    check("both/a.png", expected("photo", x, 2 * SIGMA))
    assert command("a.png", "--out", "known", "--sigma", SIGMA) == 0
    check("known/a.png", expected("photo", x, SIGMA))
    assert command("a.png", "--out", "mixed", "--sigma", SIGMA, "--blend", 0.25) == 0
    check("mixed/a.png", 0.75 * np.clip(expected("photo", x, SIGMA), 0, 1) + 0.25 * x)
    assert command("a.png", "--out", "same", "--blend", 1) == 0
    np.testing.assert_array_equal(pixels("same/a.png"), PHOTO)
    for flag in ("--tile", "--fit"):
        words = ["a.png", "--model", "digits-blind", flag]
        assert command(*words, "--out", f"all{flag}") == 0
        assert command(*words, "--blend", 0.5, "--out", f"half{flag}") == 0
        whole = pixels(f"all{flag}/a.png").astype(int)
        assert np.abs((whole + PHOTO) / 2 - pixels(f"half{flag}/a.png")).max() <= 1


def test_flags_that_a_network_cannot_use_are_refused(here, capsys):
    save("in/digit.png", DIGITS[0, ..., 0])
    save("in/photo.png", PHOTO)
    for words, part in (
        (["--model", "digits-blind", "--sigma", 0.1], "--sigma has no use: digits-blind takes no"),
        (["--model", "digits-blind", "--strength", 2], "--strength has no use: digits-blind"),
        (["--model", "photo", "--tile"], "--tile has no use: photo takes images of any size"),
        (["--fit"], "--fit is for networks of one size, but none is named"),
        (["--sigma", -1], "--sigma -1.0 must be finite"),
        (["--sigma", "nan"], "--sigma nan must be finite"),
        (["--strength", "inf"], "--strength inf must be finite"),
        (["--blend", 1.5], "--blend 1.5 must be from 0 to 1"),
        (["--blend", "nan"], "--blend nan must be from 0 to 1"),
    ):
        assert command("in", "--out", "out", *words) == 2
        printed = capsys.readouterr()
        assert part in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    # Where each image decides, it is an error of that image.
    assert command("in", "--out", "out", "--sigma", 0.1) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "digit.png" in errors[0] and "takes no noise level" in errors[0]
    assert [path.name for path in Path("out").iterdir()] == ["photo.png"]


def rows(folder):
    with open(Path(folder, metrics_file := "metrics.csv"), newline="") as file:
        assert metrics_file
        return {
            row.pop("image"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)
        }


def test_noise_references_and_pictures(here):
    save("in/colour.png", PHOTO)
    save("in/equal.png", np.dstack([GRAY] * 3))
    save("in/gray.png", GRAY)
    words = ["--noise-sigma", SIGMA, "--side-by-side", "side"]
    assert command("in", "--out", "out", *words) == 0
    found = rows("out")
    assert set(found) == {"colour.png", "equal.png", "gray.png"}
    for name, row in found.items():
        noisy = pixels(f"side/{name}.png").astype(float)[:, :70]
        noisy = noisy - (PHOTO if noisy.ndim == 3 else GRAY)
        assert abs(noisy.mean()) < 3 and 20 < noisy.std() < 51  # its mean is 0; some is clipped
        clean = pixels(f"in/{name}").reshape(45, 70, -1)
        after = metrics.of_image(pixels(f"out/{name}").reshape(45, 70, -1), clean)
        assert row["mse_after"] == pytest.approx(after["mse"], rel=0.01)
    # A gray reference for gray in RGB, and the other way round.
    save("clean/colour.png", PHOTO)
    save("clean/equal.png", GRAY)
    save("clean/gray.png", np.dstack([GRAY] * 3))
    assert command("in", "--reference", "clean", "--out", "compared") == 0
    assert all(row["mse_before"] == 0 for row in rows("compared").values())


def test_bombs_are_refused_and_the_flag_lifts_it(here, capsys):
    save("in/a.webp", np.zeros((500, 500, 3), np.uint8), lossless=True)
    save("in/b.png", PHOTO)
    np.savez_compressed("in/c.npz", x=np.zeros((2, 900, 900, 1), np.uint8))
    assert command("in", "--out", "out", "--max-pixels", 3000) == 2
    errors = capsys.readouterr().err.splitlines()
    for error, name, most in zip(errors, ("a.webp", "c.npz"), (250_000, 810_000), strict=False):
        assert name in error
        assert error.endswith(f"cut or shrink it, or give --max-pixels {most} if you trust it")
    assert len(errors) == 3 and [path.name for path in Path("out").iterdir()] == ["b.png"]
    assert command("in", "--out", "out", "--max-pixels", 810_000, "--skip-existing") == 0
    assert not np.load("out/c.npz")["x"].any()
    assert command("in", "--out", "out", "--max-pixels", 0) == 2
    assert "--max-pixels 0 must be at least 1" in capsys.readouterr().err


def test_8_bits_are_denoised_in_bfloat16(here, monkeypatch):
    save("in/a.png", PHOTO)
    save("in/b.png", GRAY.astype(np.uint16) * 257)
    for out in ("wide", "narrow"):
        monkeypatch.setattr(networks, "has_bfloat16", lambda out=out: out == "narrow")
        assert command("in", "--sigma", SIGMA, "--out", out) == 0
    difference = np.abs(pixels("wide/a.png").astype(int) - pixels("narrow/a.png"))
    assert 0 < difference.mean() < 0.5 and difference.max() <= 4
    np.testing.assert_array_equal(pixels("wide/b.png"), pixels("narrow/b.png"))
