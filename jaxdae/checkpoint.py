"""Checkpoints that verify: the only place that knows Orbax.

A checkpoint is the training state and, in a JSON part beside it, whatever the caller needs to go
on (the configuration, the position, the history) with the SHA-256 of both. Orbax's arrays carry no
checksum, so a flipped bit restores silently wrong: `restore` goes through the steps from the newest
down and takes the first whose bytes hash to what was saved.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from math import nan
from pathlib import Path
from textwrap import shorten
from time import sleep
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdae.errors import InputError
from jaxdae.files import tree_sha256

FORMAT = 2


class Restored(NamedTuple):
    """A checkpoint that verified.

    Fields:
      step: its step.
      state: the state, as host arrays.
      meta: what was saved beside it.
      skipped: newer steps that did not verify, with the reason.
    """

    step: int
    state: Any
    meta: dict[str, Any]
    skipped: list[tuple[int, str]]


class Checkpoints:
    """The checkpoints of a run, in one folder; a context manager, for saves are asynchronous.

    Of several processes the first alone may open it; what it restores, it tells the others.

    Args:
      directory: the folder; made if it is not there.
      keep: how many of the newest to keep, beside the one with the lowest loss.

    Fields:
      failure: why the last save that has come to an end is not on disk; None if it is.
    """

    failure: str | None = None

    def __init__(self, directory: Path, *, keep: int = 3) -> None:
        if keep < 1:
            raise InputError(f"keep={keep} checkpoints must be at least 1")
        self.directory, self.keep = Path(directory).absolute(), keep
        self._step: int | None = None  # of the save under way
        self._failed: set[int] = set()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._losses: dict[int, float] = {}  # of the steps whose JSON part is whole

    @cached_property
    def _manager(self) -> Any:
        """Orbax's, once there is something to restore or to save: a fresh run need not wait."""
        ocp = _orbax()
        alone = {"primary_host": 0, "active_processes": {0}, "barrier_sync_key_prefix": "jaxdae"}
        manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                # Orbax would wait for all processes otherwise.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    **(alone if jax.process_count() > 1 else {})
                ),
                preservation_policy=_NewestAndBest(self.keep, self._losses),
            ),
        )
        for step in manager.all_steps():
            # What is damaged has no loss, and is never the best.
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                part = json.loads((self.directory / str(step) / "meta" / "metadata").read_text())
                if part["meta_sha256"] == _json_sha256([part["loss"], part["meta"]]):
                    self._losses[step] = part["loss"]
        return manager

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any, meta: dict[str, Any], *, loss: float) -> None:
        """Saves in the background; the state is copied first and may be donated at once.

        A disk that is full, say, is no reason to lose the state that is in memory: what keeps a
        save from the disk is not raised, but told in `failure`, after the next `save` or `wait`.
        What was saved before is kept.

        Args:
          step: the step reached; a checkpoint of that step is replaced.
          state: a tree of arrays.
          meta: JSON values.
          loss: decides which checkpoint is the best, the lowest.
        """
        self.wait()
        state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        sums = {"sha256": tree_sha256(state), "meta_sha256": _json_sha256([loss, meta])}
        meta = {"format": FORMAT, **sums, "loss": loss, "meta": meta}
        self._step = step
        with self._failing():
            replaced = step in self._manager.all_steps()
            self._losses[step] = loss
            if replaced:
                self._manager.delete(step)
            args = _orbax().args
            both = args.Composite(state=args.StandardSave(state), meta=args.JsonSave(meta))
            self._manager.save(step, args=both, force=True)

    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, newest first."""
        if not any(path.name.isdigit() for path in self.directory.iterdir()):
            return []
        self._manager.reload()
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(
        self, target: Any, check: Callable[[dict[str, Any]], None] = lambda meta: None
    ) -> Restored | None:
        """Restores the newest checkpoint that verifies; None if there is none at all.

        Args:
          target: a tree of the shapes and types to restore, such as a fresh state.
          check: raises if the JSON part is not what the caller needs.

        Raises:
          InputError: there are checkpoints, and none verifies.
        """
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), target)
        skipped: list[tuple[int, str]] = []
        for step in self.steps():
            # A damaged checkpoint raises exceptions of every kind, bare `Exception` among them.
            try:
                args = _orbax().args
                both = args.Composite(state=args.StandardRestore(target), meta=args.JsonRestore())
                saved = self._manager.restore(step, args=both)
                meta, state = saved["meta"], saved["state"]
                if meta["format"] != FORMAT:
                    raise ValueError(f"its format is {meta['format']}, and this reads {FORMAT}")
                state = jax.tree.map(np.asarray, state)
                # Orbax gives what was saved, of whatever shape.
                if jax.tree.map(_shape, state) != jax.tree.map(_shape, target):
                    raise ValueError("its arrays have other shapes than this run's")
                sums = tree_sha256(state), _json_sha256([meta["loss"], meta["meta"]])
                if sums != (meta["sha256"], meta["meta_sha256"]):
                    raise ValueError("its contents do not match their SHA-256")
                check(meta["meta"])
                return Restored(step, state, meta["meta"], skipped)
            except Exception as error:
                skipped.append((step, one_line(error)))
        if skipped:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in skipped)
            raise InputError(
                f"no checkpoint in {self.directory} can be trusted ({reasons}): restore the "
                "folder from a copy, or start again with another --out"
            )
        return None

    def wait(self) -> None:
        """Waits until what was saved is on disk, or `failure` says why it is not."""
        if self._step is None:
            return
        with self._failing():
            self._manager.wait_until_finished()
        if self._step is not None:
            self._step, self.failure = None, None

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self.wait()
        if "_manager" in self.__dict__:
            self._manager.close()
        # Where one of a save's writes fails, nothing waits for the others, and those that come late
        # make its folder anew.
        for _ in range(20 if self._failed else 0):
            self._sweep()
            sleep(0.1)
            if not any(self._debris(step) for step in self._failed):
                break

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Takes a failure of the save under way down, and its debris from a disk that is full."""
        try:
            yield
        except Exception as error:  # Orbax's background raises exceptions of every kind
            code = re.search(r"os_error_code='(\d+)'", str(error))
            known = isinstance(error, OSError) and error.strerror
            self.failure = os.strerror(int(code[1])) if code else str(known or one_line(error))
            assert self._step is not None
            self._failed.add(self._step)
            self._step = None
            self._sweep()

    def _debris(self, step: int) -> list[Path]:
        """The folders of a save that did not come to its end."""
        return list(self.directory.glob(f"{step}.orbax-checkpoint-tmp*"))

    def _sweep(self) -> None:
        """Removes what saves that failed have left."""
        for step in self._failed:
            for folder in self._debris(step):
                shutil.rmtree(folder, ignore_errors=True)


def _orbax() -> Any:
    """Orbax, which takes a sixth of a second to import: whoever saves nothing does without."""
    import orbax.checkpoint

    return orbax.checkpoint


class _NewestAndBest:
    """Which checkpoints to keep: so many of the newest, and the one with the lowest loss.

    Orbax has policies for both, but takes the loss from a file that, damaged, keeps it from opening
    the folder at all.
    """

    def __init__(self, keep: int, losses: dict[int, float]) -> None:
        self.keep, self.losses = keep, losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]  # in ascending order
        known = {step: loss for step in steps if (loss := self.losses.get(step, nan)) == loss}
        best = min(known, key=lambda step: known[step], default=None)
        return [step in steps[-self.keep :] or step == best for step in steps]


def one_line(error: BaseException) -> str:
    """What an error says, in a short line."""
    return shorten(" ".join(str(error).split()) or type(error).__name__, 100, placeholder=" ...")


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{leaf.shape}"
