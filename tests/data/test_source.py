import concurrent.futures
import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from semivl_jax.data.dataset_info import DatasetInfo, distinct_palette
from semivl_jax.data.source import open_source
from tfds_builders import common


def test_a_pickled_source_opens_its_files_itself(toy_source):
    record = toy_source[2]
    copy = pickle.loads(pickle.dumps(toy_source))
    assert copy._records is None
    assert copy[2] == record


def test_reads_from_many_threads(toy_source):
    fresh = open_source(toy_source.directory, "train")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        records = list(pool.map(fresh.__getitem__, list(range(len(fresh))) * 5))
    assert [record.id for record in records] == list(fresh.ids) * 5


def test_unknown_directory_and_part(toy_source, tmp_path):
    with pytest.raises(ValueError, match="no prepared data set; prepare the data first"):
        open_source(tmp_path, "train")
    with pytest.raises(ValueError, match="has no part 'val'; it has"):
        open_source(toy_source.directory, "val")
    with pytest.raises(IndexError):
        toy_source[len(toy_source)]


class ManyFiles(common.SegmentationBuilder):
    """Ninety images, each of its own colour."""

    VERSION = tfds.core.Version("1.0.0")

    def about(self):
        return DatasetInfo(name="many", classes=("a",))

    def _split_generators(self, dl_manager):
        samples = [common.Sample(f"{i}", _png(i)) for i in range(90)]
        return {part: self.write(part, samples) for part in common.PARTS}


def test_order_survives_many_files(tmp_path):
    builder = ManyFiles(data_dir=tmp_path)
    config = tfds.download.DownloadConfig(num_shards=7)
    builder.download_and_prepare(file_format="array_record", download_config=config)
    assert len(list(builder.data_path.glob("*train.array_record*"))) == 7
    source = open_source(builder.data_path, "train")
    assert [source[i].id for i in range(90)] == [str(i) for i in range(90)]
    assert [source[i].image for i in (0, 40, 89)] == [_png(i) for i in (0, 40, 89)]


def _png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def test_info_round_trip_and_checks():
    info = DatasetInfo(name="x", classes=("a", "b"), definitions=(("a", "aa"), ("b",)))
    again = DatasetInfo.from_json(info.to_json())
    assert again.to_json() == info.to_json() and again.num_classes == 2
    with pytest.raises(ValueError, match="1 definitions for 2 classes"):
        DatasetInfo(name="x", classes=("a", "b"), definitions=(("a",),))
    with pytest.raises(ValueError, match="a palette of the shape"):
        DatasetInfo(name="x", classes=("a", "b"), palette=np.zeros((3, 3), np.uint8))


def test_palette_colours_differ():
    palette = distinct_palette(40).astype(int)
    distance = np.abs(palette[:, None] - palette[None]).sum(-1)
    assert distance[~np.eye(40, dtype=bool)].min() > 15
    assert distance[np.arange(39), np.arange(1, 40)].min() > 100
