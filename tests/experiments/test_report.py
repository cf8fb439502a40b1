"""The page of a run, and runs beside each other: of small runs of all kinds, seen in a browser."""

import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from experiments import compare, report
from experiments.common.flags import parse, to_command
from experiments.reports import comparison
from experiments.reports import latent as latents
from experiments.reports import material as materials
from experiments.reports import page as pages
from experiments.reports import report as pages_report
from experiments.run import main as train
from experiments.runs.finished import load_run
from jaxdae import figures
from jaxdae.data import Dataset, Split
from jaxdae.errors import InputError
from jaxdae.evaluation import Evaluator, decode, encode, make_reconstruct, reconstruct
from jaxdae.recipes import RECIPES
from tests.browser import chromium, needs_chromium, see

QUIET = ["--no-cache", "--no-progress", "--devices", "1"]
DIGITS = ["--train-images", "512", "--test-images", "64", "--features", "4", "8", "--epochs", "2"]

jax.devices()  # all of them, before a command asks for one


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def photos(place):
    """Photographs in colour, wider than high, without labels: 8 to train on, 3 to test on."""
    pixels = photographs.coffee()
    for split, count in (("train", 8), ("test", 3)):
        (place / "photos" / split).mkdir(parents=True)
        for i in range(count):
            tile = pixels[20 * i : 20 * i + 12, 30 * i : 30 * i + 18]
            Image.fromarray(tile).save(place / "photos" / split / f"{i}.png")
    return place / "photos"


@pytest.fixture(scope="module")
def digits(place):
    """A run of the default recipe on a few digits."""
    assert train([*DIGITS, *QUIET, "--out", str(place / "digits")]) == 0
    return place / "digits"


@pytest.fixture(scope="module")
def material(digits):
    return materials.with_errors(materials.read(digits))


@pytest.fixture(scope="module")
def color(place, photos):
    """A run without a latent, gray images in and colours out."""
    words = ["--recipe", "colorize", "--features", "4", "8", "--epochs", "1", *QUIET]
    words += ["--dataset", f"folder:{photos}", "--batch-size", "4", "--no-centering"]
    assert train([*words, "--out", str(place / "color")]) == 0
    return place / "color"


@pytest.fixture(scope="module")
def blind(place, photos):
    """A run at a range of sigma, on images in colour, with a latent that is an image."""
    words = ["--architecture", "maxpool", "--features", "4", "4", "--sigma", "0.1", "0.5", *QUIET]
    words += ["--dataset", f"folder:{photos}", "--batch-size", "4", "--epochs", "1"]
    words += ["--no-centering"]
    assert train([*words, "--out", str(place / "blind")]) == 0
    return place / "blind"


