"""Checkpoints that verify: the only place that knows Orbax.

A checkpoint is the training state and, in a JSON part beside it, whatever the caller needs to go
on (the configuration, the position, the history) with the SHA-256 of the state. Orbax's arrays
carry no checksum, so a flipped bit restores silently wrong: `restore` goes through the steps from
the newest down and takes the first whose bytes hash to what was saved.
"""

from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxdae.digest import tree_sha256
from jaxdae.errors import InputError

FORMAT = 1


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

    Args:
      directory: the folder; made if it is not there.
      keep: how many of the newest to keep, beside the one with the lowest loss.
    """

    def __init__(self, directory: Path, *, keep: int = 3) -> None:
        if keep < 1:
            raise InputError(f"keep={keep} checkpoints must be at least 1")
        policies = checkpoint_managers
        self.directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=True,
                # Only with these are the metrics written, and so known when the folder is reopened.
                best_fn=lambda metrics: metrics["loss"],
                best_mode="min",
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(get_metric_fn=lambda m: m["loss"], reverse=True, n=1),
                    ]
                ),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any, meta: dict[str, Any], *, loss: float) -> None:
        """Saves in the background; the state is copied first and may be donated at once.

        Args:
          step: the step reached; a checkpoint of that step is replaced.
          state: a tree of arrays.
          meta: JSON values.
          loss: decides which checkpoint is the best, the lowest.
        """
        if step in self._manager.all_steps():
            self._manager.delete(step)
        state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        meta = {"format": FORMAT, "sha256": tree_sha256(state), "meta": meta}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
            metrics={"loss": loss},
            force=True,
        )

    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, newest first."""
        return sorted(self._manager.all_steps(read=True), reverse=True)

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
                saved = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
                    ),
                )
                meta, state = saved["meta"], saved["state"]
                if meta["format"] != FORMAT:
                    raise ValueError(f"its format is {meta['format']}, and this reads {FORMAT}")
                state = jax.tree.map(np.asarray, state)
                # Orbax gives what was saved, of whatever shape.
                if jax.tree.map(_shape, state) != jax.tree.map(_shape, target):
                    raise ValueError("its arrays have other shapes than this run's")
                if tree_sha256(state) != meta["sha256"]:
                    raise ValueError("its contents do not match their SHA-256")
                check(meta["meta"])
                return Restored(step, state, meta["meta"], skipped)
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                skipped.append((step, shorten(reason, 100, placeholder=" ...")))
        if skipped:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in skipped)
            raise InputError(
                f"no checkpoint in {self.directory} can be trusted ({reasons}): restore the "
                "folder from a copy, or start again with another --out"
            )
        return None

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self._manager.close()


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{leaf.shape}"
