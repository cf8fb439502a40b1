"""The classical peers: the noise's mean and its inverse, the tuning, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import denoisers
from benchmarks.denoisers import (
    DENOISERS,
    Denoiser,
    Ends,
    declip,
    denoise,
    expected_ends,
    inverse_curve,
    main,
    monotone_curve,
    noise_deviation,
    response,
    restore,
    tune,
    workers,
)
from jaxdae.corruption import gaussian
from jaxdae.data import load
from jaxdae.evaluation import corrupted

SIGMAS = [0.25, 0.5, 1.0]


@pytest.fixture(scope="module")
def pair():
    clean, noisy = corrupted(gaussian(0.5), load("mnist").train.images[:6])
    return np.asarray(clean[..., 0], float), np.asarray(noisy[..., 0], float)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("ends", [Ends(), Ends(-0.3, 1.4)])
def test_the_response_is_the_mean_of_what_the_corruption_gives(sigma, ends):
    clean = np.array([0.0, 0.2, 0.7, 1.0])
    image = np.broadcast_to(clean[:, None, None, None], (4, 400, 400, 1)) * 255
    exact, noisy = corrupted(gaussian(sigma), image.round().astype(np.uint8))
    values = declip(noisy, ends)
    error = 5 * values.std() / 400
    np.testing.assert_allclose(
        response(exact[:, 0, 0, 0], sigma, ends), values.mean((1, 2, 3)), atol=error
    )
    assert noise_deviation(sigma, ends) == pytest.approx(values[0].std(), rel=0.02)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_inverse_brings_clean_values_back(sigma):
    clean = np.linspace(0, 1, 301)
    for ends in (Ends(), Ends(-0.3, 1.4)):
        seen = response(clean, sigma, ends)
        assert (np.diff(seen) > 0).all()
        np.testing.assert_allclose(np.interp(seen, *inverse_curve(sigma, ends)), clean, atol=2e-4)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_ends_are_the_mean_of_what_was_clipped(sigma):
    clean = np.random.default_rng(0).choice([0.0, 0.5, 1.0], (500, 500), p=[0.8, 0.05, 0.15])
    unclipped = clean + np.random.default_rng(1).normal(0.5, sigma, clean.shape)
    low, high = expected_ends(clean, sigma)
    assert low == pytest.approx(unclipped[unclipped <= 0].mean(), abs=0.02)
    assert high == pytest.approx(unclipped[unclipped >= 1].mean(), abs=0.02)


def test_the_monotone_curve_never_falls_and_fits_what_it_can():
    estimates = np.random.default_rng(0).random((9, 28, 28))
    estimates[estimates > 0.8] = 1  # as clipping does
    x, y = monotone_curve(estimates, estimates**2)
    assert (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
    np.testing.assert_allclose(np.interp(estimates, x, y), estimates**2, atol=0.01)
    _, y = monotone_curve(estimates, 1 - estimates)
    np.testing.assert_allclose(y, (1 - estimates).mean())


def test_tuning_picks_the_best_of_the_grid(pair):
    clean, noisy = pair
    toy = Denoiser(
        lambda image, shift: np.roll(image, shift, 1),
        lambda noise: [{"shift": shift} for shift in (0, 2, -3, 1)],
    )
    best = tune(toy, np.roll(noisy, 3, 2), clean, 0.5)
    assert {name: choice.parameters for name, choice in best.items()} == {
        "inverse": {"shift": -3},
        "monotone": {"shift": -3},
    }
    for choice in best.values():
        restored, seconds = restore(toy, choice, np.roll(noisy, 3, 2))
        assert np.mean((restored - clean) ** 2) == pytest.approx(choice.error, rel=1e-4)
        assert seconds >= 0


@pytest.mark.parametrize("name", DENOISERS)
def test_each_denoiser_denoises(pair, name):
    for module in DENOISERS[name].needs:
        pytest.importorskip(module)
    clean, noisy = pair
    # A few of the grid are enough; those in the middle are near the best.
    some = replace(DENOISERS[name], grid=lambda noise: DENOISERS[name].grid(noise)[4::8] or [{}])
    if name == "median":
        some = replace(some, grid=lambda noise: [{"radius": 1, "shape": "square"}])
    best = tune(some, noisy[:2], clean[:2], 0.5)
    restored, _ = restore(some, best["monotone"], noisy[2:])
    assert restored.dtype == np.float32 and restored.shape == (4, 28, 28)
    assert restored.min() >= 0 and restored.max() <= 1
    pixelwise = tune(DENOISERS["pixelwise"], noisy[:2], clean[:2], 0.5)["monotone"].error
    error = np.mean((restored - clean[2:]) ** 2)
    assert error < (0.5 * np.mean((noisy - clean) ** 2) if name == "pixelwise" else 0.8 * pixelwise)


@pytest.mark.slow
def test_processes_give_what_one_gives(pair):
    _, noisy = pair
    function, parameters = DENOISERS["gaussian"].function, {"width": 1.0}
    with workers(2) as run:
        found, _ = denoise(function, parameters, noisy, run)
    np.testing.assert_array_equal(found, denoise(function, parameters, noisy)[0])


def test_the_command_writes_figures_and_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxdae.recognition.digit_recovery", lambda images, labels: 0.5)
    monkeypatch.setattr(denoisers, "find_spec", lambda name: None if name == "bm3d" else name)
    monkeypatch.setattr(denoisers, "version", lambda name: "1.0")
    json_, arrays = tmp_path / "peers.json", tmp_path / "peers"
    counts = ["--train-images", "4", "--test-images", "6", "--sigmas", "0.5"]
    words = [*counts, "--methods", "gaussian", "bm3d", "median"]
    reports = []
    for _ in range(2):
        assert main([*words, "--json", str(json_), "--arrays", str(arrays)]) == 0
        reports.append(json.loads(json_.read_text()))
        for row in reports[-1]["rows"]:
            row.pop("seconds_per_image", None)
    assert reports[0] == reports[1]
    assert "bm3d is left out, for want of bm3d: pip install" in capsys.readouterr().err
    rows = {row["method"]: row for row in reports[0]["rows"]}
    assert list(rows) == ["noisy", "gaussian", "median"]
    for row in rows.values():
        assert row["sigma"] == 0.5 and row["images"] == 6 and row["accuracy"] == 0.5
        assert row["first"] == {name: row[name] for name in row["first"]}  # of all, when few
    assert rows["gaussian"]["mse"] < 0.2 * rows["noisy"]["mse"]
    assert 0.5 <= rows["gaussian"]["parameters"]["width"] <= 2.3
    assert rows["gaussian"]["train_images"] == 4
    with np.load(arrays) as shown:
        assert set(shown) == {"clean", "noisy_sigma0.5", "gaussian_sigma0.5", "median_sigma0.5"}
        assert all(shown[name].shape == (6, 28, 28) for name in shown)
        error = np.mean((shown["gaussian_sigma0.5"] - shown["clean"]) ** 2)
    assert error == pytest.approx(rows["gaussian"]["mse"], rel=1e-4)


@pytest.mark.parametrize(
    "words",
    [
        "--sigmas 0",
        "--sigmas nan",
        "--sigmas much",
        "--methods magic",
        "--train-images 0",
        "--workers 0",
        "--json no/such/folder/file",
        "--arrays .",
        "--unknown",
    ],
)
def test_bad_flags_are_told_in_one_line(words, capsys):
    assert main(words.split()) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and complaint.count("\n") == 1
    assert words.split()[0] in complaint
