"""CLIP's text tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.clip_text import TextTransformer
from tests.golden_files import Golden, assert_close, files
from tests.models.initialisation import random_variables
from tests.weights import converted


@pytest.mark.golden
@pytest.mark.parametrize("file", files("text_tower*"))
def test_text_embeddings_are_the_published_ones(file):
    golden = Golden(file)
    kwargs = golden.meta["kwargs"]
    clip = converted.text_tower(golden.weights(), num_heads=kwargs["transformer_heads"])
    assert clip.text == {
        "vocab_size": kwargs["vocab_size"],
        "width": kwargs["transformer_width"],
        "depth": kwargs["transformer_layers"],
        "num_heads": kwargs["transformer_heads"],
        "out_dim": kwargs["embed_dim"],
        "context_length": kwargs["context_length"],
    }
    assert clip.logit_scale == pytest.approx(np.exp(golden["w/logit_scale"]))
    tower = TextTransformer(**clip.text)
    ours = jax.jit(tower.apply)({"params": clip.text_params}, golden["in/ids"])
    assert_close(ours, golden["out/text_features"], 1e-5, "raw")
    unit = ours / jnp.linalg.norm(ours, axis=-1, keepdims=True)
    assert_close(unit, golden["out/text_features_norm"], 1e-5, "unit length")


def test_tokens_behind_the_end_do_not_matter():
    tower = TextTransformer(20, 16, 2, 2, 6, context_length=8)
    ids = jnp.asarray([[17, 3, 19, 0, 0, 0, 0, 0], [17, 3, 19, 4, 5, 6, 7, 8]])
    variables = random_variables(tower, ids)
    out = jax.jit(tower.apply)(variables, ids)
    np.testing.assert_allclose(out[0], out[1], atol=1e-6)
