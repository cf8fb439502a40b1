"""Writes docs/performance.md: jaxdae's speed, beside other frameworks and the machine's limits.

    python -m benchmarks.performance                              # write the page
    python -m benchmarks.performance --measure --envs .peers      # first measure what is missing
    python -m benchmarks.performance --measure growth peers       # measure these parts again
    python -m benchmarks.performance --measure --machine zen4     # add a machine by this name

Each part of the page is a benchmark with its own command, which the page shows. The figures lie in
docs/performance/, one file for each machine and part: cpu-peers.json, or cpu-zen4-peers.json for a
machine with a name. A machine is a platform (cpu, gpu, tpu) and a name, needed only where there is
another machine of the platform. Run nothing else on the machine while it measures.
"""

import argparse
import json
import re
import shlex
import statistics
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
      title: of its section.
      words: its command line after `python -m benchmarks.`, on a CPU; {envs} is the folder of the
        other frameworks' environments.
      text: what its table shows.
      table: makes Markdown of what the benchmark wrote.
      plot: True if the benchmark draws a plot.
      gpu: its command line on a GPU or TPU; None for the same one.
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
    columns = ["task", "batch", "framework", "images/s", "speedup of jaxdae"]
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


CUDA = "torch:compile torch:compile-channels-last torch:cudagraphs torch:cudagraphs-channels-last"
PLATFORMS = {"cpu": "On a CPU", "gpu": "On a GPU", "tpu": "On a TPU"}
PARTS: dict[str, Part] = {
    "throughput": Part(
        "Throughput",
        "throughput --dtypes float32 bfloat16 --operations",
        "Training and inference of the `strided` network (178,001 parameters) by batch size. "
        '"Without kernels" is the same network in XLA\'s operations, as on a machine without a C++ '
        "compiler. GFLOP/s and GB/s count the operations and bytes of XLA's form of the network. "
        "The percentage is the share of a ceiling that was measured in the same run: one large "
        "matrix product, and one large copy in memory. Shares above 100% are possible: our kernels "
        "need fewer operations and move fewer bytes than XLA's form, because a strided convolution "
        "is computed with fewer products, small arrays stay in the caches, and in bfloat16 our "
        "products can be faster than XLA's large one.",
        throughput,
        plot=True,
    ),
    "profile": Part(
        "Where the time goes",
        "step_profile --dtypes float32 bfloat16",
        "The time of one training step of the default recipe (batch 32), by kind of operation. "
        "Kernels are our convolutions and dense layers, products are XLA's matrix products, and "
        "moving is XLA's changes of layout. Operations that run in parallel are counted one by "
        "one.",
        profile,
        plot=False,
    ),
    "peers": Part(
        "Other frameworks, float32",
        "peers --envs {envs} --images 3200 --repeats 5 --train 32 --peers keras:tensorflow "
        "keras:jax torch:eager torch:channels-last torch:compile torch:compile-channels-last flax",
        "All frameworks train and apply the same network with the same loss and optimiser. Each "
        "runs in its own process, is compiled and warm before the timing starts, and takes its "
        "turn for a second or more. The tables give the median of five turns, with the lowest and "
        "the highest, and the speedup within a turn. Keras trains by `fit`, 50 steps per "
        "execution, and restores by its backend's compiled function. PyTorch uses a fused or "
        "multi-tensor Adam, and `torch.compile` runs at `max-autotune`. Plain Flax is the same "
        "train step on the layers of `flax.linen`. The other frameworks train on noisy images that "
        "were made in advance; jaxdae draws new noise in every step.",
        peers,
        plot=False,
        gpu=f"peers --envs {{envs}} --train 32 2048 8192 --infer 32 8192 --images 65536 --peers "
        f"flax keras:jax {CUDA}",
    ),
    "peers-bfloat16": Part(
        "Other frameworks, bfloat16",
        "peers --envs {envs} --dtype bfloat16 --images 3200 --repeats 5 --train 32 --peers "
        "keras:tensorflow torch:channels-last torch:compile-channels-last",
        "The same in mixed precision. Keras and PyTorch use their own.",
        peers,
        plot=False,
        gpu=f"peers --envs {{envs}} --dtype bfloat16 --train 32 2048 8192 --infer 32 8192 --images "
        f"65536 --peers flax keras:jax {CUDA}",
    ),
    "quality": Part(
        "Time to a quality",
        "time_to_quality --epochs 2 --words '--train-images 46080 --b2 0.98' --keras "
        "{envs}/tensorflow/bin/python",
        "Whole processes, from start to end, one after the other. Keras's script trains the "
        "tutorial's network for ten epochs and tests nothing. jaxdae trains it for two short "
        "epochs, and tests it, saves checkpoints and prints its table. The first run compiles "
        "everything; a later run finds the compiled programs in the cache. Means over three seeds. "
        "Core time is summed over both cores.",
        quality,
        plot=True,
    ),
    "growth": Part(
        "Growth",
        "growth",
        "Training in batches of 32, in float32, as one thing grows: the image, the network's "
        "channels, the data set (kept on the device, or streamed to it from a file) and the number "
        "of devices (on a CPU they are virtual and share its cores).",
        growth,
        plot=True,
    ),
}
# The table at the top: its columns of speeds, and the peers of each line in a cell.
TASKS = {
    ("train", 32): "training, batches of 32",
    ("infer", 1): "restoring, 1 image at a time",
    ("infer", 32): "restoring, 32 at a time",
    ("infer", 512): "restoring, 512 at a time",
}
SHOWN = {
    "Keras": ("keras:tensorflow",),
    "PyTorch": ("torch:eager", "torch:channels-last"),
    "torch.compile": ("torch:compile", "torch:compile-channels-last"),
    "Flax": ("flax",),
}
SUMMARY = """\
Each cell gives jaxdae's speed in images per second, and how many times as fast it is as each other
framework on the same machine. The network is `strided`: 178,001 parameters, images of 28×28.
Speeds are medians of five turns. PyTorch and `torch.compile` are each shown in the faster of their
two memory layouts, Keras runs on TensorFlow, and Flax is the same network on the layers of
`flax.linen`. In the last column whole processes train the network until its test error at sigma
0.5 is at least as good as that of Keras's script after ten epochs, with all programs compiled
before. On the Zen 5 Keras trained at half its speed in most float32 turns, because of other
programs on the host: 2.4× is the fairer figure there. [How it was measured](#how-it-was-measured)
says more."""
HOW = """\
- **The kernels were rewritten** in a simpler form on 2026-11-29, after these measurements. Beside
  the version before (82458da), on the Zen 4 and in nine turns of a second, training has 0.98 of its
  speed in both types, restoring 32 or 512 images 0.97 to 1.02, and restoring one image 0.98 in
  float32 and 0.95 in bfloat16. Each version ran in a process of `benchmarks/peer_worker.py`.
- **The machines** are virtual machines with two cores. Other programs on a host can slow one down
  for a while, so compare the speedups, which are taken within a turn.
- **Keras on the Zen 5.** In most turns of the float32 comparison Keras trained at half its speed.
  In fifteen turns beside Keras alone, Keras trained 4,845 images per second and jaxdae 11,275: 2.4
  times as fast, 2.0 to 4.6 times by the turn (`python -m benchmarks.peers --envs .peers --images
  3200 --repeats 15 --train 32 --infer 1 --peers keras:tensorflow`). In another run in bfloat16
  jaxdae trained 20,669 images per second: 3.8 times as fast as Keras and 4.3 times as fast as
  PyTorch.
- **The Zen 3** took 55.5 s in float32 and 48 s in bfloat16 to the error that Keras's script reached
  in 760 s: 14 and 16 times as fast (one seed, `python -m benchmarks.time_to_quality`). It has no
  bfloat16 instructions, so bfloat16 there trains 1.0 to 1.2 times as fast as float32.
- **The limit.** On the Zen 5 training reaches 93 to 104% of the operations per second of one large
  matrix product in float32, and 92 to 96% in bfloat16.
- **The last column** is this command, without `--dtype bfloat16` for float32: `python -m
  experiments.run --epochs 2 --train-images 46080 --b2 0.98 --dtype bfloat16 --no-figures
  --eval-sigmas 0.5`. Means over three seeds.
- **Older figures.** The Zen 5 was measured last. The other machines ran older kernels, by some
  hours or days, `torch.compile` without frozen weights, and jaxdae with the parameters as
  arguments. On the Zen 5 `torch.compile` restores with frozen weights, and jaxdae with the
  parameters compiled in.
- **Settings.** Since 2026-11-28 everything on JAX runs with `jax_cpu_enable_async_dispatch` off,
  and in all processes the C library keeps freed memory (`MALLOC_TRIM_THRESHOLD_` and two others).
  Without the second, PyTorch loses up to two fifths of its speed at 512 images
  (`python -m benchmarks.peers --return-memory`).
- **bfloat16** costs no quality here: after five epochs the error at sigma 0.5 is 0.01448 in
  bfloat16 and 0.01447 in float32 (means of three seeds; `python -m experiments.run --epochs 5
  --seed 0 --dtype bfloat16`). It pays on processors with bfloat16 instructions (AVX512-BF16, AMX),
  GPUs and TPUs. Sums stay in float32.
- **Kernels.** XLA has no fast path on a CPU for the gradients of strided convolutions. jaxdae
  therefore brings kernels for convolutions, dense layers, Adam and normal random numbers. A C++
  compiler (`c++`, `g++` or `clang++`) builds them at first use, in 5 to 15 seconds, into
  `~/.cache/jaxdae/kernels`. Without a compiler XLA's operations take their place: training then
  reaches half to seven tenths of the speed in float32, and a third to two thirds in bfloat16
  (`python -m benchmarks.throughput --dtypes float32 bfloat16 --operations`). Results differ by
  rounding only. On a GPU or TPU the layers are XLA's own.
- **Many images.** On a CPU `jaxdae.inference.denoise(model, params, images)` splits a large batch
  into pieces that fit the caches. In `jax.jit(lambda images: denoise(model, params, images))` the
  parameters are constants, and what depends on them alone is computed once.
- **The first command of the README** took 77 s of wall time with nothing compiled before: 56 s of
  training, the rest start-up, compilation, evaluation, figures and the report; 0.65 GB of memory. A
  second time it took 67 s, and 32 s with `--dtype bfloat16` (Intel Xeon with AMX, two cores,
  2026-11-27).
- **GPUs and TPUs** have not been measured yet."""


