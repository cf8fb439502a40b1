"""The time of a training step, by operation.

    python -m benchmarks.step_profile
    python -m benchmarks.step_profile --dtypes float32 bfloat16 --architecture unet --top 30

Traces some training steps (`jax.profiler`) and adds up the median time of each operation of the
compiled program. An operation has its name in the program, and the place in the model or the train
step that it came from. A last table adds up groups: kernels (our own layers, `jaxdae.kernels`),
products, moving (changes of layout and, without our kernels, patches that are cut out and added
back), the rest of the network, the noise and the optimiser. Operations that run in parallel are
counted one by one.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.throughput import pixels
from benchmarks.timing import machine, markdown, not_a_file
from jaxdae.corruption import gaussian
from jaxdae.files import write_whole
from jaxdae.model import build
from jaxdae.objectives import Supervised
from jaxdae.optimizers import make_optimizer, make_schedule
from jaxdae.train_step import create_state, make_train_step

STEPS = 20
MOVES = {"concatenate", "pad", "slice", "transpose", "reshape", "copy", "bitcast_convert_type"}
NOISE = re.compile("threefry|random|_normal|erf_inv|fold_in|_uniform")


class Operation(NamedTuple):
    """An operation of the compiled program.

    Fields:
      microseconds: of a step.
      name: in the program.
      shape: of its result.
      origin: the path in the traced Python program.
    """

    microseconds: float
    name: str
    shape: str
    origin: str

    @property
    def group(self) -> str:
        """What it is a part of."""
        last = self.origin.rpartition("/")[2]
        # What clips the noise takes in all that is made of its bits.
        if NOISE.search(self.origin) or "clamp" in self.name:
            return "noise"
        if last.startswith("ffi_call"):  # Adam's is one too
            return "kernels" if "jvp" in self.origin else "optimiser and the rest"
        if last.startswith("dot_general") or self.name.startswith("dot"):
            return "products"
        if last in MOVES or self.name.startswith(("concatenate", "pad", "copy", "transpose")):
            return "moving"
        # What came of several places, such as a change of type, is named for none.
        within = "jvp" in self.origin or not self.origin
        return "network" if within else "optimiser and the rest"


def profile(architecture: str, dtype: str, batch_size: int) -> list[Operation]:
    """The operations of a training step, the longest first."""
    model = build(architecture, dtype=jnp.dtype(dtype))
    optimizer = make_optimizer("nadam", make_schedule("one-cycle", 1e-3, 1000), centering=True)
    state = create_state(model, optimizer, 0)
    step = make_train_step(model, Supervised(gaussian(0.5)), optimizer)
    images = jnp.asarray(pixels(STEPS * batch_size, model.example.shape[1:]))
    images = images.reshape(STEPS, batch_size, *model.example.shape[1:])

    def many(state: Any, images: Any) -> Any:
        def body(state: Any, batch: Any) -> Any:
            return step(state, batch, jax.random.fold_in(jax.random.key(0), state.step))

        return jax.lax.scan(body, state, images)

    compiled = jax.jit(many).lower(state, images).compile()
    jax.block_until_ready(compiled(state, images))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(state, images))
        (file,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
        times: dict[str, list[float]] = defaultdict(list)
        for plane in trace.planes:
            for line in plane.lines:
                for event in line.events:
                    times[event.name].append(event.duration_ns / 1000)
    return sorted(_operations(compiled.as_text() or "", times), reverse=True)


def _operations(program: str, times: dict[str, list[float]]) -> list[Operation]:
    """The operations of a program that were seen at every step, with their times."""
    found = []
    for line in program.splitlines():
        if not (head := re.match(r" *(?:ROOT )?%([\w.-]+) = \(?(\w+\[[\d,]*\])", line)):
            continue
        name, shape = head.groups()
        origin = re.search('op_name="([^"]*)"', line)
        seen = times.get(name, [])
        if len(seen) >= STEPS and not name.startswith("while"):
            each = statistics.median(seen) * len(seen) / STEPS
            found.append(Operation(each, name, shape, origin[1] if origin else ""))
    return found


def table(report: dict[str, list[dict[str, Any]]]) -> str:
    """The groups of each type, as Markdown."""
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for dtype, operations in report.items():
        for operation in operations:
            spent[operation["group"]][dtype] += operation["microseconds"]
    totals = {dtype: sum(group[dtype] for group in spent.values()) for dtype in report}
    lines = [
        [name, *(f"{group[dtype]:,.0f} ({group[dtype] / totals[dtype]:.0%})" for dtype in report)]
        for name, group in sorted(spent.items(), key=lambda item: -max(item[1].values()))
    ]
    return markdown(["microseconds a step", *report], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.step_profile", description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add("--architecture", default="strided", choices=["strided", "maxpool", "dense", "unet"])
    add("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    add("--batch-size", type=int, default=32, metavar="N")
    add("--top", type=int, default=20, metavar="N", help="operations to list (default: 20)")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    flags = parser.parse_args(argv)
    wrong = not_a_file("--json", flags.json)
    if min(flags.batch_size, flags.top) < 1:
        wrong = "error: --batch-size and --top must be at least 1"
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    here = machine()
    print(f"{here['device']}, jax {here['jax']}; {flags.architecture}, batch {flags.batch_size}\n")
    report = {}
    for dtype in flags.dtypes:
        operations = profile(flags.architecture, dtype, flags.batch_size)
        report[dtype] = [{**o._asdict(), "group": o.group} for o in operations]
        lines = [
            [f"{o.microseconds:,.0f}", o.group, o.name, o.shape, "/".join(o.origin.split("/")[-4:])]
            for o in operations[: flags.top]
        ]
        columns = ["microseconds", "group", f"operation, in {dtype}", "result", "from"]
        print(markdown(columns, lines), end="\n\n")
    print(table(report))
    if flags.json:
        write_whole(flags.json, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
