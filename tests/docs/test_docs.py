"""The documentation's code runs, and prints what the pages show; README's is in test_readme.py."""

import importlib
import itertools
import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdae
from docs.pages import blocks, run_block, save_figure, written
from experiments.export import main as export
from experiments.run import main as train
from jaxdae import data, pretrained
from jaxdae.recipes import RECIPES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", DOCS / "tutorial.md", DOCS / "recipes.md"]
PAGES += sorted((DOCS / "how-to").glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
TEXTS += sorted(DOCS.rglob("*.md"))


def named(paths):
    return pytest.mark.parametrize("page", paths, ids=lambda p: p.relative_to(ROOT).as_posix())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, short, in the place of those that the pages speak of."""
    out = tmp_path_factory.mktemp("runs") / "run"
    # As many images as in `small`, so that the pages find programs that are compiled already.
    words = ["--epochs", "5", "--train-images", "640", "--test-images", "200", "--devices", "1"]
    quiet = ["--no-figures", "--no-cache", "--no-progress"]
    assert train([*words, *quiet, "--out", str(out)]) == 0
    return out


@pytest.fixture
def small(monkeypatch):
    """MNIST, but the first of its images, and one device: the pages use all of them."""
    whole = data.load("mnist")

    def first(split, count):
        return data.Split(split.images[:count], split.labels[:count])

    few = data.Dataset("mnist", first(whole.train, 640), first(whole.test, 200))
    monkeypatch.setattr(data, "load_mnist", lambda: few)
    recipe = jaxdae.recipe

    def all_of_them(*names, train_images=None, test_images=None, **values):
        return recipe(*names, **values)

    monkeypatch.setattr(jaxdae, "recipe", all_of_them)
    alone = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: alone)


def masked(text):
    """A text without its figures and machine, to compare what is printed around them."""
    text = re.sub(r"(?m)(?<=^Measured by )(.*?: \S+), .*?, (?=\d+ cores?)", r"\1, ", text)
    return re.sub(r"\d[\d.,]*", "0", text)


@named(PAGES)
def test_the_python_runs_and_prints_what_stands_there(page, small, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/default-sigma0.5")
    text = page.read_text()
    if page.name == "export.md":  # which reads what its command writes
        write_exported(text)
    assert masked(written(text, page.relative_to(ROOT).as_posix())) == masked(text)
    # What the tutorial draws, it shows; how-to pages write figures and images, and show none.
    if page.name == "tutorial.md":
        drawn = {f"images/tutorial-{path.name}" for path in tmp_path.glob("*.png")}
        assert drawn == set(re.findall(r"!\[.*?\]\((.*?)\)", text))


def write_exported(text):
    """Runs the first command of the page on exporting."""
    (command, *_) = re.findall(r"python -m experiments\.export (.+)", text)
    assert export([*command.split(), "--no-check", "--no-cache"]) == 0


def run_blocks(page):
    """The names that a page's blocks define, all of them or the first."""
    names = {}
    for code in blocks((DOCS / "how-to" / page).read_text(), "python"):
        run_block(code, names, page)
        yield names


@pytest.mark.slow
def test_parts_of_ones_own_are_trained():
    names = next(run_blocks("your-own-parts.md"))
    assert isinstance(names["epoch"].model, names["Small"])
    assert names["epoch"].metrics["test_loss"] < 0.05  # a black image's is 0.13


@pytest.mark.slow
def test_training_in_python_brings_images_nearer(monkeypatch):
    """Four hundred steps are enough to be nearer to the digits than the noisy images are."""
    recipe = jaxdae.recipe

    def shorter(*names, **values):
        return recipe(*names, **values, train_images=6400, test_images=500)

    monkeypatch.setattr(jaxdae, "recipe", shorter)
    _, names = itertools.islice(run_blocks("train-in-python.md"), 2)
    assert names["denoised"].shape == (9, 28, 28, 1)
    assert names["latent"].shape == (9, 16)
    clean = names["clean"]
    assert np.mean((names["denoised"] - clean) ** 2) < 0.5 * np.mean((names["noisy"] - clean) ** 2)


def test_what_is_exported_is_read_as_the_page_says(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/default-sigma0.5")
    write_exported((DOCS / "how-to/export.md").read_text())
    pages = run_blocks("export.md")
    next(pages)
    names = dict(next(pages))  # before the last block, which reads another network
    model, params = pretrained.load("digits-blind")
    expected = model.apply({"params": params}, names["images"])
    np.testing.assert_allclose(names["on_jax"], expected, atol=1e-5)
    np.testing.assert_allclose(names["on_onnx"], expected, atol=1e-5)
    assert names["card"] == pretrained.card("digits-blind")
    flat = pretrained.flat(params)
    assert names["params"].keys() == flat.keys()
    for path, array in flat.items():
        np.testing.assert_array_equal(names["params"][path], array, strict=True)


def test_every_recipe_is_listed():
    table = (DOCS / "recipes.md").read_text()
    for name in RECIPES:
        assert f"| `{name}` |" in table, name


@named(TEXTS)
def test_every_command_parses(page, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page.read_text(), "sh"):
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            found = re.search(r"(?:python -m experiments\.|jaxdae )(\w+)(.*)", line)
            if found is None:
                continue
            words = [
                w.replace("NAME", "digits-blind") for w in shlex.split(found[2], comments=True)
            ]
            for before, word in itertools.pairwise(words):
                if before == "--resume" and not Path(word).exists():
                    shutil.copytree(finished, word)
            command = importlib.import_module(f"experiments.{found[1]}")
            parse = getattr(command, "parse_options", command.parse)
            if words[-1] == "--help":
                with pytest.raises(SystemExit, match="0"):
                    parse(words)
            else:
                assert parse(words)


def test_commands_are_among_the_blocks():
    found = {path.name for path in TEXTS if "python -m experiments." in path.read_text()}
    assert {"README.md", "scaling.md", "resume-and-scale.md", "your-own-images.md"} <= found


@named(TEXTS)
def test_every_module_that_is_run_exists(page):
    """Also the benchmarks and trials, whose flags are tested elsewhere."""
    for name in re.findall(
        r"python\s+-m\s+((?:experiments|benchmarks|tests|docs)[.\w]*)", page.read_text()
    ):
        place = ROOT / name.replace(".", "/")
        assert (
            place.with_suffix(".py").is_file()
            or (place / "__main__.py").is_file()
            or ("NAME" in name)
        ), name


@named(TEXTS)
def test_links_lead_somewhere(page):
    """On GitHub, where pages are files; the strict build of the site looks at its own."""
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if not target.startswith(("http", "reference/")):  # the site alone has a reference
            assert (page.parent / target).exists(), target


def test_figures_of_the_tutorial_are_small():
    figures = sorted((DOCS / "images").glob("tutorial-*.png"))
    assert len(figures) == 5
    for path in figures:
        assert path.stat().st_size < 60_000, path


def test_a_page_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (
        "One\n\n```python\nx = 1\nprint(x)\n```\n\n```text\nan older output\n```\n\n"
        "```python\nx += 1\n```\n\nTwo\n\n```python\nprint(x)\n```\n\n"
        "Measured by `python -m docs.pages page.md`, long ago\n"
    )
    text = written(page, "page.md")
    assert "```python\nx = 1\nprint(x)\n```\n\n```text\n1\n```\n\n```python" in text
    assert "```python\nx += 1\n```\n\nTwo\n\n```python\nprint(x)\n```\n\n```text\n2\n```" in text
    assert "older" not in text and "long ago" not in text
    assert f"jax {jax.__version__}" in text
    assert written(text, "page.md") == text
    with pytest.raises(ZeroDivisionError):
        run_block("1 / 0", {}, "page.md")


def test_a_figure_keeps_its_colours(tmp_path):
    image = Image.new("RGB", (60, 40), "white")
    image.paste((31, 119, 180), (0, 0, 30, 40))
    image.save(tmp_path / "drawn.png")
    save_figure(tmp_path / "drawn.png", tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as saved:
        assert saved.convert("RGB").tobytes() == image.tobytes()


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {jaxdae.__version__}\n" in citation
    assert jaxdae.__version__ in (ROOT / "CHANGELOG.md").read_text()