def figures(name: str, place: str) -> Path:
    """A part's figures on a machine: its platform, "cpu", or that and a name, "cpu-zen4"."""
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


def measured(place: str) -> dict[str, Any]:
    """The figures of a machine by part, in the page's order: each a machine and a report."""
    found = {name: figures(name, place) for name in PARTS}
    return {name: json.loads(file.read_text()) for name, file in found.items() if file.is_file()}


def places() -> list[str]:
    """The machines that there are figures of, by platform, the fastest at training first."""
    ends = sorted((f"-{name}.json" for name in PARTS), key=len, reverse=True)
    found = set()
    for file in FIGURES.glob("*.json"):
        end = next(filter(file.name.endswith, ends), None)
        if end:
            found.add(file.name.removesuffix(end))

    def rank(place: str) -> tuple[int, float, str]:
        train = speeds(measured(place).get("peers"), ("train", 32)).get("jaxdae", [0.0])
        return list(PLATFORMS).index(place.partition("-")[0]), -statistics.median(train), place

    return sorted((p for p in found if p.partition("-")[0] in PLATFORMS), key=rank)


def title(place: str, machine: dict[str, Any]) -> str:
    """What the page calls a machine."""
    device = machine["device"].replace("(R)", "").replace(" Processor", "")
    if found := re.fullmatch(r"cpu-zen(\d)", place):
        device = re.sub(r"^AMD EPYC(, family \d+ model \d+)?", f"AMD EPYC (Zen {found[1]})", device)
    return device


