"""A small version of each of the long trials in `tests/stress`."""

import random
from pathlib import Path

import pytest

from tests.stress import damage, fuzz, kill

pytestmark = pytest.mark.slow


def test_killed_anywhere_it_comes_to_the_same_end(tmp_path):
    quick = [*kill.WORDS, "--architecture", "dense", "--epochs", "8"]
    phases = kill.trial(kills=4, seed=1, place=tmp_path, run=quick)
    assert sum(phases.values()) == 4


def test_damage_is_noticed_or_harmless(tmp_path):
    outcomes = damage.trial(tmp_path, flips=1, pairs=10, every=2)
    assert not [outcome for outcome in outcomes if outcome.startswith("WRONG")]
    # All that can become of a copy does: the damage is real.
    assert outcomes["falls back, refuses to be read"] > 5
    assert outcomes["refuses to resume, refuses to be read"] > 0
    assert outcomes["resumes as before, reads as before"] > 5


def test_no_file_brings_a_reader_down(tmp_path):
    outcomes = fuzz.trial(3_200, 0, tmp_path / "files", tmp_path / "kept")
    assert not list(tmp_path.glob("kept/*"))
    for name, counts in outcomes.items():
        assert counts["WRONG"] == 0
        assert counts["refused"] > 0, name


def test_what_once_went_wrong_goes_well(tmp_path):
    """Files that `tests.stress.fuzz` has found, named for their kind."""
    kinds, before = fuzz.targets(tmp_path), fuzz.megabytes()
    files = sorted((Path(__file__).parents[1] / "files" / "fuzz").iterdir())
    assert files
    for file in files:
        kind = file.name.rpartition("-")[0].replace("-", " ")
        assert kinds[kind].feed(file.read_bytes()) in ("read", "refused")
        assert fuzz.megabytes() - before < fuzz.MEGABYTES


def test_mutations_are_of_every_kind():
    draw = random.Random(0)
    changed = [fuzz.mutate(b"0123456789" * 9, b"other", draw) for _ in range(200)]
    lengths = {len(data) for data in changed}
    assert len(set(changed)) > 190
    assert min(lengths) < 60 < 90 < max(lengths)
