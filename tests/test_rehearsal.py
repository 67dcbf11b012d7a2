"""Archives of the rehearsal are what `prepare` reads, with files as large as the published ones."""

import pytest

from benchmarks import rehearsal
from semivl_jax.data.source import open_source


@pytest.mark.parametrize("dataset", rehearsal.IMAGES)
def test_archives_have_the_published_layout(dataset, tmp_path):
    rehearsal.make_archives(dataset, tmp_path, share=0.0003)
    rehearsal.prepare(dataset, tmp_path, share=0.0003)
    expected, published = rehearsal.counts(dataset, 0.0003), rehearsal.IMAGES[dataset]
    (directory,) = (tmp_path / "data").glob(f"{dataset}_semi/*.*.*")
    for part, number in expected.items():
        source = open_source(directory, part)
        assert len(source) == number
        assert source.sizes == (published.size,) * number
        for index in range(number):
            assert 0.9 < len(source[index].image) / published.bytes < 1.1
        assert source.labels_exist().all() and len(source.pixels[0]) > 10
    assert len({source[index].image for index in range(number)}) == number