@pytest.fixture(scope="module")
def masked(place):
    """A run without a sigma, and without figures."""
    words = ["--recipe", "dense", "--features", "8", "--corruption", "masking", "--epochs", "1"]
    words += ["--train-images", "256", "--test-images", "64", "--no-figures", *QUIET]
    assert train([*words, "--out", str(place / "masked")]) == 0
    return place / "masked"


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], ""
        text = path.read_text() if isinstance(path, Path) else path
        self.feed(re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.text += data

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def pictures(page):
    for image in page.all("img"):
        head, _, code = image["src"].partition("base64,")
        assert head in ("data:image/png;", "data:image/webp;")
        from base64 import b64decode

        yield image, Image.open(io.BytesIO(b64decode(code)))


def sections(page):
    return [section["id"] for section in page.all("section")]


# --- the page of a run -------------------------------------------------------------------------


def check(path):
    """What holds for every page: it is whole, and says what it shows."""
    page = Page(path)
    assert page.all("meta")[1] == {
        "name": "viewport",
        "content": "width=device-width, initial-scale=1",
    }
    assert page.all("img")
    for image, picture in pictures(page):
        picture.load()
        assert (str(picture.width), str(picture.height)) == (image["width"], image["height"])
        assert len(image["alt"]) > 10
    for drawing in page.all("svg"):
        assert drawing["role"] == "img"
        assert len(drawing["aria-label"]) > 10
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    pointed = [
        attributes[key].removeprefix("#")
        for _, attributes in page.elements
        for key in ("href", "xlink:href")
        if attributes.get(key, "").startswith("#")
    ]
    assert pointed and set(pointed) <= set(names)
    assert [name for name in pointed if name in sections(page)] == sections(page)
    # Nothing is fetched: an address is one that holds its content, or of a place in the page.
    for _, attributes in page.elements:
        for key in ("src", "href", "xlink:href"):
            assert attributes.get(key, "data:").startswith(("data:", "#"))
    assert not re.search(r"url\((?!#)|@import", path.read_text())
    return page


def test_a_run_writes_a_page_with_its_results(digits):
    page = check(digits / "report.html")
    assert sections(page) == list(pages_report.CONTENTS)
    summary = json.loads((digits / "summary.json").read_text())
    for row in summary["test"].values():
        assert f"{row['mse']:.5f}" in page.text
        assert f"{row['accuracy']:.2%}" in page.text
    for name, version in summary["versions"].items():
        assert name in page.text and version in page.text
    flags = to_command(load_run(digits).config).split("experiments.run ")[1]
    assert flags in re.sub(r"\s+", " ", page.text)
    assert f"{pages.duration(summary['train_seconds'])}" in page.text
    alts = [image["alt"] for image in page.all("img")]
    assert sum(alt.startswith("Dimension") for alt in alts) == 16
    assert sum(alt.startswith("From image") for alt in alts) == 5
    assert sum(alt.startswith("Output of the network: mean") for alt in alts) == 4
    assert any(alt.startswith("4 filters of 3 × 3") for alt in alts)


def test_the_page_written_again_is_the_same_to_the_byte(digits, capsys):
    path = digits / "report.html"
    before = path.read_bytes()
    path.write_text("another")
    assert report.main([str(digits), "--no-cache"]) == 0
    assert path.read_bytes() == before
    assert f"{path}: written" in capsys.readouterr().out


def test_worst_and_best_are_of_the_errors_that_the_network_makes(digits, material):
    run = material.run
    clean, _, output = reconstruct(run.model, run.params, run.task, run.dataset.test.images)
    errors = ((output - clean) ** 2).mean((1, 2, 3))
    order = np.argsort(errors)
    alts = [image["alt"] for image in Page(digits / "report.html").all("img")]
    shown = [
        (int(found[1]), int(found[2]), float(found[3]))
        for alt in alts
        if (found := re.match(r"Image (\d+), label (\d).* error of ([\d.]+)", alt))
    ]
    assert [i for i, _, _ in shown] == [*order[::-1][:10], *order[:10]]
    for i, label, error in shown:
        assert label == run.dataset.test.labels[i]
        assert error == pytest.approx(errors[i], abs=6e-5)


@pytest.mark.parametrize(
    ("name", "absent"),
    [("color", {"sigma", "latent", "traversals", "interpolations"}), ("blind", set())],
)
def test_any_run_has_a_page_without_what_there_is_not(request, name, absent):
    page = check(request.getfixturevalue(name) / "report.html")
    assert sections(page) == [part for part in pages_report.CONTENTS if part not in absent]
    assert "label" not in page.text
    assert "RGBA" in {picture.mode for _, picture in pictures(page)}


def test_no_figures_no_page_until_it_is_asked_for(masked):
    assert not (masked / "report.html").exists()
    assert not (masked / "figures").exists()
    assert report.main([str(masked), "--no-cache"]) == 0
    page = check(masked / "report.html")
    assert sections(page) == [part for part in pages_report.CONTENTS if part != "sigma"]
    assert not (masked / "figures").exists()


def test_a_single_image_has_neither_worst_nor_best(material):
    split = Split(material.run.dataset.test.images[:1], material.run.dataset.test.labels[:1])
    dataset = Dataset("one", material.run.dataset.train, split)
    one = material._replace(run=material.run._replace(dataset=dataset), errors=material.errors[:1])
    page = Page(
        pages_report.page(one, materials.latent_vectors(one), materials.restorer(one), Path("one"))
    )
    absent = {"ranked", "latent", "traversals", "interpolations"}
    assert sections(page) == [part for part in pages_report.CONTENTS if part not in absent]


@pytest.mark.slow
def test_embeddings_are_shown_beside_the_principal_components(material, monkeypatch):
    latent = materials.latent_vectors(material)
    titles = [title for title, _ in latents.latent_figures(material, latent, "tsne")]
    assert titles == ["Principal components", "t-SNE"]
    points = latents.embedded(latent, "tsne", seed=0)
    assert points.shape == (64, 2)
    np.testing.assert_array_equal(points, latents.embedded(latent, "tsne", seed=0))

    class Umap:
        def __init__(self, **options):
            assert (options["random_state"], options["n_neighbors"]) == (0, 15)

        def fit_transform(self, latent):
            return latent[:, :2]

    module = ModuleType("umap")
    module.UMAP, module.__spec__ = Umap, ModuleSpec("umap", None)
    monkeypatch.setitem(sys.modules, "umap", module)
    latents.check_embedding("umap")
    (_, (title, svg)) = latents.latent_figures(material, latent, "umap")
    assert title == "UMAP" and "64 test images: UMAP" in svg
    with pytest.raises(InputError, match="needs at least 20 images, and there are 19"):
        latents.embedded(latent[:19], "tsne", seed=0)


def test_says_what_keeps_a_page_from_being_written(digits, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "digits"
    shutil.copytree(digits, folder)
    before = (folder / "report.html").read_bytes()

    def refused(words, message, command=report):
        assert command.main([*words, "--no-cache"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        assert message in said

    refused([], "needs the folder of a finished run")
    refused([str(tmp_path)], "holds no run")
    refused([str(folder), "--embedding", "pcb"], "--embedding")
    for text in ("", "epoch,step\n1,2\n", "epoch,train_loss,test_loss\n1,a,b\n"):
        (folder / "metrics.csv").write_text(text)
        refused([str(folder)], "metrics.csv is missing or damaged")
    (folder / "summary.json").unlink()
    refused([str(folder)], "is not finished: continue it with python -m experiments.run --resume")
    assert (folder / "report.html").read_bytes() == before
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused([str(folder), "--embedding", "umap"], 'pip install "jaxdae[umap]"')


def test_typed_is_what_starts_the_run():
    config, _ = RECIPES["blind"]
    words = to_command(config).split("experiments.run ")[1].split()
    assert words == ["--recipe", "blind"]
    words = [
        "--recipe",
        "unet",
        "--dataset",
        "npz:x.npz",
        "--sigma",
        "0.1",
        "0.2",
        "--no-centering",
    ]
    wanted = parse(words).config
    assert parse(to_command(wanted).split("experiments.run ")[1].split()).config == wanted


def test_times_are_written_as_they_are_read():
    times = {
        5.04: "5.0 s",
        99.94: "99.9 s",
        125: "2 min 5 s",
        3599.6: "1 h 0 min",
        12000: "3 h 20 min",
    }
    assert {seconds: pages.duration(seconds) for seconds in times} == times


# --- what is computed for it -------------------------------------------------------------------


def test_images_are_restored_as_the_evaluator_sees_them(material):
    run, at = material.run, material.task_at
    images, sigma = run.dataset.test.images, 0.7
    chosen = np.array([5, 60, 2])
    restore = make_reconstruct(run.model, at)
    clean, given, restored = restore(run.params, images[chosen], chosen, np.float32(sigma))
    np.testing.assert_allclose(clean, images[chosen] / np.float32(255), atol=1e-7)
    errors = Evaluator(run.model, at, images).per_image(run.params, sigma)["mse"]
    found = ((np.asarray(restored) - clean) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found, errors[chosen], rtol=1e-4)
    whole = reconstruct(run.model, run.params, at(sigma), images)
    np.testing.assert_allclose(given, whole[1][chosen], atol=1e-6)


@pytest.mark.parametrize("name", ["digits", "blind"])
def test_latents_decode_to_what_the_network_restores(request, name):
    run = load_run(request.getfixturevalue(name))
    images = run.dataset.test.images
    latent = encode(run.model, run.params, run.task, images)
    restored = reconstruct(run.model, run.params, run.task, images)[2]
    np.testing.assert_allclose(
        decode(run.model, run.params, latent, images.shape[1:3]), restored, atol=1e-5
    )


def test_sweeps_keep_all_dimensions_but_one(material, monkeypatch):
    latent = materials.latent_vectors(material)
    asked = []

    def decoded(material, vectors):
        asked.append(vectors)
        return np.zeros((*vectors.shape[:2], 28, 28, 1), np.float32)

    monkeypatch.setattr(latents, "decoded", decoded)
    traversals, interpolations = latents.lines(material, latent, materials.restorer(material))
    (vectors,) = asked
    assert traversals["all"] and vectors.shape == (16 + len(interpolations), latents.STEPS, 16)
    for i, row in enumerate(vectors[:16]):
        others = np.delete(row, i, 1)
        np.testing.assert_array_equal(others, np.tile(np.delete(latent[0], i), (len(row), 1)))
        low, high = np.quantile(latent[:, i], [0.02, 0.98])
        np.testing.assert_allclose(row[:, i], np.linspace(low, high, len(row)), rtol=1e-5)
    pairs = latents.pairs_of(material.run.dataset.test.labels, len(latent))
    for (a, b), row in zip(pairs, vectors[16:], strict=True):
        assert material.run.dataset.test.labels[a] != material.run.dataset.test.labels[b]
        np.testing.assert_allclose(row[[0, -1]], latent[[a, b]], rtol=1e-5)
        np.testing.assert_allclose(row[4], (latent[a] + latent[b]) / 2, rtol=1e-4, atol=1e-5)


# --- figures for pages -------------------------------------------------------------------------


def test_a_figure_takes_the_colours_of_its_page_and_keeps_its_numbers():
    history = [{"epoch": i, "train_loss": 0.1 / i, "test_loss": 0.123456 / i} for i in (1, 2, 3)]
    svg = figures.inline('curves of "a"', figures.learning_curves, history, "mse")
    assert 'aria-label="curves of &quot;a&quot;"' in svg
    assert "test 0.0412" in svg and "train 0.0333" in svg
    assert "var(--series-0, " in svg and "var(--series-1, " in svg
    outside = re.sub(r"var\([^)]*\)", "", svg)
    assert not re.search(r"#[0-9a-f]{6}\b(?!\")", re.sub(r'(url\(|href=")#[^)"]*', "", outside))
    assert not re.search(r"\.\d{3}", " ".join(re.findall(r"<[^>]*>", svg)))
    assert svg == figures.inline('curves of "a"', figures.learning_curves, history, "mse")
    names = re.findall(r' id="([^"]*)"', svg)
    other = figures.inline("others", figures.learning_curves, history, "mse")
    assert not set(names) & set(re.findall(r' id="([^"]*)"', other))


def test_many_points_are_one_line_of_dots():
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(400, 3)), np.repeat([3, 7], 200)
    svg = figures.inline("points", figures.latent_space, points, labels, title="left out")
    dots = re.findall(r'<path d="((?:M[\d.]+ [\d.]+h0)+)"[^>]*style="([^"]*)"', svg)
    assert [path.count("h0") for path, _ in dots] == [200, 200]
    assert "--series-0" in dots[0][1] and "--series-1" in dots[1][1]
    assert "left out" not in svg


def test_small_images_are_enlarged_to_the_bit_and_large_ones_shrunk():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 5, 4, 1)) / np.float32(255)
    picture = Image.open(io.BytesIO(figures.strip([images, images], side=20)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "LA", (3 * 16 + 4, 2 * 20 + 2))
    pixels = np.asarray(picture)
    for row, top in enumerate((0, 22)):
        for column, left in enumerate((0, 18, 36)):
            part = pixels[top : top + 20, left : left + 16]
            np.testing.assert_array_equal(part[::4, ::4, 0] / 255, images[column, ..., 0], str(row))
            assert part[..., 1].min() == 255
    assert pixels[20:22].max() == 0
    large = np.ones((2, 300, 150, 3), np.float32) * [1, 0.5, 0]
    picture = Image.open(io.BytesIO(figures.strip([large], side=100)))
    assert picture.size == (2 * 50 + 3, 100)
    assert np.abs(np.asarray(picture.convert("RGB"))[50, 25] - [255, 128, 0.0]).max() < 8
    gray = figures.strip([large[..., :1], large], side=100)  # rows of gray beside rows in colour
    assert Image.open(io.BytesIO(gray)).size == (2 * 50 + 3, 203)


def test_filters_show_sign_and_strength():
    kernels = np.zeros((2, 2, 1, 3), np.float32)
    kernels[0, 0, 0], kernels[1, 1, 0] = (2, -4, 1e-9), (-1, 1, 0)
    pixels = np.asarray(Image.open(io.BytesIO(figures.filters(kernels, columns=2, side=4))))
    assert pixels.shape == (2 * 4 + 4, 2 * 4 + 4, 4)
    orange, blue = pixels[0, 0], pixels[0, 8]
    assert orange[0] > orange[2] and blue[2] > blue[0]
    assert orange[3] == blue[3] == 255
    assert pixels[3, 3, 3] == pytest.approx(128, abs=1)
    assert pixels[0, 3, 3] == 0
    colored = np.zeros((2, 2, 3, 1), np.float32)
    colored[0, 0, 0] = 3
    pixels = np.asarray(Image.open(io.BytesIO(figures.filters(colored, side=4))))
    assert pixels[0, 0].tolist() == [255, 128, 128, 255]
    assert pixels[3, 3].tolist() == [128, 128, 128, 255]


# --- runs beside each other --------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(place):
    words = ["--recipe", "dense", "--train-images", "512", "--test-images", "64", "--epochs", "3"]
    words += ["--features", "8", "--sigma", "0.9", "--eval-sigmas", "0.5", *QUIET]
    out = place / "second"
    assert train([*words, "--no-figures", "--out", str(out)]) == 0
    return out


def test_compares_runs_in_the_terminal_and_on_a_page(digits, second, tmp_path, capsys):
    out = tmp_path / "new" / "both.html"
    words = [str(digits), str(second), "--out", str(out), "--no-cache"]
    assert compare.main(words) == 0
    printed = capsys.readouterr().out
    page = check(out)
    assert sections(page) == list(comparison.CONTENTS)
    for folder in (digits, second):
        row = json.loads((folder / "summary.json").read_text())["test"]["0.5"]
        assert f"{row['mse']:.5f}" in printed
        assert f"{row['mse']:.5f}" in page.text
        assert folder.name in printed and folder.name in page.text
    assert "mse at 0.25" not in printed  # at which one of them was not tested
    assert max(map(len, printed.splitlines())) <= max(80, len(f"{out}: written"))
    assert "nadam" in page.text and "adam" in page.text
    assert "latent dim" not in page.text  # they agree in it
    alts = [image["alt"] for image in page.all("img")]
    assert [alt.split(":")[0] for alt in alts if alt.startswith("Output of ")] == [
        "Output of digits",
        "Output of second",
    ]
    assert compare.main(words) == 0  # a page of its own is replaced


def test_runs_of_other_noise_are_compared_without_levels(digits, masked, tmp_path):
    out = tmp_path / "compare.html"
    assert compare.main([str(digits), str(masked), "--out", str(out), "--no-cache"]) == 0
    page = check(out)
    assert "sigma" not in sections(page)
    alts = " ".join(image["alt"] for image in page.all("img"))
    assert "masking(p=0.3)" in alts and "gaussian(sigma=0.5, mean=0.5)" in alts


def test_says_what_cannot_be_compared(digits, color, blind, tmp_path, capsys):
    (tmp_path / "mine.html").write_text("<p>")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(digits / "config.json", unfinished)
    out = ["--out", str(tmp_path / "new.html")]
    for words, message in (
        ([], "needs the folders of at least two runs"),
        ([digits, digits], "at least two runs"),
        ([digits, digits, blind], "given twice"),
        ([digits, blind, *out], "have different test images"),
        ([digits, color, *out], "3 test images of folder:"),
        ([digits, unfinished, *out], "is not finished: continue it with"),
        ([digits, tmp_path, *out], "holds no run"),
        ([digits, blind, "--out", tmp_path], "is a folder, and must be a file"),
        ([digits, blind, "--out", tmp_path / "mine.html"], "exists, and is not a page"),
    ):
        assert compare.main([*map(str, words), "--no-cache"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        assert message in said
    assert not (tmp_path / "new.html").exists()
    assert (tmp_path / "mine.html").read_text() == "<p>"


def test_runs_of_one_name_are_told_apart(digits, second, tmp_path):
    shutil.copytree(second, tmp_path / "digits")
    runs = comparison.read_runs([digits, tmp_path / "digits"])
    assert list(runs) == [str(digits), str(tmp_path / "digits")]


# --- in a browser ------------------------------------------------------------------------------


@pytest.mark.slow
@needs_chromium
def test_pages_are_whole_on_a_phone_and_in_the_dark(digits, second, color, blind, tmp_path):
    out = tmp_path / "compare.html"
    assert compare.main([str(digits), str(second), "--out", str(out), "--no-cache"]) == 0
    paths = [out, digits / "report.html", color / "report.html", blind / "report.html"]
    with chromium() as browser:
        for path in paths:
            for width, dark in ((390, False), (390, True), (1280, True)):
                seen = see(browser, path.as_uri(), width, dark)
                assert seen.complaints == []
                assert seen.requests == [path.as_uri()]
                assert seen.width <= width, path
                assert (max(seen.background) < 50) if dark else (min(seen.background) > 240)
                contrast = np.mean(seen.ink) - np.mean(seen.background)
                assert abs(contrast) > 150
                assert seen.images[0] > 0 and seen.images[1] == 0
