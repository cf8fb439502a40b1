"""The notebooks run from top to bottom, on fewer images, and are kept without their outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# What stands in their first cell of code, and what stands there here.
SMALLER = {
    "look_inside.ipynb": (
        "epochs, train_images, test_images = 3, 60_000, 10_000",
        "epochs, train_images, test_images = 2, 640, 100",
    ),
    "your_own.ipynb": (
        "steps, train_images, test_images = 1_000, 5_000, 500",
        "steps, train_images, test_images = 60, 640, 100",
    ),
}


def printed(notebook):
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out.text for out in outputs if out.output_type == "stream")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Each notebook, run in an empty folder."""

    def run(name):
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        full, small = SMALLER[name]
        cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        assert full in cell.source
        cell.source = cell.source.replace(full, small)
        folder = tmp_path_factory.mktemp("notebook")
        context = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=120, kernel_name="python3", resources=context).execute()
        pictures = [
            out
            for cell in notebook.cells
            for out in cell.get("outputs", [])
            if "image/png" in out.get("data", {})
        ]
        assert not any(folder.iterdir())
        return printed(notebook), pictures

    return run


def test_look_inside(executed):
    text, pictures = executed("look_inside.ipynb")
    assert re.search(r"epoch 2: loss 0\.\d+", text)
    assert re.search(r"'mse': 0\.\d+.*'accuracy': ", text)
    assert len(pictures) == 6


def test_your_own(executed):
    text, pictures = executed("your_own.ipynb")
    damaged, restored = (float(x) for x in re.findall(r"error (0\.\d+)", text))
    assert restored < 0.8 * damaged  # sixty steps are enough to see that it learns
    assert len(pictures) == 4


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*")), ids=lambda path: path.name)
def test_is_kept_without_outputs(path):
    assert path.name in SMALLER
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
