"""Writes docs/performance.md: how fast, against what, and how far from the machine's limit.

    python -m benchmarks.performance                              # from the figures that are there
    python -m benchmarks.performance --measure --envs .peers      # first measure what is missing
    python -m benchmarks.performance --measure growth peers       # measure these anew
    python -m benchmarks.performance --measure --machine epyc     # beside another machine's

Every part is a benchmark with a command of its own, which the page gives. What they measure lies in
docs/performance/, a file for each part and platform (cpu, gpu, tpu), and a page is written from all
files there: on a machine with a GPU the same command adds the GPU's tables. A second machine of a
platform needs a name for its own, and has a section of its own. Leave the machine to it meanwhile.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdae.files import write_whole

ROOT = Path(__file__).parents[1]
FIGURES = Path("docs/performance")
IMAGES = Path("docs/images")
PAGE = Path("docs/performance.md")


class Part(NamedTuple):
    """A benchmark of the page.

    Fields:
      title: the section's.
      words: its command line after `python -m benchmarks.`, on a CPU; {envs} the folder of the
        peers' environments.
      text: what the section says before the table.
      table: from what the benchmark wrote to Markdown.
      plot: whether it draws one.
      gpu: its command line where there is a GPU or TPU; the same if not given.
    """

    title: str
    words: str
    text: str
    table: Callable[[Any], str]
    plot: bool
    gpu: str | None = None


def throughput(report: Any) -> str:
    """The ceilings and the table of a throughput report."""
    from benchmarks.throughput import table

    limits = dict(report["ceilings"])
    copy = limits.pop("copy")
    products = ", ".join(f"{limit / 1e9:,.0f} GFLOP/s in {name}" for name, limit in limits.items())
    ceilings = f"Ceilings: {products}; {copy / 1e9:,.0f} GB/s."
    return f"{ceilings}\n\n{table(report['rows'], report['ceilings'])}"


def peers(report: Any) -> str:
    """The versions and the table of a peers report."""
    from benchmarks.peers import table
    from benchmarks.timing import markdown

    versions: dict[str, str] = {}
    for about in report["about"].values():
        versions |= {name: value for name, value in about.items() if name != "device"}
    columns = ["task", "batch", "framework", "images/s", "jaxdae is so many times as fast"]
    lines = [line for row in report["rows"] for line in table(row)]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([f"In {report['dtype']}; {named}.", "", markdown(columns, []), *lines])


def growth(report: Any) -> str:
    """The tables of a growth report."""
    from benchmarks.growth import table

    return "\n\n".join(table(axis, rows) for axis, rows in report["axes"].items())


def quality(rows: Any) -> str:
    """The table of a time-to-quality report."""
    from benchmarks.time_to_quality import markdown, summarize

    return markdown(summarize(rows))


def profile(report: Any) -> str:
    """The groups of a profile."""
    from benchmarks.step_profile import table

    return table(report)


PEERS = """The same network, data, loss and optimiser, each framework in a process of its own that
is warm before anything is timed, and all timed in turn, a second or more each; median, lowest and
highest, and the ratio to jaxdae within a turn. Keras runs `fit` with 50 steps an execution and its
backend's compiled function for inference; PyTorch with a fused or multi-tensor Adam,
`torch.compile` at `max-autotune`, for inference with frozen weights in the figures that name a
processor's family or a GPU; plain Flax the same train step on `flax.linen`'s layers. From
2026-11-28 on all that is on JAX runs its calls in the thread that makes them, with
`jax_cpu_enable_async_dispatch` off, and all have the C library keep the memory that a call gives
back (`MALLOC_TRIM_THRESHOLD_` and the like), without which PyTorch loses up to two fifths at 512
images. The peers train on noisy images that were made beforehand; jaxdae draws fresh noise at
every step."""
QUALITY = """Whole processes, from their start to their end, one after the other: Keras's script
trains the tutorial's network for ten epochs and tests nothing; the main job trains it for two short
ones, with its tests, checkpoints and closing table; with an empty cache of compiled programs and
with a full one. Means over three seeds; core seconds are those of all processors together."""
CUDA = "torch:compile torch:compile-channels-last torch:cudagraphs torch:cudagraphs-channels-last"
PLATFORMS = {"cpu": "On a CPU", "gpu": "On a GPU", "tpu": "On a TPU"}
PARTS: dict[str, Part] = {
    "throughput": Part(
        "Throughput",
        "throughput --dtypes float32 bfloat16 --operations",
        "Training and inference of the `strided` network (178,001 parameters). In brackets the "
        "share of the ceiling that was measured in the same run. Operations and bytes are those of "
        "the network in XLA's own operations: what our kernels move is less, and at small types "
        "their products may be faster than XLA's large one.",
        throughput,
        plot=True,
    ),
    "profile": Part(
        "Where the time goes",
        "step_profile --dtypes float32 bfloat16",
        "A training step of the main job, batch 32: the time of its operations, added up by what "
        "they are for. Kernels are the convolutions and the dense layers. "
        "Operations that run beside each other count each for itself.",
        profile,
        plot=False,
    ),
    "peers": Part(
        "Beside other frameworks",
        "peers --envs {envs} --images 3200 --repeats 5 --train 32 --peers keras:tensorflow "
        "keras:jax torch:eager torch:channels-last torch:compile torch:compile-channels-last flax",
        PEERS,
        peers,
        plot=False,
        gpu=f"peers --envs {{envs}} --train 32 2048 8192 --infer 32 8192 --images 65536 --peers "
        f"flax keras:jax {CUDA}",
    ),
    "peers-bfloat16": Part(
        "Beside other frameworks, in bfloat16",
        "peers --envs {envs} --dtype bfloat16 --images 3200 --repeats 5 --train 32 --peers "
        "keras:tensorflow torch:channels-last torch:compile-channels-last",
        "The same in mixed precision, the peers' by their own means.",
        peers,
        plot=False,
        gpu=f"peers --envs {{envs}} --dtype bfloat16 --train 32 2048 8192 --infer 32 8192 --images "
        f"65536 --peers flax keras:jax {CUDA}",
    ),
    "quality": Part(
        "Time to a quality",
        "time_to_quality --epochs 2 --words '--train-images 46080 --b2 0.98' --keras "
        "{envs}/tensorflow/bin/python",
        QUALITY,
        quality,
        plot=True,
    ),
    "growth": Part(
        "Growth",
        "growth",
        "Training at batches of 32, in float32, as one thing grows: the image, the network's "
        "channels, the data set (kept on the device, or streamed to it from a file), and the "
        "devices (of a CPU virtual ones, which share its cores).",
        growth,
        plot=True,
    ),
}


def figures(name: str, place: str) -> Path:
    """A part's figures on a machine: its platform, "cpu", or that and a name, "cpu-epyc"."""
    return FIGURES / f"{place}-{name}.json"


