"""The performance page: written from the figures that are there, each with its command."""

import json
from pathlib import Path

import pytest

from benchmarks import growth, performance, throughput
from benchmarks.timing import machine

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_page_is_written_from_what_is_there(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert performance.main([]) == 0
    page = performance.PAGE.read_text()
    assert page.count("\n#") == 0 and page.count("\n|") == 0  # nothing is measured, nothing is said
    words = "--tasks train --batch-sizes 32 --images 32 --repeats 1 --json docs/t.json"
    assert throughput.main(words.split()) == 0
    words = "--axes size --largest 28 --images 32 --repeats 1 --json docs/g.json"
    assert growth.main(words.split()) == 0
    rows = [{"task": "train", "batch_size": 8, "speeds": {"jaxdae": [30.0], "torch": [10.0]}}]
    layouts = {"jaxdae": [5, 6, 7], "torch:eager": [2, 2, 2], "torch:channels-last": [4, 4, 4]}
    rows.append({"task": "infer", "batch_size": 32, "speeds": layouts})
    about = {"jaxdae": {"jax": "1.2"}, "torch": {"torch": "3.4", "device": "cuda"}}
    used = {"wall_seconds": 100.0, "core_seconds": 150.0, "peak_megabytes": 900.0, "mse": 0.016}
    reports = {
        "cpu-throughput": json.loads((tmp_path / "docs/t.json").read_text()),
        "cpu-growth": json.loads((tmp_path / "docs/g.json").read_text()),
        "cpu-zen9-peers-bfloat16": {"dtype": "bfloat16", "about": about, "rows": rows},
        "gpu-peers": {"dtype": "float32", "about": about, "rows": rows},
        "cpu-quality": [{"system": "keras", "seed": 0, "epochs": 10, "images": 60000, **used}],
    }
    for name, report in reports.items():
        file = performance.FIGURES / f"{name}.json"
        file.write_text(json.dumps({"machine": machine(), "report": report}))
    assert performance.main(["--envs", "somewhere"]) == 0
    page = performance.PAGE.read_text()
    assert page.index("## On a CPU") < page.index("### Throughput") < page.index("### Growth")
    other = page.index("## On a CPU: ", page.index("### Growth"))
    assert page.index("### Growth") < other < page.index("In bfloat16;")
    assert page.index("| machine | type |") < page.index("## On a CPU")
    assert page.index("In bfloat16;") < page.index("## On a GPU") and "On a TPU" not in page
    assert "--json docs/performance/cpu-zen9-peers-bfloat16.json`, " in page
    assert "| train | 8 | torch | 10 (10 to 10) | 3.00 (3.00 to 3.00) |" in page
    assert "In float32; jax 1.2, torch 3.4." in page
    # The faster of two layouts counts, and a cell is empty where nothing was measured.
    assert "| bfloat16 |  |  | **6**<br>1.5× PyTorch |  |  |" in page
    assert "| keras | 10 of 60,000 | 0.0160 | 100.0 |  | 150.0 | 900 | 1.0 |" in page
    assert "`python -m benchmarks.peers --envs somewhere --train 32 2048" in page
    assert "| 28x28 |" in page and "Ceilings: " in page


def test_goes_nowhere_without_docs_or_with_a_name_that_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert performance.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no docs/ here") and error.count("\n") == 1
    (tmp_path / "docs").mkdir()
    assert performance.main(["--machine", "EPYC 2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --machine EPYC 2 must be ") and error.count("\n") == 1


def test_the_time_to_keras_error_is_given_where_it_was_reached():
    used = {"core_seconds": 1.0, "peak_megabytes": 1.0, "epochs": 1, "images": 1, "seed": 0}
    keras = {"system": "keras", "wall_seconds": 90.0, "mse": 0.016, **used}
    ours = {"system": "jaxdae", "wall_seconds": 9.0, "dtype": "float32", "cached": True, **used}
    for mse, cell in ((0.015, "**9.0 s**<br>10× Keras (90 s)"), (0.017, "")):
        data = {"report": [keras, {**ours, "mse": mse}]}
        assert performance.time_cell(data, "float32") == cell
        assert (
            performance.time_cell(data, "bfloat16") == performance.time_cell(None, "float32") == ""
        )


def test_the_committed_page_is_what_the_figures_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert performance.page(Path(".peers")) == performance.PAGE.read_text()
