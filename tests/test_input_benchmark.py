"""The other pipeline of the input benchmark loads every view; the table divides the right rates."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import host_views, input_pipeline, photos
from tests.data.photos import prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated") / "photos"
    photos.make_folder(root, (48, 64), count=4, labelled=2, classes=3)
    return root


def test_generated_images_are_a_folder_to_train_on(folder):
    source = prepared(folder)
    assert len(source) == 4 and source.labels_exist().tolist() == [True, True, False, False]
    assert set(source.sizes) == {(48, 64)}
    assert np.asarray(Image.open(folder / "images/train/000.jpg")).std() > 20


@pytest.mark.parametrize("rule", ["ratio", "long_side"])
def test_host_views_load_every_view(folder, rule):
    images = sorted((folder / "images/train").iterdir())
    masks = sorted((folder / "masks/train").iterdir())
    job = host_views.Job(
        labelled=list(zip(images[:2], masks, strict=True)),
        unlabelled=images[2:],
        rule=rule,
        crop=40,
        batch=3,
    )
    rng, changed = np.random.default_rng(0), []
    for _ in range(4):
        row = job.load(rng)
        shapes = {
            name: (shape[1:], np.dtype(dtype)) for name, (shape, dtype) in job.slots().items()
        }
        assert {name: (array.shape, array.dtype) for name, array in row.items()} == shapes
        assert set(np.unique(row["mask"])) <= {0, 1, 2, 255}
        changed.append(not np.array_equal(row["partner/weak"], row["partner/strong1"]))
    assert any(changed)  # a strong view may by chance be the weak one


def test_table_divides_by_the_other_pipeline():
    row = {"set": "voc", "workers": 1, "crops_per_second": 10.0, "peak_memory_mb": 100.0}
    rows = [
        row | {"pipeline": "ours", "crops_per_core_second": 30.0},
        row | {"pipeline": "host views", "crops_per_core_second": 12.0},
    ]
    table = input_pipeline._table(rows)
    assert "| voc | 1 | ours | 10.0 | 30.0 | 2.50 | 100 MB |" in table
