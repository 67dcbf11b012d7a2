"""Checkpoints hold what was saved: whole, verified when read, with an older one to fall back to."""

import multiprocessing
import re
import resource
import shutil
import subprocess
from contextlib import closing
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import jax.numpy as jnp
import pytest
from etils import epath

from semivl_jax import utils
from semivl_jax.train import checkpoint
from semivl_jax.train.checkpoint import Checkpoints, LoopState
from semivl_jax.weights import checksums
from tests import gcs

WRITTEN_LAST = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def state(value):
    return {"weight": jnp.full((3, 4), value), "bias": jnp.arange(5.0) + value}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with closing(Checkpoints(folder, keep=2)) as checkpoints:
        for step in (4, 8):
            checkpoints.save(state(step), LoopState(next_step=step))
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def restored(folder, **options):
    with closing(Checkpoints(folder, keep=2, **options)) as checkpoints:
        tree, progress = checkpoints.restore(state(0))
    return float(tree["weight"][0, 0]), progress.next_step


def test_a_flipped_byte_anywhere_is_named(saved, copied):
    assert checkpoint.set_aside_damaged(copied) == []
    named = [path for path in files(copied / "8") if path.name not in WRITTEN_LAST]
    assert {"manifest.ocdbt", "metadata", checksums.FILE} < {path.name for path in named}
    for path in named:
        for position in {0, path.stat().st_size // 2, path.stat().st_size - 1}:
            flip(path, position)
            message = rf"{path} .*; train on, which repeats the steps"
            with (
                closing(Checkpoints(copied, keep=2, read_only=True)) as checkpoints,
                pytest.raises(ValueError, match=message),
            ):
                checkpoints.verify()
            flip(path, position)
    for path in (path for path in files(copied / "8") if path.name in WRITTEN_LAST):
        for position in range(0, path.stat().st_size, 40):
            flip(path, position)
            assert restored(copied, read_only=True) == (8.0, 8)
            flip(path, position)
    assert [path.read_bytes() for path in files(copied)] == [p.read_bytes() for p in files(saved)]


def test_in_a_bucket_only_committed_checkpoints_count(monkeypatch):
    """As after a kill while the third one was written."""
    before = []
    with gcs.emulator(monkeypatch) as bucket:
        folder = epath.Path(bucket) / "run" / "checkpoints"
        assert checkpoint.steps(folder) == []
        options = {"keep": 2, "before_save": lambda: before.append(checkpoint.steps(folder))}
        with closing(Checkpoints(folder, **options)) as checkpoints:
            for step in (4, 8, 12):
                checkpoints.save(state(step), LoopState(next_step=step))
        assert before == [[], [4], [8, 4]] and checkpoint.steps(folder) == [12, 8]
        (folder / "12" / "commit_success.txt").unlink()
        assert checkpoint.steps(folder) == [8] and checkpoint.set_aside_damaged(folder) == []
        assert restored(folder, read_only=True) == (8.0, 8)
        assert restored(folder) == (8.0, 8)
        assert {path.name for path in folder.iterdir()} == {"8"}


def test_a_run_goes_on_from_the_checkpoint_before(copied):
    data = next(path for path in files(copied / "8" / "state") if path.parent.name == "d")
    flip(data, 10)
    assert checkpoint.set_aside_damaged(copied / "nowhere") == []
    (note,) = checkpoint.set_aside_damaged(copied)
    assert note.startswith(f"{data} is damaged: it has another SHA-256 than SHA256SUMS says; ")
    assert note.endswith("is now 8.damaged, the run goes on from the checkpoint of step 4")
    assert restored(copied) == (4.0, 4)
    with closing(Checkpoints(copied, keep=2)) as checkpoints:
        checkpoints.save(state(9), LoopState(next_step=8))
    assert restored(copied) == (9.0, 8)
    next(path for path in files(copied / "8") if path.name == "metadata").unlink()
    flip(copied / "4" / checksums.FILE, 70)
    notes = checkpoint.set_aside_damaged(copied)
    assert "metadata is missing" in notes[0] and "from the checkpoint of step 4" in notes[0]
    assert "SHA256SUMS is damaged" in notes[1] and "goes on from the start" in notes[1]
    assert checkpoint.steps(copied) == []


def test_a_checkpoint_of_an_earlier_version_is_read_with_a_note(copied):
    (copied / "8" / checksums.FILE).unlink()
    (note,) = checkpoint.set_aside_damaged(copied)
    assert "8 has no SHA256SUMS, an earlier version wrote it; it is read unverified" in note
    assert restored(copied) == (8.0, 8)


def test_what_a_killed_save_left_is_removed_by_the_next_run_only(copied):
    left = copied / "9.orbax-checkpoint-tmp"
    shutil.copytree(copied / "8", left)
    (left / "commit_success.txt").unlink()
    assert restored(copied, read_only=True) == (8.0, 8)
    assert left.exists()
    with closing(Checkpoints(copied, keep=2)) as checkpoints:
        checkpoints.save(state(9), LoopState(next_step=9))
    assert not left.exists()
    assert checkpoint.steps(copied) == [9, 8]
    assert checkpoint.set_aside_damaged(copied) == []


def refused_save(directory: Path, size: int, said: SimpleQueue) -> None:
    """A save with files of at most `size` bytes: writing fails as on a full disk, with another number."""
    many = {f"weight{number}": jnp.ones((30, 30)) for number in range(40)}
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with closing(Checkpoints(directory, keep=2)) as checkpoints:
            checkpoints.save(many, LoopState(next_step=9))
            checkpoints.wait()
    except utils.SystemFault as fault:
        said.put(str(fault))


@pytest.mark.parametrize("size", [10, 1000])
def test_a_save_that_the_system_refuses_is_named_and_can_be_repeated(copied, size):
    """Refused in a process of its own: its threads go on writing until it ends."""
    spawn = multiprocessing.get_context("spawn")
    said = spawn.SimpleQueue()
    process = spawn.Process(target=refused_save, args=(copied, size, said))
    process.start()
    process.join()
    assert not said.empty()
    assert re.search(f"{copied}: File too large; raise .* and repeat the same command", said.get())
    assert checkpoint.steps(copied) == [8, 4] and checkpoint.set_aside_damaged(copied) == []
    with closing(Checkpoints(copied, keep=2)) as checkpoints:
        checkpoints.save(state(9), LoopState(next_step=9))
    assert restored(copied) == (9.0, 9)


def test_sha256sum_reads_the_checksums(saved):
    done = subprocess.run(["sha256sum", "-c", checksums.FILE], cwd=saved / "8", capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(files(saved / "8")) - 3
