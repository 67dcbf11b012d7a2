"""Random variables for tests, and the published distributions of initial values."""

import jax
import numpy as np

from semivl_jax.weights.tree import flatten
from tests.golden_files import OWN, Golden
from tests.weights import converted


def random_variables(model, *args, seed=0):
    """Random variables with the shapes of `model.init(key, *args)`, which takes long to compile."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)

    def draw(path, shape):
        if path[-1].key == "var":
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        fan_in = max(1, int(np.prod(shape.shape[:-1])))
        return (rng.standard_normal(shape.shape) * fan_in**-0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_initialised_as_published(model, *args, part, having):
    """Initial parameters have the distributions that param_groups has for a part of a published model.

    `having` is a name that only this model has in this part. Without it in the file, tests/golden is used.
    """
    item = published_item(part + having)
    stats = {name: values for name, *values in item["init_stats"] if name.startswith(part)}
    order = list(stats)
    state = {}
    for name, shape, *_ in [*item["params"], *item["buffers"]]:
        if is_kept(name):
            state[name] = np.zeros(cut(name, shape), np.float32)
        if name in stats:
            state[name] += order.index(name)
    branch = {"decode_head.": "decoder", "conv_encoder.": "conv_encoder"}[part]
    rows = flatten(converted.segmenter(state).tree["params"][branch])
    key = jax.random.key(0, impl="rbg")  # compiles faster than the default
    params = flatten(jax.jit(model.init)(key, *args)["params"])
    assert params.keys() == rows.keys()
    for path, value in params.items():
        row = int(rows[path].flat[0])
        assert_same_distribution(np.asarray(value), stats[order[row]], path)


def published_item(name):
    for golden in (Golden("param_groups"), Golden("param_groups", folder=OWN)):
        for item in golden.meta["items"]:
            if any(row[0] == name for row in item["init_stats"]):
                return item
    raise AssertionError(f"no item of param_groups has {name}")


def is_kept(name):
    """Whether a tensor is converted: of the backbone only two blocks, of the frozen tower nothing."""
    parts = name.split(".")
    blocks = [int(part) for part in parts if part.isdigit()][:1] if parts[0] == "backbone" else []
    return parts[0] != "clip_encoder" and "loss_decode" not in parts and blocks < [3]


def cut(name, shape):
    """The shape for the prompts of the remaining blocks."""
    return [2, *shape[1:]] if name.endswith("deep_prompt_embeddings") else shape


def assert_same_distribution(value, stats, what):
    """Constants are equal; distributions of at least 100 numbers agree to five standard errors."""
    _, std, low, high = stats
    if std == 0 and value.size > 1:
        assert value.min() == low and value.max() == high, what
    if std == 0 or value.size < 100:
        return
    error = 5 / np.sqrt(value.size)
    assert abs(value.std() / std - 1) < error, what
    assert abs(value.mean()) < error * std, what
    if high < 2 * std:  # uniform: the bounds agree too
        np.testing.assert_allclose(np.abs(value).max(), max(-low, high), rtol=error, err_msg=what)
