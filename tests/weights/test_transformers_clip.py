"""CLIP of transformers with random weights: our towers, through its files, compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.clip_text import TextTransformer
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.weights import convert, towers
from semivl_jax.weights.layout import Options
from tests.golden_files import assert_close
from tests.models import hugging_face

TOLERANCE = 1e-4

TINY = {
    "vision_config": {
        "hidden_size": 48,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 99,
        "max_position_embeddings": 11,
        "eos_token_id": 98,
        "hidden_act": "gelu",
    },
    "projection_dim": 24,
}


def test_both_towers_agree(tmp_path):
    torch, transformers = hugging_face.libraries()
    facts = transformers.CLIPConfig(**TINY)
    theirs = hugging_face.randomize(transformers.CLIPModel(facts), torch)
    theirs.save_pretrained(tmp_path)
    out = tmp_path / "ours.safetensors"
    convert.convert_file(tmp_path, out, options=Options(as_trained=True))
    clip = towers.load(out, "")
    side, length = facts.vision_config.image_size, facts.text_config.max_position_embeddings
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    ids = rng.integers(1, facts.text_config.vocab_size - 2, (3, length))
    end = facts.text_config.vocab_size - 1
    for row, place in zip(ids, (2, length // 2, length - 1), strict=True):
        row[place] = end
        row[place + 1 :] = 0
    with torch.no_grad():
        pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
        out = theirs(input_ids=torch.from_numpy(ids), pixel_values=pixels)
    grid = (side // facts.vision_config.patch_size,) * 2
    tower = VisionTransformer(**CLIP, **clip.image, grid=grid, out_indices=(clip.image["depth"],))
    assert tower.quick_gelu and tower.eps == facts.vision_config.layer_norm_eps
    features = jax.jit(tower.apply)({"params": clip.image_params}, image)
    assert_close(features.pooled, out.image_embeds.numpy(), TOLERANCE, "image")
    text_tower = TextTransformer(**clip.text)
    text = jax.jit(text_tower.apply)({"params": clip.text_params}, jnp.asarray(ids, jnp.int32))
    text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
    assert_close(text, out.text_embeds.numpy(), TOLERANCE, "text")
    assert clip.logit_scale == pytest.approx(float(theirs.logit_scale.detach().exp()), rel=1e-5)
