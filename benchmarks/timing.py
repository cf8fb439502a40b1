"""What the benchmarks share: timing in turn, the spread of what came out, files to write."""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# What a processor has for products, the fastest first, as Linux calls it.
INSTRUCTIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX512-BF16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}


def in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each call, timed in turn, so that what disturbs one turn disturbs all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, with the lowest and the highest."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """What a figure depends on: the device, the versions, the date."""
    import flax
    import jax

    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "cores": len(affinity()) if device.platform == "cpu" else None,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def affinity() -> set[int]:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def processor() -> str:
    """The processor's name, and what it computes with where Linux tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    about = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = about.get("flags", "").split()
    best = next((INSTRUCTIONS[flag] for flag in INSTRUCTIONS if flag in flags), "")
    name = about.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in about:  # a cloud may tell of the model no more than this
        name += f", family {about['cpu family']} model {about.get('model', '?')}"
    return f"{name} with {best}" if best else name


def not_a_file(flag: str, path: Path | None) -> str | None:
    """Why nothing can be written to a path that a flag gave; None if it can."""
    if path and (path.is_dir() or not path.parent.is_dir()):
        return f"error: {flag} {path} must be a file in a folder that exists"
    return None
