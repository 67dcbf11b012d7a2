"""Position tables on other grids, at load and at run time."""

import jax
import numpy as np
import pytest

from semivl_jax.models.pos_embed import resize_table, stored_grid
from tests.golden_files import Golden, assert_close, files, nhwc


@pytest.mark.golden
@pytest.mark.parametrize("file", files("pos_embed_load*"))
def test_tables_are_the_published_ones_after_loading_and_at_run_time(file):
    golden = Golden(file)
    resize = jax.jit(resize_table, static_argnums=(1, 2))
    assert golden.meta["items"]
    for item in golden.meta["items"]:
        key = item["idx"]
        grid_from, grid_to = tuple(item["checkpoint_grid"]), tuple(item["target_grid"])
        table = golden[f"in/{key}/pos_embed"]
        loaded = resize(table, grid_from, grid_to)
        assert_close(loaded, golden[f"out/{key}/pos_embed"], 1e-5, f"{key} loaded")
        if f"out/{key}/pos_embed_runtime" in golden:
            again = resize(loaded, grid_to, tuple(item["runtime_grid"]))
            assert_close(again, golden[f"out/{key}/pos_embed_runtime"], 1e-5, f"{key} run time")


def test_equally_many_patches_take_the_table_as_it_is():
    table = np.random.default_rng(0).normal(size=(1, 13, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_table(table, (3, 4), (2, 6)), table)


@pytest.mark.parametrize("grid", [(3, 7), (5, 4), (9, 12)])
def test_dinov2_resizes_with_the_published_offset(grid):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(1, 1 + 5 * 5, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(table[:, 1:].reshape(1, 5, 5, 3).transpose(0, 3, 1, 2)),
        scale_factor=tuple((side + 0.1) / 5 for side in grid),
        mode="bicubic",
    )
    expected = nhwc(expected.numpy()).reshape(1, -1, 3)
    resized = resize_table(table, (5, 5), grid, resizing="dinov2")
    assert_close(resized[:, 1:], expected, 1e-5)
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])


def test_the_grid_of_a_stored_table():
    assert stored_grid(10, like=(2, 5), source="w.npz") == (3, 3)
    assert stored_grid(11, like=(2, 5), source="w.npz") == (2, 5)
    assert stored_grid(10, like=(2, 5), source="w.npz", class_rows=0) == (2, 5)


def test_wrong_row_counts_are_errors():
    with pytest.raises(ValueError, match="10 rows does not belong to a grid of 2×4"):
        resize_table(np.zeros((1, 10, 3), np.float32), (2, 4), (4, 4))
    with pytest.raises(ValueError, match=r"w\.npz: a position table of 9 rows is not 1"):
        stored_grid(9, like=(2, 5), source="w.npz")
    with pytest.raises(ValueError, match="is not 0 \\+ a square number"):
        stored_grid(11, like=(2, 5), source="w.npz", class_rows=0)