def speeds(data: Any, task: tuple[str, int]) -> dict[str, list[float]]:
    """The images/s of each framework at a task, in a peers part; empty if it was not measured."""
    rows = data["report"]["rows"] if data else []
    return next((r["speeds"] for r in rows if (r["task"], r["batch_size"]) == task), {})


def cell(found: dict[str, list[float]]) -> str:
    """jaxdae's speed, and how many times as fast it is as each other framework."""
    if not found:
        return ""
    ours = found["jaxdae"]
    lines = [f"**{statistics.median(ours):,.0f}**"]
    for name, variants in SHOWN.items():
        ratios = [
            statistics.median(a / b for a, b in zip(ours, found[variant], strict=True))
            for variant in variants
            if variant in found
        ]
        if ratios:
            best = min(ratios)
            lines.append(f"{best:.{0 if best >= 10 else 1}f}× {name}")
    return "<br>".join(lines)


def time_cell(data: Any, dtype: str) -> str:
    """The seconds to Keras's error, compiled before."""
    from benchmarks.time_to_quality import summarize

    means = summarize(data["report"]) if data else []
    for mean in means:
        if (mean["dtype"], mean["cached"]) == (dtype, True) and mean["mse"] <= means[0]["mse"]:
            keras = f"{mean['ratio']:.0f}× Keras ({means[0]['wall_seconds']:.0f} s)"
            return f"**{mean['wall_seconds']:.1f} s**<br>{keras}"
    return ""


