"""The performance page: written from the figures that are there, each with its command."""

import json

from benchmarks import growth, performance, throughput
from benchmarks.timing import machine


def test_a_page_is_written_from_what_is_there(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert performance.main([]) == 0
    assert performance.PAGE.read_text().count("#") == 1  # nothing is measured, nothing is said
    words = "--tasks train --batch-sizes 32 --images 32 --repeats 1 --json docs/t.json"
    assert throughput.main(words.split()) == 0
    words = "--axes size --largest 28 --images 32 --repeats 1 --json docs/g.json"
    assert growth.main(words.split()) == 0
    rows = [{"task": "train", "batch_size": 8, "speeds": {"jaxdae": [30.0], "torch": [10.0]}}]
    about = {"jaxdae": {"jax": "1.2"}, "torch": {"torch": "3.4", "device": "cuda"}}
    used = {"wall_seconds": 100.0, "core_seconds": 150.0, "peak_megabytes": 900.0, "mse": 0.016}
    reports = {
        "cpu-throughput": json.loads((tmp_path / "docs/t.json").read_text()),
        "cpu-growth": json.loads((tmp_path / "docs/g.json").read_text()),
        "cpu-epyc-peers-bfloat16": {"dtype": "bfloat16", "about": about, "rows": rows},
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
    assert page.index("In bfloat16;") < page.index("## On a GPU") and "On a TPU" not in page
    assert "--json docs/performance/cpu-epyc-peers-bfloat16.json`, " in page
    assert "| train | 8 | torch | 10 (10 to 10) | 3.00 (3.00 to 3.00) |" in page
    assert "In float32; jax 1.2, torch 3.4." in page
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
