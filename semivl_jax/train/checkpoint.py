"""Checkpoints of a run: training state and loop state, written together.

`<directory>/<step>/` holds the state after `step` updates and, as JSON, the position in the data stream and
the best score so far. Orbax writes in the background into a temporary folder and renames it at the end,
so a killed run leaves only complete checkpoints. Before the renaming it also writes `SHA256SUMS`, which is
verified before a checkpoint is read.

In a bucket nothing is renamed: a checkpoint is complete when it has the file `commit_success.txt`. The bucket
has and verifies checksums of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath

from semivl_jax import buckets, utils
from semivl_jax.train.state import TrainState
from semivl_jax.weights import checksums

Directory = Path | epath.Path
"""A folder of this machine, or an `epath.Path` in a bucket."""

_COMMITTED = "commit_success.txt"
_WRITTEN_LAST = ("_CHECKPOINT_METADATA", _COMMITTED)
"""Files that Orbax writes after the checksums; nothing is read from them."""


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


def steps(directory: Directory) -> list[int]:
    """Steps of the complete checkpoints, the newest first."""
    return sorted(
        (
            int(path.name)
            for path in directory.glob("*")
            if path.name.isdigit() and (not buckets.is_bucket(path) or (path / _COMMITTED).exists())
        ),
        reverse=True,
    )


def set_aside_damaged(directory: Directory) -> list[str]:
    """Renames checkpoints that are damaged to `STEP.damaged`, from the newest on, until one is not.

    Returns a sentence for each of them, and one for a checkpoint that cannot be verified.
    """
    notes, found = [], steps(directory)
    for step, before in itertools.zip_longest(found, found[1:]):
        folder = directory / str(step)
        try:
            notes += _unverified(folder)
            return notes
        except ValueError as error:
            aside = folder.with_name(f"{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            start = f"the checkpoint of step {before}" if before else "the start"
            notes.append(
                f"{error}; its checkpoint is now {aside.name}, the run goes on from {start}"
            )
    return notes


def _unverified(folder: Directory) -> list[str]:
    if buckets.is_bucket(folder) or checksums.verify(folder):
        return []
    return [
        f"checkpoint {folder} has no {checksums.FILE}, an earlier version wrote it; it is read unverified"
    ]


class Checkpoints:
    """The newest `keep` checkpoints of one run; with `read_only` nothing is created or removed.

    `before_save` is called before a new one is written.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        keep: int,
        read_only: bool = False,
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory, self._before_save = directory, before_save
        self._saving = -1
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,  # of killed runs
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        handlers = {
            # Compression hardly reduces the size, and decompression takes half the time of a restore.
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "progress": ocp.JsonCheckpointHandler(),
        }
        if isinstance(directory, Path):
            directory = directory.absolute()
        self._manager = ocp.CheckpointManager(directory, options=options, item_handlers=handlers)

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
        self.wait()
        self._before_save()
        self._saving = step
        with self._named_faults():
            self._manager.save(step, args=items)

    def _write_checksums(self) -> None:
        """Runs in the background thread, when all files are written and before the renaming."""
        if jax.process_index() == 0 and not buckets.is_bucket(self._directory):
            name = str(self._saving)
            temporary = self._directory.glob(f"{name}.orbax-checkpoint-tmp*")
            folder = next(temporary, self._directory / name)
            checksums.write(folder, leave_out=_WRITTEN_LAST)

    def verify(self) -> list[str]:
        """Verifies the newest checkpoint; a sentence if it has no checksums.

        Raises:
          ValueError: a file is damaged; the message names it.
        """
        step = self.latest_step()
        if step is None:
            return []
        try:
            return _unverified(self._directory / str(step))
        except ValueError as error:
            raise ValueError(
                f"{error}; train on, which repeats the steps since the checkpoint before, or delete its "
                "checkpoint to use that one"
            ) from error

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
        """Waits until everything is on disk.

        Raises:
          SystemFault: it cannot be written; the message says why.
        """
        with self._named_faults():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the background threads."""
        with self._named_faults():
            self._manager.close()

    @contextlib.contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            fault = utils.fault_in(error, self._directory)
            if fault is None:
                raise
            raise fault from error
