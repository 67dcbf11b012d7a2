"""Checkpoints of a run: training state and loop state, written together.

`<directory>/<step>/` holds the state after `step` updates and, as JSON, the position in the data stream and
the best score so far. Orbax writes in the background into a temporary folder and renames it at the end,
so a killed run leaves only complete checkpoints.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from semivl_jax.train.state import TrainState


@dataclasses.dataclass
class LoopState:
    """State of a run beside the model.

    next_step: the step of the next batch; with the seed it is the whole state of the data stream.
    evaluated: the step of the last finished evaluation, −1 before the first.
    best_score, best_step: highest validation mIoU in percent and its step; −1 before the first.
    """

    next_step: int = 0
    evaluated: int = -1
    best_score: float = -1.0
    best_step: int = -1


class Checkpoints:
    """The newest `keep` checkpoints of one run."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory = directory
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True
        )
        handlers = {
            # Compression hardly reduces the size, and decompression takes half the time of a restore.
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "progress": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=options, item_handlers=handlers
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: LoopState) -> None:
        """Starts writing and returns when the arrays are copied. A step is written once."""
        step = progress.next_step
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
        )
        self._manager.save(step, args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, LoopState]:
        """The newest checkpoint, placed like `like` (arrays or abstract arrays with shardings).

        Raises:
          ValueError: there is none, or it cannot be read or does not fit the model.
        """
        step = self.latest_step()
        if step is None:
            raise ValueError(
                f"{self._directory} holds no checkpoint; train first, or name another workdir"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        placed = ocp.checkpoint_utils.construct_restore_args(abstract)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(abstract, restore_args=placed),
            progress=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=items)
            return restored["state"], LoopState(**restored["progress"])
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"checkpoint {self._directory / str(step)} cannot be restored ({reason}); if it is "
                "damaged, delete that folder to go on from an older one"
            ) from error

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the background threads."""
        self._manager.close()
