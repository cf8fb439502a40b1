"""The benchmarks beside other frameworks: their processes, their tables, what they refuse."""

import json
import sys

import jax
import pytest

from benchmarks import peers, time_to_quality

pytestmark = pytest.mark.slow


def test_times_a_peer_beside_jaxdae(tmp_path, capsys):
    file = tmp_path / "figures.json"
    words = "--peers flax --images 64 --train 32 --infer 1 --repeats 2 --json"
    assert peers.main([*words.split(), str(file)]) == 0
    report = json.loads(file.read_text())
    about = {"jax": jax.__version__, "device": "cpu"}
    assert report["about"] == {"jaxdae": about, "flax": about}
    rows = report["rows"]
    kinds = [(row["task"], row["batch_size"], row["images"]) for row in rows]
    assert kinds == [("train", 32, 64), ("infer", 1, 6)]
    for row in rows:
        assert list(row["speeds"]) == ["jaxdae", "flax"]
        assert all(len(speeds) == 2 and min(speeds) > 0 for speeds in row["speeds"].values())
    printed = capsys.readouterr().out
    assert printed.count("| jaxdae |") == printed.count("| flax |") == 2


def test_a_ratio_is_taken_within_a_turn():
    row = {"task": "train", "batch_size": 32, "speeds": {"jaxdae": [10, 40, 90], "a": [5, 10, 30]}}
    assert peers.table(row) == [
        "| train | 32 | jaxdae | 40 (10 to 90) | 1.00 (1.00 to 1.00) |",
        "| train | 32 | a | 10 (5 to 30) | 3.00 (2.00 to 4.00) |",
    ]


def test_a_peer_that_fails_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "nobody:eager", None)
    words = "--peers nobody:eager --images 32 --train --infer 32 --repeats 1"
    assert peers.main(words.split()) == 1
    error = capsys.readouterr().err
    assert "stopped: nobody:eager stopped in about, and said: KeyError: 'nobody'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", ["--repeats 0", "--train 0", "--json nowhere/file"])
def test_bad_input_is_one_line(words, capsys):
    assert peers.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_whole_process_is_accounted_for(tmp_path):
    code = "x = bytearray(50_000_000); print(sum(range(3_000_000)))"
    used = time_to_quality.whole_process([sys.executable, "-c", code], tmp_path, tmp_path / "log")
    assert used["core_seconds"] > 0 and 0 < used["wall_seconds"] < 60
    assert used["peak_megabytes"] > 48
    command = [sys.executable, "-c", "raise SystemExit('too bad')"]
    with pytest.raises(RuntimeError, match="failed, and said: too bad"):
        time_to_quality.whole_process(command, tmp_path, tmp_path / "log")


def test_quality_against_time_is_averaged_and_drawn(tmp_path):
    used = {"wall_seconds": 100.0, "core_seconds": 150.0, "peak_megabytes": 900.0}
    curve = [
        {"epoch": 1, "seconds": 20.0, "mse": 0.025},
        {"epoch": 2, "seconds": 40.0, "mse": 0.02},
    ]
    rows = [
        {"system": "keras", "seed": seed, "epochs": 2, "images": 60_000}
        | {**used, "mse": 0.016, "curve": curve}
        for seed in (0, 1)
    ]
    for seed, wall in ((0, 15.0), (1, 25.0)):
        ours = {"system": "jaxdae", "dtype": "bfloat16", "seed": seed, "epochs": 1, **used}
        ours |= {"images": 5_000, "start_seconds": 3.0, "mse": 0.0175}
        rows += [{**ours, "cached": cached, "wall_seconds": wall} for cached in (False, True)]
    lines = time_to_quality.markdown(time_to_quality.summarize(rows)).splitlines()
    assert lines[2] == "| keras | 2 of 60,000 | 0.0160 | 100.0 |  | 150.0 | 900 | 1.0 |"
    ours = "jaxdae, bfloat16, first run"
    assert lines[3] == f"| {ours} | 1 of 5,000 | 0.0175 | 20.0 | 3.0 | 150.0 | 900 | 5.0 |"
    assert len(lines) == 5
    time_to_quality.draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
