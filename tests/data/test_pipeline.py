import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from semivl_jax.data.crops import Geometry
from semivl_jax.data.pipeline import TrainPipeline
from semivl_jax.data.sampler import SampleOrder, Share, Stream, permutation
from semivl_jax.data.source import open_source
from tests.data.photos import make_folder, prepared

GEOMETRY = Geometry(crop=32, resize="ratio", ratio_long=128, ratio_short=32)


def make(source, *, labelled=(0, 1, 2), unlabelled=range(3, 13), batch=6, **options):
    options = {"geometry": GEOMETRY, "seed": 3} | options
    return TrainPipeline(source, list(labelled), list(unlabelled), batch=batch, **options)


def first(pipeline, count, start=0):
    with pipeline.batches(start) as stream:
        return [next(stream) for _ in range(count)]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_no_image_is_lost_or_repeated_within_an_epoch(processes):
    order = SampleOrder(num_labelled=7, num_unlabelled=100, seed=0)
    shares = [Share(24, process, processes) for process in range(processes)]
    for start in (0, 100, 300):  # first places of epochs; batches straddle them
        steps = range(start // 24, (start + 100) // 24 + 1)
        places = sorted(
            share.place(local)
            for share in shares
            for step in steps
            for local in range(step * share.size, (step + 1) * share.size)
        )
        assert places == list(range(steps[0] * 24, (steps[-1] + 1) * 24))
        epoch = [place for place in places if start <= place < start + 100]
        assert sorted(order.unlabelled(place) for place in epoch) == list(range(100))
        seen = np.bincount([order.labelled(place) for place in epoch], minlength=7)
        assert seen.min() >= 14 and seen.max() <= 15  # 100 repeats of 7 images


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_an_epoch_of_the_pipelines_has_every_image_once(toy_source, processes):
    pipelines = [
        make(toy_source, batch=24, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    names = [
        name for step in range(5) for part in pipelines for name in part.ids(step)["unlabelled"]
    ]
    epochs = [sorted(names[start : start + 10]) for start in range(0, 120, 10)]
    assert epochs == [sorted(toy_source.ids[3:13])] * 12
    assert len({tuple(names[start : start + 10]) for start in range(0, 120, 10)}) == 12


def test_every_labelled_image_is_used_even_if_few_are_unlabelled():
    order = SampleOrder(num_labelled=50, num_unlabelled=4, seed=0)
    assert {order.labelled(place) for place in range(50)} == set(range(50))


def test_orders_differ_between_epochs_streams_and_seeds():
    drawn = [
        permutation(seed, stream, epoch, 50).tolist()
        for seed in (0, 1)
        for stream in (Stream.LABELLED_ORDER, Stream.UNLABELLED_ORDER)
        for epoch in (0, 1)
    ]
    assert all(sorted(order) == list(range(50)) for order in drawn)
    assert len({tuple(order) for order in drawn}) == len(drawn)


def test_order_is_the_same_for_ever():
    assert permutation(0, Stream.UNLABELLED_ORDER, 2, 8).tolist() == [1, 7, 0, 3, 5, 4, 6, 2]


def test_batches_are_what_ids_say(toy_source):
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
    options = {"partner": "same_image", "batch": 24}
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


@pytest.mark.parametrize(("workers", "process"), [(1, (0, 1)), (2, (1, 3)), (3, (0, 1))])
def test_resumes_anywhere_with_other_workers(toy_source, workers, process):
    """An uninterrupted stream, loaded by threads, against one that begins at a random step."""
    options = {"partner": "same_image", "process_index": process[0], "process_count": process[1]}
    start = int(np.random.default_rng(workers).integers(1, 30))
    here = first(make(toy_source, **options), start + 4)
    there = make(toy_source, **options, workers=workers)
    for step in range(start, start + 4):
        assert there.ids(step) == make(toy_source, **options).ids(step)
    for ours, theirs in zip(here[start:], first(there, 4, start=start), strict=True):
        assert_equal(ours, theirs)


def test_partner_is_another_crop_of_the_same_photo(toy_source):
    geometry = Geometry(crop=32, resize="long_side", scale_min=1.0, scale_max=1.0)
    (batch,) = first(make(toy_source, partner="same_image", geometry=geometry), 1)
    sizes = np.concatenate([batch["unlabelled/size"], batch["partner/size"]], axis=1)
    np.testing.assert_array_equal(sizes[:, :2], sizes[:, 2:])
    fits = (sizes[:, :2] < 32).all(axis=1)  # nothing to choose: both are the whole photo
    for i in np.flatnonzero(fits):
        np.testing.assert_array_equal(batch["unlabelled/image"][i], batch["partner/image"][i])
    (batch,) = first(make(toy_source, partner="same_image"), 1)
    assert (batch["unlabelled/image"] != batch["partner/image"]).any(axis=(1, 2, 3)).all()


def test_supervised_stream_has_labelled_crops_only(toy_source):
    pipeline = make(toy_source, labelled=range(6), unlabelled=(), partner="same_image", batch=4)
    (batch,) = first(pipeline, 1)
    assert batch.keys() == {"labelled/image", "labelled/label"}
    assert pipeline.ids(0)["unlabelled"] == []


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
        ({"labelled": ()}, "gives no labelled image"),
        ({"labelled": (0, 3)}, "image 'train03' is both labelled and unlabelled"),
        ({"batch": 5, "process_count": 2}, "config.batch=5 cannot be divided among 2 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index 2 is outside 0 … 1"),
        ({"seed": -1}, "config.seed=-1"),
    ],
)
def test_contradictions_are_errors(toy_source, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(toy_source, **options)