def summary() -> str:
    """The table at the top of the page; empty if no frameworks were compared."""
    from benchmarks.timing import markdown

    lines = []
    for place in places():
        data = measured(place)
        for part in ("peers", "peers-bfloat16"):
            cells = [cell(speeds(data.get(part), task)) for task in TASKS]
            if any(cells):
                machine, dtype = data[part]["machine"], data[part]["report"]["dtype"]
                about = f"{title(place, machine)}, {machine['date']}"
                lines.append([about, dtype, *cells, time_cell(data.get("quality"), dtype)])
    columns = ["machine", "type", *TASKS.values(), "training to the error of Keras's script"]
    return markdown(columns, lines) if lines else ""


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
        "How fast jaxdae trains and restores images, beside other frameworks.",
        "",
    ]
    if table := summary():
        lines += [table, "", SUMMARY, ""]
    lines += [
        "`python -m benchmarks.performance` writes this page from the figures in "
        "`docs/performance/`. To measure your own machine, in environments that it makes for the "
        "other frameworks:",
        "",
        "```sh",
        f"python -m benchmarks.performance --measure --envs {envs}",
        "```",
        "",
    ]
    found = {place: measured(place) for place in places()}
    if found:
        lines += ["## How it was measured", "", HOW, ""]
        lines += ["The tables below, by machine:", ""]
        used = [
            part for name, part in PARTS.items() if any(name in data for data in found.values())
        ]
        lines += [f"- **{part.title}.** {part.text}" for part in used] + [""]
    for place, data in found.items():
        machines = [part["machine"] for part in data.values()]
        cores = f", {machines[0]['cores']} cores" if machines[0]["cores"] else ""
        platform = PLATFORMS[place.partition("-")[0]]
        lines += [f"## {platform}: {title(place, machines[0])}{cores}", ""]
        for name, machine in zip(data, machines, strict=True):
            part = PARTS[name]
            lines += [f"### {part.title}", "", part.table(data[name]["report"]), ""]
            if part.plot:
                lines += [f"![{part.title}](images/{image(name, place).name})", ""]
            words = shlex.join(command(name, place, envs))
            cores = f", {machine['cores']} cores" if machine["cores"] else ""
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
        help=f"any of {', '.join(PARTS)}; without a name, all parts without figures",
    )
    add(
        "--envs",
        type=Path,
        default=Path(".peers"),
        help="folder of the other frameworks' environments",
    )
    add(
        "--machine",
        metavar="NAME",
        help="a name for this machine, if its platform has figures of another one",
    )
    flags = parser.parse_args(argv)
    wrong = None
    if not PAGE.parent.is_dir():
        wrong = "there is no docs/ here: go to the folder of the repository"
    if flags.machine is not None and not re.fullmatch("[a-z0-9]+", flags.machine):
        wrong = f"--machine {flags.machine} must be small letters and digits, such as zen4"
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
