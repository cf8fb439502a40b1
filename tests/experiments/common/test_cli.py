"""What all commands share: paths, closed pipes, and the command that the first word names."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from experiments.__main__ import COMMANDS, main
from experiments.common import cli
from jaxdae.errors import InputError


@dataclass(frozen=True)
class Inner:
    cache: Path | None = None


@dataclass(frozen=True)
class Flags:
    folders: tyro.conf.Positional[tuple[Path, ...]]
    inner: tyro.conf.OmitArgPrefixes[Inner]
    out: Path = Path("out")
    name: str = "~"


def test_a_home_folder_is_found_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["~/a", "b~", "~no-such-user/c", "--out=~/x", "--cache", "~", "--name", "~/d"]
    flags = cli.parse(Flags, words)
    assert flags.folders == (Path("/home/me/a"), Path("b~"), Path("~no-such-user/c"))
    assert (flags.out, flags.inner.cache) == (Path("/home/me/x"), Path("/home/me"))
    assert flags.name == "~/d"


def test_unknown_words_are_returned_or_refused():
    flags, rest = cli.parse_known(Flags, ["a", "--epochs", "3", "--out", "x", "--no_figures"])
    assert (flags.out, rest) == (Path("x"), ["--epochs", "3", "--no_figures"])
    with pytest.raises(InputError, match="--outt") as error:
        cli.parse(Flags, ["--outt", "x"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["print", "console", "buffered", "help"])
def test_a_closed_pipe_ends_quietly(how):
    code = f"""
import sys, time
from experiments.common import cli
def work():
    print("first", flush=True)
    sys.stdin.readline()  # until the reader is gone
    if "{how}" == "print":
        print("second", flush=True)
    elif "{how}" == "console":
        cli.make_console().print("second")
    else:
        print("second")
    if "{how}" == "help":
        sys.exit(0)
sys.exit(cli.status(work, "fix this"))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert (process.wait(60), process.stderr.read()) == (141, "")
    process.stderr.close()


def test_the_first_word_names_the_command(capsys):
    assert main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
    assert listed == [*COMMANDS]
    assert listed == ["run", "sweep", "denoise", "report", "compare", "export", "demo"]
    assert main(["classifier"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no command 'classifier': choose one of run, sweep, ")
    assert main(["sweep", "--sigma", "0.5"]) == 2
    assert "give --sigmas here" in capsys.readouterr().err
