"""Other people's weights through `convert`: what is refused, what is said, what stays.

That the published numbers come out is tested where the models are: golden tests of `tests/models` take
their weights through files (`tests.weights.converted`).
"""

import dataclasses
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from semivl_jax import convert
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.weights import files, towers
from tests.weights import published
from tests.weights.converted import through


def test_everything_that_does_not_fit_is_listed_and_nothing_written(tmp_path):
    state = published.tiny_openai()
    del state["visual.ln_pre.bias"]
    del state["transformer.resblocks.0.attn.in_proj_weight"]
    state["visual.transformer.resblocks.1.mlp.c_fc.weight"] = np.zeros((255, 64), np.float32)
    with pytest.raises(ValueError) as error:
        through(tmp_path, state)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'theirs.safetensors'} does not fit the model. missing: ")
    assert "visual.ln_pre.bias" in text and "transformer.resblocks.0.attn.in_proj_weight" in text
    assert "of another shape: visual.transformer.resblocks.1.mlp.c_fc.weight (image/" in text
    assert "(64, 255) instead of (64, 256)" in text
    state = published.tiny_openai()
    state["visual.extra"] = state["visual.ln_pre.bias"]
    state["visual.proj"] = state["visual.proj"][None]
    state["ln_final.bias"] = np.arange(64)
    with pytest.raises(ValueError, match=r"visual\.proj has the shape"):
        through(tmp_path, state)
    state["visual.proj"] = state["visual.proj"][0]
    state["visual.conv1.weight"] = state["visual.conv1.weight"][None]
    with pytest.raises(ValueError, match=r"visual\.conv1\.weight has the shape"):
        through(tmp_path, state)
    state["visual.conv1.weight"] = state["visual.conv1.weight"][0]
    with pytest.raises(ValueError) as error:
        through(tmp_path, state)
    assert "tensors of unknown name: visual.extra; tensors that are no floating-point" in str(
        error.value
    )
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.safetensors"]


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"a.weight": np.ones(2)}, r"is of no kind that can be converted .*a\.weight.*--kind"),
        ({"visual.layer1.0.conv1.weight": np.ones(2)}, "of no kind"),
    ],
)
def test_unknown_weights(tmp_path, state, sentence):
    with pytest.raises(ValueError, match=sentence):
        through(tmp_path, state)


def test_residual_clip_is_refused_by_name(tmp_path):
    state = published.tiny_openai() | {"visual.layer1.0.conv1.weight": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match="CLIP with a residual network; convert one with a vision"):
        through(tmp_path, state)


def test_heads_that_nobody_says(tmp_path):
    shapes = published.openai_image_shapes(48, 1, 8) | published.openai_text_shapes(64, 1, 8)
    state = published.random_like(shapes)
    with pytest.raises(ValueError, match=r"do not divide the width 48, .* give --image_heads"):
        through(tmp_path, state)
    with pytest.raises(ValueError, match="5 heads do not divide the width 48"):
        through(tmp_path, state, image_heads=5)
    assert towers.load(through(tmp_path, state, image_heads=3), "").image["num_heads"] == 3


def test_half_precision_stays_and_training_facts_are_an_option(tmp_path):
    state = published.tiny_openai(np.float16) | {
        "input_resolution": np.array(12),
        "context_length": np.array(9),
        "vocab_size": np.array(40),
    }
    path = through(tmp_path, state, as_trained=True)
    weights = files.load(path, expect=files.CLIP)
    assert (weights.kind, weights.sizes["image"]["quick_gelu"]) == ("openai_clip", True)
    assert weights.sizes["image"]["eps"] == 1e-5
    assert path.stat().st_size < 1.2 * (tmp_path / "theirs.safetensors").stat().st_size
    assert towers.load(path, "").image_params["cls"].dtype == np.float32
    plain = through(tmp_path, state)
    assert "quick_gelu" not in files.load(plain, expect=files.CLIP).sizes["image"]


def test_own_names_load_directly_and_own_files_need_no_conversion(tmp_path):
    path = through(tmp_path, published.tiny_openai())
    direct = towers.load(tmp_path / "theirs.safetensors", "")
    ours = towers.load(path, "")
    jax.tree.map(np.testing.assert_array_equal, direct.image_params, ours.image_params)
    jax.tree.map(np.testing.assert_array_equal, direct.text_params, ours.text_params)
    assert dataclasses.asdict(direct)["image"] == ours.image
    with pytest.raises(ValueError, match="is a file of semivl_jax already"):
        convert.convert(path, tmp_path / "again.safetensors")
    with pytest.raises(ValueError, match=r"'semivl_jax clip 2', but model\.checkpoint takes"):
        files.load(path, expect=files.SEGMENTER)


def test_command_line(tmp_path):
    save_file(published.tiny_openai(), tmp_path / "theirs.safetensors")
    command = [sys.executable, "-m", "semivl_jax.convert", str(tmp_path / "theirs.safetensors")]
    out = tmp_path / "new" / "ours.safetensors"
    done = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "recognised: CLIP of OpenAI" in done.stdout
    assert f"--config.model.weights={out}" in done.stdout
    tower = VisionTransformer(
        **CLIP,
        patch_size=4,
        width=64,
        depth=2,
        num_heads=1,
        mlp_dim=256,
        out_dim=8,
        grid=(3, 3),
        out_indices=(2,),
    )
    shapes = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    counts = re.findall(r"^  (\w+) +([\d,]+) parameters$", done.stdout, re.MULTILINE)
    assert [part for part, _ in counts] == ["image", "text", "logit_scale", "total"]
    assert counts[0][1] == f"{count:,}" and counts[2][1] == "1"
    done = subprocess.run([*command, "--out=x.pt"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: --out=x.pt must end with .safetensors, or .npz to export\n"
