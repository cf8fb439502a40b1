"""The profile of a step: its operations, their groups, what it refuses."""

import json

import pytest

from benchmarks import step_profile
from jaxdae import kernels


def test_the_operations_of_a_step_are_found_and_grouped(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert step_profile.main(["--batch-size", "8", "--top", "5", "--json", str(file)]) == 0
    operations = json.loads(file.read_text())["float32"]
    times = [operation["microseconds"] for operation in operations]
    assert times == sorted(times, reverse=True) and times[-1] >= 0
    drawn = [one for one in operations if one["origin"].endswith("/ffi_call")]
    drawn = [one["group"] for one in drawn if "random_normal" in one["origin"]]
    assert drawn == ["noise"] * kernels.available()  # its kernel, where there are kernels
    printed = capsys.readouterr().out
    for group in ("products", "moving", "network", "noise", "optimiser"):
        assert f"| {group}" in printed
    assert printed.count("\n| ") > 10


@pytest.mark.parametrize(
    ("name", "origin", "group"),
    [
        ("ynn_fusion.3", "jit(f)/transpose(jvp(Net))/conv/dot_general", "products"),
        ("fusion.1", "jit(f)/transpose(jvp(Net))/conv/concatenate", "moving"),
        ("fusion.2", "jit(f)/jvp(Net)/max", "network"),
        ("fusion.4", "jit(f)/vmap(jit(_normal))/erf_inv", "noise"),
        ("ffi_call.1", "jit(f)/vmap(random_normal)/cond/branch_0_fun/ffi_call", "noise"),
        ("ffi_call.2", "jit(f)/jvp(Net)/conv/cond/branch_0_fun/ffi_call", "kernels"),
        ("ffi_call.3", "jit(f)/ffi_call", "optimiser and the rest"),
        ("fusion.5", "jit(f)/mul", "optimiser and the rest"),
    ],
)
def test_groups(name, origin, group):
    assert step_profile.Operation(1.0, name, "f32[1]", origin).group == group


def test_bad_input_is_one_line(capsys):
    assert step_profile.main(["--top", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
