"""TensorBoard's files and Weights & Biases: every epoch once, whatever happens to the run."""

import io
import json
import struct
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import jax
import pytest
from PIL import Image
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments.common import trackers
from experiments.common.flags import parse
from experiments.run import main as train
from experiments.runs.folder import read_history
from jaxdae.config import Config
from jaxdae.errors import InputError

SMALL = ["--recipe", "dense", "--features", "8", "--train-images", "512", "--test-images", "16"]
SMALL += ["--no-cache", "--no-progress", "--no-figures", "--devices", "1", "--epochs", "2"]

jax.devices()  # all of them, before a command asks for one


def events(folder):
    """What TensorBoard would show of a folder: name to {step: value}; a step twice is an error."""
    shown = {}
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        raw = path.read_bytes()
        while raw:
            (length,) = struct.unpack("<Q", raw[:8])
            event, raw = Event.FromString(raw[12 : 12 + length]), raw[16 + length :]
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                for steps in shown.values():  # a process goes on from this step
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                steps = shown.setdefault(value.tag, {})
                assert event.step not in steps, (value.tag, event.step)
                steps[event.step] = value
    return shown


def rows(*epochs):
    return [
        {**dict.fromkeys(trackers.NAMES, 0.5 + i), "epoch": i, "step": 10 * i, "train_seconds": i}
        for i in epochs
    ]


def wandb_stub(monkeypatch, **options):
    """A module of the name that remembers what it is told."""
    told = SimpleNamespace(init=[], logged=[], finished=0)

    def init(**values):
        if "refuse" in options:
            raise RuntimeError(options["refuse"])
        told.init.append(values)
        return SimpleNamespace(log=log, finish=finish)

    def log(values, step):
        if "fail" in options:
            raise OSError(options["fail"])
        told.logged.append((step, values))

    def finish():
        told.finished += 1

    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.init, module.Image = init, lambda pixels: pixels
    module.Settings = lambda **values: values
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_tensorboard_has_every_epoch_and_samples(tmp_path):
    out = tmp_path / "run"
    assert train([*SMALL, "--tensorboard", "--out", str(out)]) == 0
    shown = events(out / "tensorboard")
    history = read_history(out)
    assert set(trackers.NAMES.values()) < set(shown)
    for key, name in trackers.NAMES.items():
        assert list(shown[name]) == [row["step"] for row in history]
        for row in history:
            assert shown[name][row["step"]].simple_value == pytest.approx(row[key])
    ((step, value),) = shown["samples"].items()
    assert step == history[-1]["step"]
    picture = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert picture.mode == "RGB" and picture.width > picture.height / 2
    config = next(iter(shown["config/text_summary"].values())).tensor.string_val[0].decode()
    assert "| recipe | dense |" in config


@pytest.mark.parametrize(("written", "kept"), [((1, 2, 3), (1, 2)), ((1,), (1, 2)), ((), (1, 2))])
def test_tensorboard_has_no_step_twice_and_none_lost(tmp_path, written, kept):
    """Killed, the process before had written more epochs than it kept, or fewer."""
    first = trackers.TensorBoard(tmp_path)
    first.begin(Config(), [])
    for row in rows(*written):
        first.epoch(row)
    # No close: what was flushed is what is there.
    second = trackers.TensorBoard(tmp_path)
    second.begin(Config(), rows(*kept))
    for row in rows(3, 4):
        second.epoch(row)
    second.close()
    shown = events(tmp_path / "tensorboard")
    assert {step: value.simple_value for step, value in shown["loss/test"].items()} == {
        10 * i: 0.5 + i for i in (1, 2, 3, 4)
    }
    first.close()


def test_wandb_is_told_of_every_epoch(tmp_path, monkeypatch):
    told = wandb_stub(monkeypatch)
    out = tmp_path / "run"
    assert train([*SMALL, "--wandb", "digits", "--out", str(out)]) == 0
    (start,) = told.init
    assert (start["project"], start["name"], start["resume"]) == ("digits", "run", "allow")
    assert start["config"]["recipe"] == "dense"
    assert start["dir"] == str(out)
    history = read_history(out)
    assert [step for step, _ in told.logged] == [*(row["step"] for row in history), 32 // 4]
    for row, (_, values) in zip(history, told.logged, strict=False):
        assert values["loss/test"] == pytest.approx(row["test_loss"])
        assert values["epoch"] == row["epoch"]
    assert told.logged[-1][1]["samples"].shape[-1] == 3
    assert told.finished == 1

    # Gone on with, it is the same run; what it has, it is not told again.
    again = trackers.WandB(out, "digits")
    again.begin(Config(), history)
    assert told.init[1]["id"] == start["id"]
    assert len(told.logged) == 3
    fresh = trackers.WandB(tmp_path / "other", "digits")
    (tmp_path / "other").mkdir()
    fresh.begin(Config(), history)
    assert [step for step, _ in told.logged[3:]] == [row["step"] for row in history]
    assert told.init[2]["id"] != start["id"]


def test_a_tracker_that_fails_costs_the_run_nothing(tmp_path, monkeypatch, capsys):
    told = wandb_stub(monkeypatch, fail="no room")
    out = tmp_path / "run"
    assert train([*SMALL, "--wandb", "digits", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("warning: --wandb failed (no room): training continues") == 1
    assert json.loads((out / "summary.json").read_text())["epochs"] == 2
    assert told.finished == 0


def test_says_what_is_missing_before_any_work(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"

    def refused(flags, message):
        assert train([*SMALL, *flags, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        assert message in said

    wandb_stub(monkeypatch)
    refused(["--wandb", " "], "needs the name of a project")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name, package=None: None)
        for flag, extra in ((["--tensorboard"], "tensorboard"), (["--wandb", "x"], "wandb")):
            with pytest.raises(InputError, match=rf'pip install "jaxdae\[{extra}\]"'):
                trackers.check(flag == ["--tensorboard"], "x" if extra == "wandb" else None)
    assert not out.exists()
    wandb_stub(monkeypatch, refuse="api_key not configured\nmore")
    refused(["--wandb", "digits"], "cannot start (api_key not configured): run `wandb login`, or")


def test_a_process_that_does_not_write_follows_nothing(tmp_path):
    with trackers.Trackers(True, "digits", None, Console(quiet=True)) as all_:
        all_.begin(Config(), [])
        all_.epoch(rows(1)[0])
        all_.finish(10, lambda: pytest.fail("nobody sees it"))
    assert not list(tmp_path.iterdir())


def test_a_run_may_be_followed_when_it_goes_on(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({**Config().__dict__, "sigma": [0.5]}, default=list)
    )
    arguments = parse(["--resume", str(tmp_path), "--tensorboard", "--wandb", "digits"])
    assert arguments.tensorboard and arguments.wandb == "digits"
