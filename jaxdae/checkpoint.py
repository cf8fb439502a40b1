"""Checkpoints with a SHA-256, written by Orbax.

A checkpoint holds the training state, JSON values that the caller needs to continue (configuration,
position, history), and the SHA-256 of both. Orbax does not notice a flipped bit in an array.
`restore` tries the checkpoints from the newest to the oldest, and takes the first one that matches
its SHA-256.
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
    """A checkpoint that matches its SHA-256.

    Fields:
      step: its step.
      state: the training state, as NumPy arrays.
      meta: the JSON values that were saved with it.
      skipped: (step, reason) of newer checkpoints that could not be used.
    """

    step: int
    state: Any
    meta: dict[str, Any]
    skipped: list[tuple[int, str]]


class Checkpoints:
    """The checkpoints of a run, in one folder.

    Saves run in the background, so this is a context manager: leaving it waits for them. Of several
    processes, only the first may open the folder; it sends the others what it restores.

    Args:
      directory: the folder, created if missing.
      keep: the number of newest checkpoints to keep. The one with the lowest loss is kept, too.

    Fields:
      failure: the reason why the last finished save is not on disk; None if it is.

    Raises:
      InputError: `keep` is less than 1.
    """

    failure: str | None = None

    def __init__(self, directory: Path, *, keep: int = 3) -> None:
        if keep < 1:
            raise InputError(f"keep={keep} checkpoints must be at least 1")
        self.directory, self.keep = Path(directory).absolute(), keep
        self._saving: int | None = None  # the step that is being saved
        self._failed: set[int] = set()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._losses: dict[int, float] = {}  # by step, without damaged checkpoints

    @cached_property
    def _manager(self) -> Any:
        """Orbax's manager. It is made when it is first needed, because that takes time."""
        ocp = _orbax()
        alone = {"primary_host": 0, "active_processes": {0}, "barrier_sync_key_prefix": "jaxdae"}
        manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                # Otherwise Orbax waits for all processes.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    **(alone if jax.process_count() > 1 else {})
                ),
                preservation_policy=_NewestAndBest(self.keep, self._losses),
            ),
        )
        for step in manager.all_steps():
            # A damaged checkpoint has no loss, so it is never the best.
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
        """Starts to save a checkpoint in the background.

        The state is copied first, so its buffers may be donated at once. A failure, such as a full
        disk, does not end the run: the next `save` or `wait` sets `failure`, and older checkpoints
        stay.

        Args:
          step: the training step. A checkpoint of the same step is replaced.
          state: a tree of arrays.
          meta: JSON values.
          loss: the checkpoint with the lowest loss is the best one.
        """
        self.wait()
        state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        sums = {"sha256": tree_sha256(state), "meta_sha256": _json_sha256([loss, meta])}
        meta = {"format": FORMAT, **sums, "loss": loss, "meta": meta}
        self._saving = step
        with self._catch_failure():
            replaced = step in self._manager.all_steps()
            self._losses[step] = loss
            if replaced:
                self._manager.delete(step)
            args = _orbax().args
            both = args.Composite(state=args.StandardSave(state), meta=args.JsonSave(meta))
            self._manager.save(step, args=both, force=True)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, newest first."""
        if not any(path.name.isdigit() for path in self.directory.iterdir()):
            return []
        self._manager.reload()
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(
        self, target: Any, check: Callable[[dict[str, Any]], None] = lambda meta: None
    ) -> Restored | None:
        """Restores the newest checkpoint that matches its SHA-256; None if there are none.

        Args:
          target: a tree with the shapes and types to restore, such as a fresh state.
          check: called with the JSON values; raises if the caller cannot use them.

        Raises:
          InputError: there are checkpoints, but none can be used.
        """
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), target)
        skipped: list[tuple[int, str]] = []
        for step in self.steps():
            # A damaged checkpoint raises exceptions of many types, even plain `Exception`.
            try:
                args = _orbax().args
                both = args.Composite(state=args.StandardRestore(target), meta=args.JsonRestore())
                saved = self._manager.restore(step, args=both)
                meta, state = saved["meta"], saved["state"]
                if meta["format"] != FORMAT:
                    raise ValueError(f"its format is {meta['format']}, but must be {FORMAT}")
                state = jax.tree.map(np.asarray, state)
                # Orbax restores other shapes, too.
                if jax.tree.map(_shape, state) != jax.tree.map(_shape, target):
                    raise ValueError("its arrays differ in shape from this run's")
                sums = tree_sha256(state), _json_sha256([meta["loss"], meta["meta"]])
                if sums != (meta["sha256"], meta["meta_sha256"]):
                    raise ValueError("it does not match its SHA-256")
                check(meta["meta"])
                return Restored(step, state, meta["meta"], skipped)
            except Exception as error:
                skipped.append((step, one_line(error)))
        if skipped:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in skipped)
            raise InputError(
                f"no checkpoint in {self.directory} can be used ({reasons}): restore the "
                "folder from a copy, or start again with another --out"
            )
        return None

    def wait(self) -> None:
        """Waits for the save in the background, and sets `failure`."""
        if self._saving is None:
            return
        with self._catch_failure():
            self._manager.wait_until_finished()
        if self._saving is not None:
            self._saving, self.failure = None, None

    def close(self) -> None:
        """Waits for the save in the background, and closes the folder."""
        self.wait()
        if "_manager" in self.__dict__:
            self._manager.close()
        # If one write of a save fails, nothing waits for its other writes. A late one creates the
        # temporary folder again.
        for _ in range(20 if self._failed else 0):
            self._remove_partial()
            sleep(0.1)
            if not any(self._partial(step) for step in self._failed):
                break

    @contextmanager
    def _catch_failure(self) -> Iterator[None]:
        """Turns an exception of the current save into `failure`, and removes its partial files."""
        try:
            yield
        except Exception as error:  # Orbax's threads raise exceptions of many types
            code = re.search(r"os_error_code='(\d+)'", str(error))
            known = isinstance(error, OSError) and error.strerror
            self.failure = os.strerror(int(code[1])) if code else str(known or one_line(error))
            assert self._saving is not None
            self._failed.add(self._saving)
            self._saving = None
            self._remove_partial()

    def _partial(self, step: int) -> list[Path]:
        """The temporary folders of a save."""
        return list(self.directory.glob(f"{step}.orbax-checkpoint-tmp*"))

    def _remove_partial(self) -> None:
        """Removes the temporary folders of failed saves."""
        for step in self._failed:
            for folder in self._partial(step):
                shutil.rmtree(folder, ignore_errors=True)


def _orbax() -> Any:
    """Orbax, imported when it is first used, because that takes a sixth of a second."""
    import orbax.checkpoint

    return orbax.checkpoint


class _NewestAndBest:
    """A policy for Orbax: keeps the `keep` newest checkpoints and the one with the lowest loss.

    Orbax has policies for both. But they read the loss from a file, and if that file is damaged,
    Orbax cannot open the folder at all.
    """

    def __init__(self, keep: int, losses: dict[int, float]) -> None:
        self.keep, self.losses = keep, losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]  # in ascending order
        known = {step: loss for step in steps if (loss := self.losses.get(step, nan)) == loss}
        best = min(known, key=lambda step: known[step], default=None)
        return [step in steps[-self.keep :] or step == best for step in steps]


def one_line(error: BaseException) -> str:
    """The message of an exception in one line of at most 100 characters."""
    return shorten(" ".join(str(error).split()) or type(error).__name__, 100, placeholder=" ...")


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{leaf.shape}"