def image(name: str, place: str) -> Path:
    """A part's plot."""
    return IMAGES / f"performance-{place}-{name}.png"


def command(name: str, place: str, envs: Path) -> list[str]:
    """The words of a part's command, after `python -m`."""
    part = PARTS[name]
    on_cpu = place.partition("-")[0] == "cpu"
    words = part.words if on_cpu or part.gpu is None else part.gpu
    words = f"benchmarks.{words.format(envs=envs)} --json {figures(name, place)}"
    if part.plot:
        words += f" --plot {image(name, place)}"
    return shlex.split(words)


def places() -> list[str]:
    """The machines that there are figures of, in the page's order."""
    ends = sorted((f"-{name}.json" for name in PARTS), key=len, reverse=True)
    found = set()
    for file in FIGURES.glob("*.json"):
        end = next(filter(file.name.endswith, ends), None)
        if end:
            found.add(file.name.removesuffix(end))
    return sorted(place for place in found if place.partition("-")[0] in PLATFORMS)


def here() -> dict[str, Any]:
    """The machine, as a process of its own sees it: this one must not take the GPU's memory."""
    code = "import json; from benchmarks.timing import machine; print(json.dumps(machine()))"
    words = [sys.executable, "-c", code]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(names: Sequence[str], machine: dict[str, Any], place: str, envs: Path) -> None:
    """Runs the benchmarks, each with the machine it ran on."""
    for name in names:
        words = command(name, place, envs)
        print(f"== python -m {shlex.join(words)}", flush=True)
        subprocess.run([sys.executable, "-m", *words], check=True)
        file = figures(name, place)
        report = json.loads(file.read_text())
        write_whole(file, json.dumps({"machine": machine, "report": report}, indent=1) + "\n")


def page(envs: Path) -> str:
    """The page, from the files that are there."""
    lines = [
        "# Performance",
        "",
        "Written by `python -m benchmarks.performance` from the figures in `docs/performance/`. "
        "Ratios are taken within a run, on one machine.",
        "",
    ]
    for place in places():
        title = PLATFORMS[place.partition("-")[0]]
        for name in (name for name in PARTS if figures(name, place).is_file()):
            data = json.loads(figures(name, place).read_text())
            machine, part = data["machine"], PARTS[name]
            cores = f", {machine['cores']} cores" if machine["cores"] else ""
            if title:
                lines += [f"## {title}: {machine['device']}{cores}", ""]
                title = ""
            lines += [f"### {part.title}", "", part.text, "", part.table(data["report"]), ""]
            if part.plot:
                lines += [f"![{part.title}](images/{image(name, place).name})", ""]
            words = shlex.join(command(name, place, envs))
            lines += [
                f"`python -m {words}`, {machine['date']}, {machine['device']}{cores}, Python "
                f"{machine['python']}, jax {machine['jax']}, flax {machine['flax']}.",
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 a benchmark failed, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.performance", description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add(
        "--measure",
        nargs="*",
        choices=PARTS,
        metavar="PART",
        help=f"which of {', '.join(PARTS)}; those without figures if none is named",
    )
    add("--envs", type=Path, default=Path(".peers"), help="folder of the peers' environments")
    add("--machine", metavar="NAME", help="this machine's, where there are others of its platform")
    flags = parser.parse_args(argv)
    wrong = None
    if not PAGE.parent.is_dir():
        wrong = "there is no docs/ here: go to the folder of the repository"
    if flags.machine is not None and not re.fullmatch("[a-z0-9]+", flags.machine):
        wrong = f"--machine {flags.machine} must be small letters and digits, such as epyc"
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    FIGURES.mkdir(exist_ok=True)
    if flags.measure is not None:
        machine = here()
        place = "-".join(filter(None, (machine["platform"], flags.machine)))
        missing = [name for name in PARTS if not figures(name, place).is_file()]
        try:
            measure(flags.measure or missing, machine, place, flags.envs)
        except subprocess.CalledProcessError as error:
            print(f"stopped: {shlex.join(error.cmd)} failed", file=sys.stderr)
            return 1
    write_whole(PAGE, page(flags.envs))
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
