"""CLIP's text tower and the import of CLIP checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from semivl_jax.weights.clip import import_text, import_vision

from semivl_jax.models.clip_text import TextTransformer
from semivl_jax.models.vit import VisionTransformer
from tests.golden_files import Golden, assert_close, files
from tests.models.test_vit import drawn
from tests.weights import converted, published


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
    converted.assert_equal_trees(clip.text_params, import_text(golden.weights(), tower))
    ours = jax.jit(tower.apply)({"params": clip.text_params}, golden["in/ids"])
    assert_close(ours, golden["out/text_features"], 1e-5, "raw")
    unit = ours / jnp.linalg.norm(ours, axis=-1, keepdims=True)
    assert_close(unit, golden["out/text_features_norm"], 1e-5, "unit length")


def test_tokens_behind_the_end_do_not_matter():
    tower = TextTransformer(20, 16, 2, 2, 6, context_length=8)
    ids = jnp.asarray([[17, 3, 19, 0, 0, 0, 0, 0], [17, 3, 19, 4, 5, 6, 7, 8]])
    variables = drawn(tower, ids)
    out = jax.jit(tower.apply)(variables, ids)
    np.testing.assert_allclose(out[0], out[1], atol=1e-6)


def vision_state() -> dict[str, np.ndarray]:
    """Random CLIP image weights under OpenAI's names, float16 as the checkpoints have them."""
    return published.random_like(published.openai_image_shapes(8, 2, 6), dtype=np.float16)


def vision_tower(**changes) -> VisionTransformer:
    options = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 32}
    options |= {"out_dim": 6, "grid": (5, 4), "out_indices": (2,), **changes}
    return VisionTransformer(**options)


def test_clip_image_weights_fill_the_tower_at_its_grid():
    state = vision_state() | {"logit_scale": np.float32(4.6), "token_embedding.weight": np.ones(3)}
    params = import_vision(state, vision_tower())
    assert params["pos_embedding"].shape == (1, 21, 8)
    assert params["pos_embedding"].dtype == np.float32
    features = jax.jit(vision_tower().apply)({"params": params}, jnp.ones((1, 20, 16, 3)))
    assert np.all(np.isfinite(features.maps[0]))


def test_weights_that_do_not_fit_are_listed_in_one_error():
    state = vision_state()
    del state["visual.ln_pre.bias"]
    with pytest.raises(ValueError) as error:
        import_vision(state, vision_tower(out_dim=7, depth=1, out_indices=(1,)), source="clip.pt")
    text = str(error.value)
    assert text.startswith("clip.pt does not fit the model.")
    assert "missing: visual.ln_pre.bias" in text
    assert "unexpected: visual.transformer.resblocks.1.attn.in_proj_weight" in text
    assert "visual.proj (image/projection/kernel: (8, 6) instead of (8, 7))" in text
    with pytest.raises(ValueError, match=r"unknown name: visual\.layer1\.0\.weight"):
        import_vision({"visual.layer1.0.weight": np.ones(3)}, vision_tower())
