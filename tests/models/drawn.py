"""Random variables for tests, and how published modules are drawn before training."""

import jax
import numpy as np

from semivl_jax.weights.tree import flatten
from tests.golden_files import Golden


def drawn(model, *args, seed=0):
    """Variables of the shapes that `model.init(key, *args)` gives; variances are positive.

    Its own initialisers take long to compile.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)

    def draw(path, shape):
        if path[-1].key == "var":
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        fan_in = max(1, int(np.prod(shape.shape[:-1])))
        return (rng.standard_normal(shape.shape) * fan_in**-0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def fresh_statistics(prefix, *, having):
    """Shapes, and (mean, std, min, max), by name, of a published part that has the name `having`."""
    for item in Golden("param_groups").meta["items"]:
        rows = [row for row in item["init_stats"] if row[0].startswith(prefix)]
        stats = {name.removeprefix(prefix): values for name, *values in rows}
        if having in stats:
            shapes = {row[0].removeprefix(prefix): row[1] for row in item["params"]}
            return {name: shapes[name] for name in stats}, list(stats.values())
    raise AssertionError(f"no item of param_groups has {prefix}{having}")


def numbered(shapes):
    """A state dict whose arrays say which row of the statistics they belong to."""
    return {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(shapes.items())}


def assert_same_distributions(params, stats, rows):
    """`rows` is `numbered` after import: where `params` has an array, it has its row of `stats`."""
    params, rows = flatten(params), flatten(rows)
    assert params.keys() == rows.keys()
    for path, value in params.items():
        assert_same_distribution(np.asarray(value), stats[int(rows[path].flat[0])], path)


def assert_same_distribution(value, stats, what):
    """Constants equal; draws of at least 100 numbers alike up to five standard errors."""
    _, std, low, high = stats
    if std == 0 and value.size > 1:
        assert value.min() == low and value.max() == high, what
    if std == 0 or value.size < 100:
        return
    error = 5 / np.sqrt(value.size)
    assert abs(value.std() / std - 1) < error, what
    assert abs(value.mean()) < error * std, what
    if high < 2 * std:  # uniform: its bounds show, too
        np.testing.assert_allclose(np.abs(value).max(), max(-low, high), rtol=error, err_msg=what)
