"""What the README says can be typed, and works."""

import re
from pathlib import Path

import numpy as np

from experiments.run import parse
from jaxdae.recipes import RECIPES

README = (Path(__file__).parents[1] / "README.md").read_text()


def run(code):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_python_in_it_runs():
    trained, lines = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = run(lines)
    assert names["denoised"].shape == (9, 28, 28, 1)
    assert names["latent"].shape == (9, 16)
    clean = names["data"].test.images[:9] / 255
    # A hundred steps are enough to be nearer to the digits than the noisy images are.
    assert np.mean((names["denoised"] - clean) ** 2) < 0.5 * np.mean((names["noisy"] - clean) ** 2)
    names = run(trained)
    restored = names["denoised"]
    assert np.mean((restored - clean) ** 2) < 0.03 < np.mean((names["noisy"] - clean) ** 2)


def test_every_command_parses():
    commands = re.findall(r"python -m experiments\.run((?: --?[\w-]+(?: [\w.:]+)?)*)", README)
    assert len(commands) >= 6
    for command in commands:
        words = [word.replace("NAME", "blind") for word in command.split()]
        assert parse(words)


def test_lists_every_recipe():
    table = README[README.index("## Recipes") :]
    for name in RECIPES:
        assert f"`{name}`" in table, name
