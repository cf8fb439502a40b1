"""Damages every file of a run, alone and in pairs, and looks at what reading it then says.

    python -m tests.stress.damage
    python -m tests.stress.damage --flips 50 --pairs 500

Each file is emptied, cut short, deleted, and has single bits flipped. What `--resume` would go on
from must then be a state that was saved, bit for bit with its history, or be refused by a clear
error; a finished run read back (`experiments.runs.finished.load_run`) must have the run's own
parameters, or be refused. Anything else is silently wrong.
"""

import argparse
import collections
import functools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from experiments.common.flags import Arguments
from experiments.run import main
from experiments.runs.experiment import Experiment
from experiments.runs.finished import load_run
from jaxdae import train_step, training
from jaxdae.checkpoint import Checkpoints
from jaxdae.config import Config, read_config
from jaxdae.data import load
from jaxdae.errors import InputError
from jaxdae.files import tree_sha256

# The files are the subject: the network is the one that is traced soonest.
WORDS = ["--epochs", "3", "--architecture", "dense", "--features", "4", "--latent-dim", "3"]
WORDS += ["--no-figures", "--no-cache", "--no-progress"]
Damage = Callable[[Path], None]


def flip(bit: float) -> Damage:
    """Flips one bit, at a fraction of the file's length."""

    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = int(bit * 8 * len(data))
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)

    return apply


def damages(flips: int, draw: random.Random) -> dict[str, Damage]:
    """The ways to damage a file, with so many flipped bits."""
    return {
        "emptied": lambda path: path.write_bytes(b""),
        "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "less its last byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "deleted": Path.unlink,
        **{f"bit {i} flipped": flip(draw.random()) for i in range(flips)},
    }


@dataclass
class Subject:
    """A finished run, and what reading it gives when it is whole."""

    folder: Path
    states: dict[int, tuple[str, int]]  # of each checkpoint: the state's SHA-256, and its epochs
    params: str

    @classmethod
    def make(cls, place: Path) -> "Subject":
        folder, images = place / "run", place / "images.npz"
        digits = load("mnist")
        np.savez(images, x_train=digits.train.images[:64], x_test=digits.test.images[:10])
        assert main([*WORDS, "--dataset", f"npz:{images}", "--out", str(folder)]) == 0
        subject = cls(folder, {}, tree_sha256(load_run(folder).params))
        for step in sorted(int(path.name) for path in folder.glob("checkpoints/*")):
            copy = place / "copy"
            shutil.copytree(folder, copy)
            for path in copy.glob("checkpoints/*"):
                if int(path.name) > step:
                    shutil.rmtree(path)
            found = resume(copy)
            assert found is not None and found[0] == step
            subject.states[step] = found[1:]
            shutil.rmtree(copy)
        assert len(subject.states) == 3
        return subject


def resume(folder: Path) -> tuple[int, str, int] | None:
    """The step that --resume would go on from, the state's SHA-256 and the epochs behind it."""
    experiment, state = _begun(read_config(folder))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state, experiment.check_same_run)
    if restored is None:
        return None
    return (
        restored.step,
        tree_sha256(restored.state),
        len(restored.meta["history"].splitlines()) - 1,
    )


@functools.cache
def _begun(config: Config) -> tuple[Experiment, training.TrainState]:
    """A run of that configuration before its first step, and the shapes of its state."""
    experiment = Experiment(Arguments(config), Console(quiet=True))
    optimizer = experiment.optimizer(experiment.stages[0])[0]
    return experiment, jax.eval_shape(
        lambda: train_step.create_state(experiment.model, optimizer, config.seed)
    )


def verdict(subject: Subject, folder: Path) -> str:
    """What became of a damaged copy.

    Raises:
      AssertionError: something is silently wrong.
      Exception: an error that is not the clear one.
    """
    said = []
    try:
        found = resume(folder)
        # Nothing to go on from: the run begins again, which is right where all is deleted.
        assert found is None or subject.states[found[0]] == found[1:], "a state never saved"
        newest = found is not None and found[0] == max(subject.states)
        said.append("resumes as before" if newest else "falls back" if found else "starts again")
    except InputError:
        said.append("refuses to resume")
    try:
        assert tree_sha256(load_run(folder).params) == subject.params, "other parameters"
        said.append("reads as before")
    except InputError:
        said.append("refuses to be read")
    return ", ".join(said)


def cases(
    subject: Subject, flips: int, pairs: int, draw: random.Random
) -> Iterator[tuple[str, list[tuple[Path, Damage]]]]:
    """Every file with every damage, and so many random pairs of those."""
    files = [p.relative_to(subject.folder) for p in subject.folder.rglob("*") if p.is_file()]
    single = [
        (f"{file} {name}", (file, damage))
        for file in sorted(files)
        for name, damage in damages(flips, draw).items()
        if (subject.folder / file).stat().st_size or name == "deleted"
    ]
    for name, case in single:
        yield name, [case]
    for _ in range(pairs):
        (one, first), (two, second) = draw.sample(single, 2)
        if first[0] != second[0]:
            yield f"{one}, {two}", [first, second]


def trial(
    place: Path, flips: int, pairs: int, seed: int = 0, every: int = 1, say=print
) -> collections.Counter:
    """Counts what became of the damaged copies of a run: of all, or of every second, third..."""
    draw = random.Random(seed)
    subject = Subject.make(place)
    copy = place / "copy"
    outcomes: collections.Counter = collections.Counter()
    chosen = islice(cases(subject, flips, pairs, draw), None, None, every)
    for number, (name, case) in enumerate(chosen, 1):
        shutil.copytree(subject.folder, copy)
        for file, damage in case:
            damage(copy / file)
        try:
            outcomes[verdict(subject, copy)] += 1
        except Exception as error:
            outcomes[f"WRONG: {type(error).__name__}"] += 1
            say(f"WRONG after {name}: {type(error).__name__}: {error}")
        shutil.rmtree(copy)
        if number % 100 == 0:
            say(f"{number} damaged copies")
    return outcomes


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=10, help="bits to flip in each file")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jaxdae-damage-") as place:
        outcomes = trial(Path(place), flags.flips, flags.pairs, flags.seed)
    for outcome, count in outcomes.most_common():
        print(f"{count:6}  {outcome}")
    return int(any(outcome.startswith("WRONG") for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(command())
