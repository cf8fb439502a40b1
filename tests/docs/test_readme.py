"""What the README says can be typed, and works."""

import re
from pathlib import Path

import numpy as np

from experiments.common.flags import parse
from experiments.export import main as export
from jaxdae import pretrained
from jaxdae.recipes import RECIPES

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(heading, language="python"):
    """The one block in a language under a heading; before the first heading, under None."""
    parts = re.split(r"^## (.+)$", README, flags=re.MULTILINE)
    sections = dict(zip([None, *parts[1::2]], parts[::2], strict=True))
    (code,) = re.findall(rf"```{language}\n(.*?)```", sections[heading], re.DOTALL)
    return code


def run(code):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_python_in_it_runs():
    names = run(block("In ten lines"))
    assert names["denoised"].shape == (9, 28, 28, 1)
    assert names["latent"].shape == (9, 16)
    clean = names["clean"]
    # Four hundred steps are enough to be nearer to the digits than the noisy images are.
    assert np.mean((names["denoised"] - clean) ** 2) < 0.5 * np.mean((names["noisy"] - clean) ** 2)
    names = run(block(None))
    restored = names["denoised"]
    assert np.mean((restored - clean) ** 2) < 0.03 < np.mean((names["noisy"] - clean) ** 2)


def test_parts_of_ones_own_are_trained():
    names = run(block("Your own network, noise or loss"))
    assert isinstance(names["epoch"].model, names["Small"])
    assert names["epoch"].metrics["test_loss"] < 0.05  # a black image's is 0.13


def test_what_is_exported_is_read_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"python -m experiments\.export (.+)", block("Take it elsewhere", "sh"))
    assert export([*command.split(), "--no-check", "--no-cache"]) == 0
    names = run(block("Take it elsewhere"))
    model, params = pretrained.load("digits-blind")
    expected = model.apply({"params": params}, names["images"])
    np.testing.assert_allclose(names["on_jax"], expected, atol=1e-5)
    np.testing.assert_allclose(names["on_onnx"], expected, atol=1e-5)
    assert names["card"] == pretrained.card("digits-blind")
    flat = pretrained.flat(params)
    assert names["params"].keys() == flat.keys()
    for path, array in flat.items():
        np.testing.assert_array_equal(names["params"][path], array, strict=True)


def test_all_of_the_python_is_run():
    assert README.count("```python") == 4  # each by one of the tests above


def test_every_command_parses():
    commands = re.findall(r"python -m experiments\.run((?: --?[\w-]+(?: [\w.:]+)?)*)", README)
    assert len(commands) >= 6
    for command in commands:
        words = [word.replace("NAME", "digits-blind") for word in command.split()]
        assert parse(words)


def test_lists_every_recipe():
    table = README[README.index("## Recipes") :]
    for name in RECIPES:
        assert f"`{name}`" in table, name
