"""Position tables on other grids, at load and at run time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.pos_embed import resize_table, square_grid, table_at
from tests.golden_files import Golden, assert_close


@pytest.mark.golden
def test_tables_are_the_published_ones_after_loading_and_at_run_time():
    golden = Golden("pos_embed_load")
    assert golden.meta["items"]
    for item in golden.meta["items"]:
        key = item["idx"]
        grid_from, grid_to = tuple(item["checkpoint_grid"]), tuple(item["target_grid"])
        table = golden[f"in/{key}/pos_embed"]
        assert square_grid(table.shape[1], source="checkpoint") == grid_from
        loaded = resize_table(table, grid_from, grid_to)
        assert_close(loaded, golden[f"out/{key}/pos_embed"], 1e-5, f"{key} loaded")
        inside = jax.jit(table_at, static_argnums=(1, 2))(jnp.asarray(table), grid_from, grid_to)
        assert_close(inside, golden[f"out/{key}/pos_embed"], 1e-5, f"{key} inside")
        if f"out/{key}/pos_embed_runtime" in golden:
            again = table_at(jnp.asarray(loaded), grid_to, tuple(item["runtime_grid"]))
            assert_close(again, golden[f"out/{key}/pos_embed_runtime"], 1e-5, f"{key} run time")


def test_equally_many_patches_take_the_table_as_it_is():
    table = np.random.default_rng(0).normal(size=(1, 13, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_table(table, (3, 4), (2, 6)), table)
    np.testing.assert_array_equal(table_at(jnp.asarray(table), (3, 4), (2, 6)), table)


def test_wrong_row_counts_are_errors():
    with pytest.raises(ValueError, match="10 rows does not belong to a grid of 2×4"):
        resize_table(np.zeros((1, 10, 3), np.float32), (2, 4), (4, 4))
    with pytest.raises(ValueError, match=r"w\.npz: a position table of 9 rows is not 1"):
        square_grid(9, source="w.npz")
