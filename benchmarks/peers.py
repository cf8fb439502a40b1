"""The same network in other frameworks: images per second of training and inference.

    python -m benchmarks.peers --envs .peers
    python -m benchmarks.peers --envs .peers --peers keras:tensorflow torch:compile --json FILE
    python -m benchmarks.peers --dtype bfloat16 --peers torch:cudagraphs      # on a GPU

Each peer runs in its own process and environment, .peers/NAME. A missing environment is made from
benchmarks/requirements/NAME.txt. All processes are compiled and warm before the timing starts, and
wait while another one runs. They take turns, jaxdae first, for a second or more. The table gives
the median with the lowest and the highest, and the median of the speedups within a turn.
`benchmarks/peer_worker.py` says what each peer does. In all processes the C library keeps freed
memory, which helps PyTorch most; `--return-memory` turns that off.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import not_a_file, spread
from jaxdae.files import write_whole

ROOT = Path(__file__).parents[1]
# The environment that a peer runs in; None: this one.
PEERS: dict[str, str | None] = {
    "flax": None,
    "keras:tensorflow": "tensorflow",
    "keras:jax": "keras-jax",
    "torch:eager": "torch",
    "torch:channels-last": "torch",
    "torch:compile": "torch",
    "torch:compile-channels-last": "torch",
    "torch:cudagraphs": "torch",
    "torch:cudagraphs-channels-last": "torch",
}
CPU_PEERS = [name for name in PEERS if "cudagraphs" not in name]
# For the C library's allocator, in every process: memory that a call gives back is kept for the
# next one. Taken anew from the system it comes page by page.
KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


class Worker:
    """A peer in its process, with these variables in its environment.

    Args:
      name: of the peer, FRAMEWORK:SETTING.
      python: of its environment.
      dtype: to compute in.
      variables: of its environment, beside those that are set.
      script: what the process runs, in benchmarks/.
    """

    def __init__(
        self,
        name: str,
        python: str,
        dtype: str,
        variables: dict[str, str],
        script: str = "peer_worker.py",
    ) -> None:
        self.name = name
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self.process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / script), name, dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        )

    def time(self, task: str, batch_size: int, images: int) -> float:
        """The seconds that a task takes; compiled and run before, if it is new."""
        words = {"task": task, "batch_size": batch_size, "images": images}
        return float(self.ask(words)["seconds"])

    def ask(self, words: dict[str, Any]) -> dict[str, Any]:
        """The answer to a task.

        Raises:
          RuntimeError: the process has stopped.
        """
        assert self.process.stdin and self.process.stdout
        task = words["task"]
        try:
            self.process.stdin.write(json.dumps(words) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (ValueError, OSError):
            self.process.kill()
            self.process.wait()
            self.said.seek(0)
            said = self.said.read().strip().splitlines() or ["nothing"]
            raise RuntimeError(f"{self.name} stopped in {task}, and said: {said[-1]}") from None

    def close(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has stopped already
            self.process.stdin.close()
        self.process.wait()
        self.said.close()


def environment(folder: Path, name: str | None) -> str:
    """The Python of an environment, made if it is not there."""
    if name is None:
        return sys.executable
    python = folder / name / "bin" / "python"
    done = folder / name / "installed"
    if not done.exists():
        print(f"making {folder / name}", file=sys.stderr)
        wanted = ROOT / "benchmarks/requirements" / f"{name}.txt"
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(wanted)], check=True)
        done.touch()
    return str(python.absolute())


def measure(
    workers: Sequence[Worker], task: str, batch_size: int, images: int, repeats: int
) -> dict[str, Any]:
    """The images/s of each worker, timed in turn."""
    images = max(1, images // batch_size) * batch_size
    speeds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for worker in workers:
        worker.time(task, batch_size, images)
    for _ in range(repeats):
        for worker in workers:
            speeds[worker.name].append(images / worker.time(task, batch_size, images))
    return {"task": task, "batch_size": batch_size, "images": images, "speeds": speeds}


def table(row: dict[str, Any]) -> list[str]:
    """A row's lines of Markdown: each peer, and how many times as fast jaxdae is."""
    ours = row["speeds"]["jaxdae"]
    lines = []
    for name, speeds in row["speeds"].items():
        ratio = [a / b for a, b in zip(ours, speeds, strict=True)]
        cells = [row["task"], str(row["batch_size"]), name, spread(speeds), spread(ratio, 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 a peer failed, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.peers", description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add("--envs", type=Path, default=Path(".peers"), help="folder of the environments")
    add(
        "--peers",
        nargs="+",
        default=CPU_PEERS,
        choices=PEERS,
        metavar="NAME",
        help=f"which of {', '.join(PEERS)} (default: all but those of CUDA graphs)",
    )
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="what to compute in")
    add("--train", type=int, nargs="*", default=[32, 128], metavar="N", help="batch sizes")
    add("--infer", type=int, nargs="*", default=[1, 32, 512], metavar="N", help="batch sizes")
    add("--images", type=int, default=6400, help="images in a timed call (at batch 1, a tenth)")
    add("--repeats", type=int, default=7, help="timed turns")
    add("--return-memory", action="store_true", help="leave the C library's allocator as it is")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    flags = parser.parse_args(argv)
    wrong = not_a_file("--json", flags.json)
    if min(*flags.train, *flags.infer, flags.images, flags.repeats) < 1:
        wrong = "error: batch sizes, images and repeats must be at least 1"
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    rows = []
    workers: list[Worker] = []
    try:
        pythons = {name: environment(flags.envs, PEERS[name]) for name in flags.peers}
        everyone = {"jaxdae": sys.executable, **pythons}
        kept = {} if flags.return_memory else KEPT
        workers = [Worker(name, python, flags.dtype, kept) for name, python in everyone.items()]
        about = {worker.name: worker.ask({"task": "about"}) for worker in workers}
        for name, versions in about.items():
            print(f"{name}: {', '.join(f'{k} {v}' for k, v in versions.items())}", file=sys.stderr)
        print("| task | batch | framework | images/s | speedup of jaxdae |")
        print("| --- | --- | --- | --- | --- |")
        for task, sizes in (("train", flags.train), ("infer", flags.infer)):
            for batch_size in sizes:
                images = flags.images if batch_size > 1 else max(1, flags.images // 10)
                rows.append(measure(workers, task, batch_size, images, flags.repeats))
                print("\n".join(table(rows[-1])), flush=True)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    finally:
        for worker in workers:
            worker.close()
    if flags.json:
        report = {"dtype": flags.dtype, "about": about, "rows": rows}
        write_whole(flags.json, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
