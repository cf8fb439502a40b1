"""Configurations come back from their file, from older versions' files too, or are refused."""

import dataclasses
import json

import pytest

from jaxdae.config import ADDED, read_config
from jaxdae.errors import InputError
from jaxdae.recipes import RECIPES, recipe


def written(folder, **values):
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_comes_back(name, tmp_path):
    config = recipe(name, sigma=(0.25, 0.5), train_images=7)
    assert read_config(written(tmp_path, **dataclasses.asdict(config))) == config


def test_older_configurations_are_read(tmp_path):
    old = dataclasses.asdict(recipe("classic"))
    for field in ADDED:
        del old[field]
    assert read_config(written(tmp_path, **old)) == recipe("classic", **ADDED)
    # Pairs were a corruption.
    found = read_config(written(tmp_path, **{**old, "corruption": "paired"}))
    assert found == recipe("classic", **{**ADDED, "objective": "paired"})


@pytest.mark.parametrize(
    "values", [{}, {"epochs": "5"}, {"epochs": True}, {"corruption": "rain"}, {"unknown": 1}]
)
def test_damaged_configurations_are_refused(values, tmp_path):
    whole = dataclasses.asdict(recipe()) if values else {}
    with pytest.raises(InputError, match=r"config.json is damaged .*start a new run"):
        read_config(written(tmp_path, **{**whole, **values}))
