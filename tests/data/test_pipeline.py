"""The training stream: order, shards, crops of every stream, workers, resuming."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from semivl_jax import utils
from semivl_jax.data.crops import Geometry
from semivl_jax.data.pipeline import BatchStream, TrainPipeline
from semivl_jax.data.sampler import Sampler, Shard, generator, permutation
from semivl_jax.data.source import open_source
from semivl_jax.types import Stream
from tests.data.photos import make_folder, prepared

GEOMETRY = Geometry(crop=32, resize="ratio", ratio_long=128, ratio_short=32)
ONE, TWO = (Stream("unlabelled"),), (Stream("unlabelled", crops=2),)


def make(source, *, labelled=(0, 1, 2), unlabelled=range(3, 13), batch=6, streams=ONE, **options):
    options = {"geometry": GEOMETRY, "seed": 3} | options
    return TrainPipeline(
        source, list(labelled), list(unlabelled), streams=streams, batch=batch, **options
    )


def first(pipeline, count, start=0):
    with pipeline.batches(start) as stream:
        return [next(stream) for _ in range(count)]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_no_image_is_lost_or_repeated_within_a_pass(processes):
    unlabelled, labelled = Sampler("unlabelled", 100, seed=0), Sampler("labelled", 7, 0, 100)
    shards = [Shard(24, process, processes) for process in range(processes)]
    for start in (0, 100, 300):  # first indices of passes; batches straddle them
        steps = range(start // 24, (start + 100) // 24 + 1)
        indices = sorted(
            shard.global_index(local)
            for shard in shards
            for step in steps
            for local in range(step * shard.size, (step + 1) * shard.size)
        )
        assert indices == list(range(steps[0] * 24, (steps[-1] + 1) * 24))
        one_pass = [index for index in indices if start <= index < start + 100]
        assert sorted(unlabelled(index) for index in one_pass) == list(range(100))
        seen = np.bincount([labelled(index) for index in one_pass], minlength=7)
        assert seen.min() >= 14 and seen.max() <= 15  # 100 repeats of 7 images


def test_every_labelled_image_is_used_even_if_few_are_unlabelled(toy_source):
    pipeline = make(toy_source, labelled=range(6), unlabelled=[7, 8], batch=6)
    assert sorted(pipeline.ids(0)["labelled"]) == [f"train{i:02d}" for i in range(6)]


def test_orders_differ_between_passes_streams_and_seeds():
    drawn = [
        permutation(seed, f"{name}/order", number, 50).tolist()
        for seed in (0, 1)
        for name in ("labelled", "unlabelled", "context", "unlabelled.1")
        for number in (0, 1)
    ]
    assert all(sorted(order) == list(range(50)) for order in drawn)
    assert len({tuple(order) for order in drawn}) == len(drawn)


def test_orders_and_crops_stay_what_they_were():
    """A run that is resumed with a newer version continues its stream."""
    orders = {
        "unlabelled": [1, 7, 0, 3, 5, 4, 6, 2],
        "labelled": [0, 7, 1, 5, 3, 4, 6, 2],
    }
    for name, order in orders.items():
        assert permutation(0, f"{name}/order", 2, 8).tolist() == order
    assert permutation(0, "context/order", 0, 8).tolist() == [5, 0, 3, 6, 7, 4, 1, 2]
    geometry = {
        "labelled": [950, 717, 572, 936],
        "unlabelled": [343, 592, 389, 427],
        "unlabelled.1": [597, 718, 554, 163],
        "context": [856, 953, 346, 650],
    }
    for name, numbers in geometry.items():
        assert generator(5, f"{name}/geometry", 7).integers(1000, size=4).tolist() == numbers
    labelled, unlabelled = Sampler("labelled", 3, 1, 5), Sampler("unlabelled", 5, 1)
    assert [labelled(i) for i in range(10)] == [2, 0, 0, 1, 1, 0, 0, 1, 1, 2]
    assert [unlabelled(i) for i in range(10)] == [0, 4, 1, 3, 2, 4, 1, 0, 3, 2]


def test_batches_hold_the_images_of_ids(toy_source):
    pipeline = make(toy_source)
    for step, batch in enumerate(first(pipeline, 4)):
        ids = pipeline.ids(step)
        assert len(ids["labelled"]) == len(ids["unlabelled"]) == 6
        assert set(ids["labelled"]) <= {"train00", "train01", "train02"}
        assert not set(ids["unlabelled"]) & {"train00", "train01", "train02"}
        assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
            "labelled/image": ((6, 32, 32, 3), "uint8"),
            "labelled/label": ((6, 32, 32), "uint8"),
            "unlabelled/image": ((6, 32, 32, 3), "uint8"),
            "unlabelled/size": ((6, 2), "int32"),
        }
        assert set(np.unique(batch["labelled/label"])) <= {0, 1, 255}
        for image, (rows, columns) in zip(
            batch["unlabelled/image"], batch["unlabelled/size"], strict=True
        ):
            assert not image[rows:].any() and not image[:, columns:].any()
            assert image[:rows, :columns].any()


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_the_batches_of_one(toy_source, processes):
    options = {"streams": TWO, "batch": 24}
    whole = make(toy_source, **options)
    parts = [
        make(toy_source, **options, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    shares = [first(part, 2, start=5) for part in parts]
    for step, batch in enumerate(first(whole, 2, start=5)):
        joined = {name: np.concatenate([s[step][name] for s in shares]) for name in batch}
        assert_equal(joined, batch)
        names = [name for part in parts for name in part.ids(5 + step)["unlabelled"]]
        assert names == whole.ids(5 + step)["unlabelled"]


@pytest.mark.parametrize(("workers", "process"), [(1, (0, 1)), (2, (1, 3))])
def test_resumes_anywhere_with_other_workers(toy_source, workers, process):
    """An uninterrupted stream, loaded by threads, against one that begins at a random step."""
    options = {"streams": TWO, "process_index": process[0], "process_count": process[1]}
    start = int(np.random.default_rng(workers).integers(1, 30))
    here = first(make(toy_source, **options), start + 4)
    there = make(toy_source, **options, workers=workers)
    for step in range(start, start + 4):
        assert there.ids(step) == make(toy_source, **options).ids(step)
    for ours, theirs in zip(here[start:], first(there, 4, start=start), strict=True):
        assert_equal(ours, theirs)


def test_second_crop_of_the_same_photo(toy_source):
    geometry = Geometry(crop=32, resize="long_side", scale_min=1.0, scale_max=1.0)
    (batch,) = first(make(toy_source, streams=TWO, geometry=geometry), 1)
    sizes = np.concatenate([batch["unlabelled/size"], batch["unlabelled.1/size"]], axis=1)
    np.testing.assert_array_equal(sizes[:, :2], sizes[:, 2:])
    fits = (sizes[:, :2] < 32).all(axis=1)  # nothing to choose: both are the whole photo
    for i in np.flatnonzero(fits):
        np.testing.assert_array_equal(batch["unlabelled/image"][i], batch["unlabelled.1/image"][i])
    (batch,) = first(make(toy_source, streams=TWO), 1)
    differ = batch["unlabelled/image"] != batch["unlabelled.1/image"]
    assert differ.any(axis=(1, 2, 3)).all()


def test_supervised_stream_has_labelled_crops_only(toy_source):
    options = {"labelled": range(3), "streams": (), "batch": 4}
    (batch,) = first(make(toy_source, **options), 1)
    assert batch.keys() == {"labelled/image", "labelled/label"}
    # Unlabelled images that no stream shows change nothing.
    (other,) = first(make(toy_source, **options | {"unlabelled": ()}), 1)
    assert_equal(batch, other)


def test_further_streams_leave_the_others_as_they_are(toy_source):
    validation = open_source(toy_source.directory, "validation")
    context = Stream("context", crops=3, source="other", labels=True)
    oracle = Stream("oracle", labels=True)  # of the unlabelled images those that have a label
    pipeline = make(
        toy_source,
        unlabelled=range(3, 13),
        streams=(context, *ONE, oracle),
        extra_sources={"other": validation},
        workers=1,
    )
    (batch,) = first(pipeline, 1, start=1)
    (alone,) = first(make(toy_source), 1, start=1)
    assert_equal({name: batch[name] for name in alone}, alone)
    ids = pipeline.ids(1)
    assert list(ids) == ["labelled", "context", "unlabelled", "oracle"]
    assert sorted(ids["context"]) == sorted([f"val{i:02d}" for i in range(3)] * 2)
    assert set(ids["oracle"]) == {"train03", "train04", "train05"}
    fields = {name.split("/")[1] for name in batch if name.startswith("context.2/")}
    assert fields == {"image", "label", "size"}
    for name in ("context", "context.1", "context.2", "oracle"):
        images, labels = batch[f"{name}/image"], batch[f"{name}/label"]
        assert images.shape == (6, 32, 32, 3) and labels.shape == (6, 32, 32)
        for label, (rows, columns) in zip(labels, batch[f"{name}/size"], strict=True):
            assert (label[rows:] == 255).all() and (label[:, columns:] == 255).all()
    assert len({batch[f"context{n}/image"].tobytes() for n in ("", ".1", ".2")}) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_label_is_named_wherever_it_is_loaded(tmp_path, workers):
    source = prepared(make_folder(tmp_path / "photos", masks=1, without=2, validation=1))
    facts = json.loads((source.directory / "metadata.json").read_text())
    facts["classes"], facts["definitions"] = ["sky"], [["sky"]]
    facts["palette"] = facts["palette"][:1]
    (source.directory / "metadata.json").write_text(json.dumps(facts))
    harmed = open_source(source.directory, "train")  # its masks also have the value 1
    pipeline = make(harmed, labelled=[0], unlabelled=[1, 2], batch=2, workers=workers)
    with (
        pipeline.batches(0) as stream,
        pytest.raises(ValueError, match=r"training image 'train00' of .* cannot be used: .*1"),
    ):
        next(stream)


def test_a_killed_worker_is_named(toy_source):
    before = set(multiprocessing.active_children())
    with make(toy_source, workers=1).batches(0) as stream:
        next(stream)
        (worker,) = set(multiprocessing.active_children()) - before
        worker.kill()
        message = "images was killed by SIGKILL, as the system does when memory is full; free some"
        with pytest.raises(utils.SystemFault, match=message):
            for _ in range(50):
                next(stream)


def test_shared_memory_that_is_full_is_named():
    """A worker that writes beyond it gets SIGBUS."""

    def ended(error):
        raise error
        yield

    killed = RuntimeError("Worker process was terminated unexpectedly with exit code -7. Search")
    message = (
        r"killed by SIGBUS: /dev/shm is full; enlarge it \(docker run --shm-size\), or lower data"
    )
    with pytest.raises(utils.SystemFault, match=message):
        next(BatchStream(ended(killed)))
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(utils.SystemFault, match="/dev/shm: No space left on device; free some"):
        next(BatchStream(ended(full)))


def test_killed_run_leaves_no_workers(toy_source):
    script = Path(__file__).parent / "endless_stream.py"
    root = Path(__file__).parents[2]
    run = subprocess.Popen(
        [sys.executable, str(script), str(toy_source.directory)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"},
    )
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(workers) == 2 and all(Path(f"/proc/{pid}").exists() for pid in workers)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "worker processes outlive the run"
        time.sleep(0.1)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": 5, "process_count": 2}, "config.batch=5 cannot be divided among 2 processes"),
        ({"streams": ONE * 2}, "two streams have crops of the same name: labelled, unlab"),
        ({"streams": (*TWO, Stream("unlabelled.1"))}, "two streams have crops of the same name"),
        ({"unlabelled": ()}, "'unlabelled' has no image; add some"),
        ({"unlabelled": [9], "streams": (Stream("a", labels=True),)}, "has no labelled image"),
        ({"streams": (Stream("a", source="web"),)}, "from 'web', which is no source; there is unl"),
    ],
)
def test_contradictions_are_errors(toy_source, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(toy_source, **options)
