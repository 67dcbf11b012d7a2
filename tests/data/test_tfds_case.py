"""What `tfds.testing.DatasetBuilderTestCase` checks of a builder, checked without TensorFlow.

That test case itself needs TensorFlow: it inherits from `tf.test.TestCase`, so that already
`tfds.testing.DatasetBuilderTestCase` raises ModuleNotFoundError without it (tensorflow-datasets 4.9.10), and
it reads what was prepared through `tf.data`. With TensorFlow 2.21 beside the project it passes for the five
public data sets on the same dummy data (run once, by hand). Here the same is asked of the random-access
reader that training uses: the builder is registered and described, prepares its `dummy_data`, counts right
(also when opened again), decodes to what its features say, and no example is in two splits. Checksums are
compared in `test_published_builders`.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.archive_files import ROOT, SIZES, dummy_data
from tfds_builders import common
from tfds_builders.builders import PUBLISHED, published_builder
from tfds_builders.folder_semi import FolderSemi

FOLDER = ROOT / "tfds_builders" / "folder_semi" / "dummy_data"


def make(name, place):
    """The builder on its dummy data, which lie as unpacked archives do."""
    if name == "folder":
        return FolderSemi(FOLDER, data_dir=place), {"train": 4, "validation": 1}
    builder = published_builder(name)
    files = tuple(dataclasses.replace(file, sha256="", size=0) for file in builder.FILES)
    options = {"manual_dir": dummy_data(name), "files": files, "sizes": SIZES}
    return builder(data_dir=place, **options), SIZES


@pytest.mark.parametrize("name", [*PUBLISHED, "folder"])
def test_builder(name, tmp_path):
    before = sorted(dummy_data("voc").iterdir())
    builder, sizes = make(name, tmp_path)
    assert isinstance(builder, tfds.core.GeneratorBasedBuilder)
    assert builder.name in tfds.list_builders(with_community_datasets=False)
    assert builder.info.name == builder.name and builder.info.description
    common.prepare(builder)
    for opened in (builder, tfds.builder_from_directory(builder.data_path)):
        assert {part: split.num_examples for part, split in opened.info.splits.items()} == sizes
    seen = {}
    for split, count in sizes.items():
        decoders = {"label": tfds.decode.SkipDecoding()}
        records = list(builder.as_data_source(split, decoders=decoders))
        assert len(records) == count
        for record in records:
            assert record["image"].dtype == np.uint8 and record["image"].shape[2] == 3
            # Empty: an image without a mask, which only a user's folder has.
            label = record["label"]
            assert label.startswith(b"\x89PNG") or (name, label) == ("folder", b"")
        seen[split] = {record["image"].tobytes() for record in records}
        assert all(str(tmp_path) not in str(record["id"]) for record in records)
    assert not seen["train"] & seen["validation"]
    assert (
        sorted(dummy_data("voc").iterdir()) == before
    )  # nothing is written beside the user's files
