"""The names of data sets: what is close is suggested; and the import is light."""

import subprocess
import sys

import pytest

from jaxdae import data
from tests.data.sources import npz, refused


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MNIST", "'mnist'"),
        ("mnsit", "'mnist'"),
        ("fashion_mnist", "'tfds:fashion_mnist'"),
        ("cifar10", "'tfds:cifar10'"),
        ("folders:x", "'folder:x'"),
        ("idx", "'idx:...'"),
        ("npz: ", "'npz:...'"),
        ("", "give mnist"),
        ("quite/else", "give mnist"),
        ("two\nlines", "give mnist"),
        ("a" * 5000, "give mnist"),
        ("nul\0", "give mnist"),
    ],
)
def test_unknown_names(name, meant):
    refused(name, data.FORMS, meant)


@pytest.mark.parametrize("place", ["a" * 5000, "nul\0", "two\nlines", "\udcff"])
@pytest.mark.parametrize("kind", ["idx", "npz", "folder", "tfds"])
def test_odd_places(kind, place):
    refused(f"{kind}:{place}")


def test_a_path_alone_is_understood(tmp_path):
    refused(str(tmp_path), f"'folder:{tmp_path}'")
    npz(tmp_path / "a.npz")
    refused(str(tmp_path / "a.npz"), f"'npz:{tmp_path / 'a.npz'}'")


def test_import_is_light():
    """Neither jax nor what only some sources need."""
    heavy = "jax tensorflow tensorflow_datasets PIL requests matplotlib"
    code = f"import sys, jaxdae.data; print({{*'{heavy}'.split()}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
