"""The folder of a run: new, locked, and its files read back."""

import json

import pytest

from experiments.runs import folder
from jaxdae.config import Config
from jaxdae.errors import InputError
from jaxdae.recipes import recipe

METRICS = {"mse": 0.1, "psnr": None, "ssim": 0.5, "bce": 0.2}
SUMMARY = {
    "recipe": "default",
    "seed": 0,
    "parameters": 9,
    "epochs": 5,
    "train_seconds": 2.0,
    "params_sha256": "0" * 64,
    "test": {"0.5": {**METRICS, "accuracy": 0.75}},
}


def test_a_new_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("default-sigma0.5", "default-sigma0.5-2", "default-sigma0.5-3"):
        path = folder.new_folder(Config())
        assert path.as_posix() == f"runs/{name}"
        with folder.opened(path):
            folder.write_config(path, Config())
    assert folder.new_folder(recipe("blind")).name == "blind-sigma0.15-1.05"
    assert folder.new_folder(recipe("maxpool-clean")).name == "maxpool-clean-identity"


def test_only_hidden_files_may_be_there_before(tmp_path):
    (tmp_path / ".123-0.json").write_text("left by a killed process")
    folder.write_config(tmp_path, Config())
    with pytest.raises(InputError, match="holds another run, and must be new or empty: continue"):
        folder.write_config(tmp_path, Config())
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(InputError, match="holds other files, and must be new or empty: choose"):
        folder.write_config(tmp_path, Config())


def test_an_older_summary_is_read_as_a_new_one(tmp_path):
    """Its classification accuracy was called "recovery"."""
    old = {**SUMMARY, "test": {"0.5": {**METRICS, "recovery": 0.75}}}
    for summary in (SUMMARY, old):
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        assert folder.read_summary(tmp_path) == SUMMARY


@pytest.mark.parametrize("missing", [*SUMMARY, "0.5", "mse"])
def test_a_summary_that_lacks_a_value_is_damaged(missing, tmp_path):
    summary = json.loads(json.dumps(SUMMARY))
    if missing == "0.5":
        summary["test"] = [0.5]
    elif missing == "mse":
        del summary["test"]["0.5"]["mse"]
    else:
        del summary[missing]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"summary\.json is damaged \(.*--resume") as error:
        folder.read_summary(tmp_path)
    assert "\n" not in str(error.value)


def test_a_history_is_read_as_it_was_written():
    rows = [
        {"epoch": i, "step": 10 * i, "train_loss": 0.1 / i, "test_loss": float("inf")}
        for i in (1, 2)
    ]
    text = "".join(folder.format_row(row, header=not i) for i, row in enumerate(rows))
    assert text.startswith("epoch,step,train_loss,test_loss\n1,10,0.1,inf\n")
    assert folder.parse_history(text) == rows
