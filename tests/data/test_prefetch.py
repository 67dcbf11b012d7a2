import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from semivl_jax.data.examples import EvalExamples
from semivl_jax.data.prefetch import feed, to_device
from semivl_jax.data.source import open_source
from tests.data.test_pipeline import first, make


@pytest.fixture(scope="module")
def sharding():
    return NamedSharding(Mesh(np.asarray(jax.devices()[:4]), ("data",)), PartitionSpec("data"))


def test_batches_arrive_in_order_and_split_over_devices(toy_source, sharding):
    pipeline = make(toy_source, batch=8, partner="same_image")
    expected = first(pipeline, 5, start=2)
    with feed(pipeline, 2, sharding=sharding, ahead=2) as batches:
        for host in expected:
            batch = next(batches)
            assert batch.labelled.image.sharding == sharding
            np.testing.assert_array_equal(batch.labelled.image, host["labelled/image"])
            np.testing.assert_array_equal(batch.labelled.label, host["labelled/label"])
            np.testing.assert_array_equal(batch.unlabelled.size, host["unlabelled/size"])
            np.testing.assert_array_equal(batch.partner.image, host["partner/image"])
    assert not [thread for thread in threading.enumerate() if thread.name == "device-feed"]


def test_absent_parts_are_none(toy_source, sharding):
    (host,) = first(make(toy_source, labelled=range(6), unlabelled=(), batch=4), 1)
    batch = to_device(host, sharding)
    assert batch.unlabelled is None and batch.partner is None
    (host,) = first(make(toy_source, batch=4), 1)
    assert to_device(host, sharding).unlabelled is not None
    assert to_device(host, sharding).partner is None


def test_errors_of_loading_reach_the_consumer(toy_source, sharding):
    pipeline = make(toy_source, labelled=[7], unlabelled=[3], batch=4)  # 7 has no mask
    with (
        feed(pipeline, 0, sharding=sharding, ahead=1) as batches,
        pytest.raises(ValueError, match=r"training image 'train07' of .* cannot be used"),
    ):
        next(batches)


def test_leaving_early_does_not_hang(toy_source, sharding):
    with feed(make(toy_source, batch=4), 0, sharding=sharding, ahead=1):
        pass
    with (
        pytest.raises(RuntimeError, match="step"),
        feed(make(toy_source, batch=4), 0, sharding=sharding, ahead=3) as batches,
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
