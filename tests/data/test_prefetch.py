"""Batches on the devices ahead of the step, and validation examples."""

import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from semivl_jax.data.examples import EvalExamples
from semivl_jax.data.prefetch import prefetch_to_device, to_device
from semivl_jax.data.source import open_source
from semivl_jax.types import Stream
from tests.data.test_pipeline import TWO, first, make


@pytest.fixture(scope="module")
def sharding():
    return NamedSharding(Mesh(np.asarray(jax.devices()[:4]), ("data",)), PartitionSpec("data"))


def test_batches_arrive_in_order_and_split_over_devices(toy_source, sharding):
    pipeline = make(toy_source, batch=8, streams=TWO)
    expected = first(pipeline, 5, start=2)
    with prefetch_to_device(pipeline, 2, sharding=sharding, ahead=2) as batches:
        for host in expected:
            batch = next(batches)
            assert batch.labelled.image.sharding == sharding
            np.testing.assert_array_equal(batch.labelled.image, host["labelled/image"])
            np.testing.assert_array_equal(batch.labelled.label, host["labelled/label"])
            assert batch.streams.keys() == {"unlabelled", "unlabelled.1"}
            for name, crops in batch.streams.items():
                np.testing.assert_array_equal(crops.image, host[f"{name}/image"])
                np.testing.assert_array_equal(crops.size, host[f"{name}/size"])
                assert crops.label is None
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_streams_with_and_without_labels(toy_source, sharding):
    (host,) = first(make(toy_source, streams=(), batch=4), 1)
    assert to_device(host, sharding).streams == {}
    (host,) = first(make(toy_source, streams=(Stream("a/b", labels=True),), batch=4), 1)
    crops = to_device(host, sharding).streams["a/b"]
    np.testing.assert_array_equal(crops.label, host["a/b/label"])


def test_errors_of_loading_reach_the_consumer(toy_source, sharding):
    pipeline = make(toy_source, labelled=[7], unlabelled=[3], batch=4)  # 7 has no mask
    with (
        prefetch_to_device(pipeline, 0, sharding=sharding, ahead=1) as batches,
        pytest.raises(ValueError, match=r"training image 'train07' of .* cannot be used"),
    ):
        next(batches)


def test_leaving_early_does_not_hang(toy_source, sharding):
    with prefetch_to_device(make(toy_source, batch=4), 0, sharding=sharding, ahead=1):
        pass
    with (
        pytest.raises(RuntimeError, match="step"),
        prefetch_to_device(make(toy_source, batch=4), 0, sharding=sharding, ahead=3) as batches,
    ):
        next(batches)
        raise RuntimeError("step")


def test_examples_come_in_order_at_their_own_size(toy_source):
    examples = EvalExamples(toy_source)
    assert len(examples) == 6 and [e.id for e in examples] == list(examples.ids)
    assert [e.id for e in examples] == [f"train{i:02d}" for i in range(6)]
    sizes = {e.image.shape[:2] for e in examples}
    assert len(sizes) > 2 and all(e.label.shape == e.image.shape[:2] for e in examples)
    assert all(e.image.dtype == e.label.dtype == np.uint8 for e in examples)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_share_the_examples(toy_source, processes):
    parts = [
        EvalExamples(toy_source, process_index=p, process_count=processes).ids
        for p in range(processes)
    ]
    assert sorted(sum(parts, ())) == [f"train{i:02d}" for i in range(6)]


def test_validation_part(toy_source):
    validation = open_source(toy_source.directory, "validation")
    assert EvalExamples(validation).ids == ("val00", "val01", "val02")
