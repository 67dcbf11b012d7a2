"""`convert`: errors, options and output. The numbers of converted models are tested in tests/models."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from semivl_jax.weights import convert, files, towers
from semivl_jax.weights.layout import Options
from tests.weights import converted, file_formats, published
from tests.weights.converted import through


def test_everything_that_does_not_fit_is_listed_and_nothing_written(tmp_path):
    state = published.tiny_openai()
    del state["visual.ln_pre.bias"]
    del state["transformer.resblocks.0.attn.in_proj_weight"]
    state["visual.transformer.resblocks.1.mlp.c_fc.weight"] = np.zeros((255, 64), np.float32)
    with pytest.raises(ValueError) as error:
        through(tmp_path, state)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'in'} does not fit the model. missing: ")
    assert "visual.ln_pre.bias" in text and "transformer.resblocks.0.attn.in_proj_weight" in text
    assert "of another shape: visual.transformer.resblocks.1.mlp.c_fc.weight (image/" in text
    assert "(64, 255) instead of (64, 256)" in text
    state = published.tiny_openai()
    state["visual.extra"] = state["visual.ln_pre.bias"]
    state["ln_final.bias"] = np.arange(64)
    for name in ("visual.proj", "visual.conv1.weight"):
        with pytest.raises(ValueError, match=rf"{re.escape(name)} has the shape \(1, "):
            through(tmp_path, state | {name: state[name][None]})
    with pytest.raises(ValueError) as error:
        through(tmp_path, state)
    assert "tensors of unknown name: visual.extra; tensors that are no floating-point" in str(
        error.value
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"a.weight": ()}, r"is of no format that can be converted .*a\.weight.*--format"),
        ({"visual.layer1.0.conv1.weight": (2,)}, "is of no format"),
        ({"register_tokens": (1, 4, 8), **published.TIMM_MARKS}, "DINOv2 with register tokens"),
        (
            {
                "conv1.weight": (64, 3, 7, 7),
                **{f"layer4.0.conv{i}.weight": (2, 2, 1, 1) for i in (1, 3)},
            },
            "one 7×7 convol",
        ),
        (
            published.openai_image_shapes(64, 1, 8) | published.openai_text_shapes(64, 1, 9),
            "images are embedded in 8 dimensions, texts in 9",
        ),
        (
            {"visual.attnpool.c_proj.weight": (2, 2), **published.tiny_shapes()},
            "CLIP with a residual network; convert one with a vision",
        ),
    ],
    ids=["unknown", "part", "registers", "stem", "towers", "residual"],
)
def test_weights_that_are_not_supported_are_refused_by_name(tmp_path, extra, sentence):
    with pytest.raises(ValueError, match=sentence):
        through(tmp_path, published.random_like(extra))


def test_the_format_can_be_named(tmp_path):
    state = published.tiny_openai()
    save_file(state, tmp_path / "in")
    for name, sentence in (("resnet", r"lacks conv1\.6\.weight"), ("clip", "clip is unknown; ch")):
        with pytest.raises(ValueError, match=sentence):
            convert.convert_file(tmp_path / "in", tmp_path / "o.safetensors", format=name)


def test_heads_that_cannot_be_derived(tmp_path):
    shapes = published.openai_image_shapes(48, 1, 8) | published.openai_text_shapes(64, 1, 8)
    state = published.random_like(shapes)
    with pytest.raises(ValueError, match=r"do not divide the width 48, .* give --image_heads"):
        through(tmp_path, state)
    with pytest.raises(ValueError, match="5 heads do not divide the width 48"):
        through(tmp_path, state, image_heads=5)
    assert towers.load(through(tmp_path, state, image_heads=3), "").image["num_heads"] == 3


def test_both_layouts_of_clip_give_the_same():
    openai = published.tiny_openai()
    one, other = converted.clip(openai), converted.clip(published.huggingface(openai))
    converted.assert_equal_trees(one.image_params, other.image_params)
    converted.assert_equal_trees(one.text_params, other.text_params)
    assert (one.image, one.logit_scale) == (other.image, other.logit_scale)
    assert one.text.items() <= other.text.items()


def test_half_precision_stays_and_training_facts_are_an_option(tmp_path):
    state = published.tiny_openai(np.float16) | published.OPENAI_FACTS
    path = through(tmp_path, state, as_trained=True, activation="")
    weights = files.load(path, expect=files.CLIP)
    assert (weights.kind, weights.sizes["image"]["quick_gelu"]) == ("openai_clip", True)
    assert weights.sizes["image"]["eps"] == 1e-5
    assert path.stat().st_size < 1.2 * (tmp_path / "in").stat().st_size
    assert towers.load(path, "").image_params["cls"].dtype == np.float32
    plain = through(tmp_path, state)
    assert "quick_gelu" not in files.load(plain, expect=files.CLIP).sizes["image"]


def test_openais_names_load_directly_and_own_files_need_no_conversion(tmp_path):
    path = through(tmp_path, published.tiny_openai() | published.OPENAI_FACTS)
    direct, ours = towers.load(tmp_path / "in", ""), towers.load(path, "")
    jax.tree.map(np.testing.assert_array_equal, direct.image_params, ours.image_params)
    jax.tree.map(np.testing.assert_array_equal, direct.text_params, ours.text_params)
    assert direct.image == ours.image
    with pytest.raises(ValueError, match="is a file of semivl_jax already"):
        convert.convert_file(path, tmp_path / "again.safetensors")
    with pytest.raises(ValueError, match=r"'semivl_jax clip 2', but model\.checkpoint takes"):
        files.load(path, expect=files.SEGMENTER)


def test_a_table_that_is_not_square_needs_its_grid(tmp_path):
    shapes = published.openai_image_shapes(64, 1, 8, grid=(2, 5))
    state = published.random_like(shapes | published.openai_text_shapes(64, 1, 8))
    with pytest.raises(
        ValueError, match=r"table is for 10 patches, not for a square; .*--grid=ROW"
    ):
        through(tmp_path, state)
    with pytest.raises(ValueError, match="for 10 patches, not for 3×4 = 12 patches"):
        through(tmp_path, state, grid=(3, 4))
    path = through(tmp_path, state, grid=(2, 5))
    assert files.load(path, expect=files.CLIP).grid == towers.load(path, "").grid == (2, 5)


def test_an_activation_is_never_guessed(tmp_path):
    """The text tower keeps the activation; open_clip's files have OpenAI's names."""

    def text_tower(**options):
        convert.convert_file(
            tmp_path / "open_clip_model.safetensors", out, options=Options(**options)
        )
        return files.load(out, expect=files.CLIP).sizes["text"].get("quick_gelu", True)

    out = tmp_path / "ours.safetensors"
    save_file(published.tiny_openai(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(
        ValueError, match=r"does not say which activation .* --activation=quick_gel"
    ):
        text_tower()
    with pytest.raises(ValueError, match="does not say which activation"):
        towers.load(tmp_path / "open_clip_model.safetensors", "")
    assert text_tower(activation="quick_gelu") and not text_tower(activation="gelu")
    config = tmp_path / "open_clip_config.json"
    for quick in (True, False):
        tower = {"width": 64, "heads": 2}
        model = {
            "quick_gelu": quick,
            "text_cfg": tower,
            "vision_cfg": {"width": 64, "head_width": 16},
        }
        config.write_text(
            json.dumps({"model_cfg": model if quick else {**model, "quick_gelu": False}})
        )
        assert text_tower() is quick
        sizes = files.load(out, expect=files.CLIP).sizes
        assert (sizes["text"]["num_heads"], sizes["image"]["num_heads"]) == (2, 4)
    convert.convert_file(tmp_path, out)  # the folder
    config.write_text('{"model_cfg": {"vision_cfg": 3}}')
    with pytest.raises(
        ValueError, match=r"open_clip_config\.json has no settings under vision_cfg"
    ):
        text_tower()


def test_giant_dinov2_is_named(tmp_path):
    shapes = {**published.TIMM_MARKS, "blocks.0.mlp.w12.weight": (8, 8)}
    with pytest.raises(ValueError, match=r"is the giant DINOv2, .* dinov2_vits14_pretrain\.pth"):
        through(tmp_path, published.random_like(shapes))


def _folder(path):
    path.mkdir()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (_folder, "is a folder; name the file with the weights, or convert it: python -m"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
         "is a pointer of Git LFS and not the file itself; run git lfs pull"),
        (lambda p: p.write_bytes(b"\x80\x02}q\x00."), "is a file of torch .*convert it: python -m"),
        (lambda p: file_formats.write({"a": np.zeros(2)}, p, "npz"), "is an archive of NumPy .*; convert it"),
        (lambda p: file_formats.write(published.tiny_openai(), p, "zip"),
         "is a file of torch; convert it: python -m semivl_jax.convert"),
        (lambda p: file_formats.save_script(published.tiny_openai(), p), "is a TorchScript archive"),
        (lambda p: p.write_text("<!DOCTYPE html>"), "is a web page and not the file itself"),
        (lambda p: save_file({"a": np.zeros(2)}, p),
         "is no weight file of semivl_jax, .* make one with python -m semivl_jax.convert .*--out"),
    ],
    ids=["folder", "lfs", "pickle", "npz", "torch", "script", "page", "safetensors"],
)  # fmt: skip
def test_files_of_others_are_recognised_where_ours_are_expected(tmp_path, write, sentence):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(ValueError, match=sentence):
        towers.load(path, "")
    with pytest.raises(ValueError, match=sentence):
        files.load(path, expect=files.BACKBONE)


def test_command_line(tmp_path):
    state = published.tiny_openai() | published.OPENAI_FACTS
    save_file(state, tmp_path / "theirs.safetensors")
    command = [sys.executable, "-m", "semivl_jax.convert", str(tmp_path / "theirs.safetensors")]
    out = tmp_path / "new" / "ours.safetensors"
    done = subprocess.run([*command, f"--out={out}", "--grid=3x3"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "detected: CLIP of OpenAI" in done.stdout
    assert f"--config.model.weights={out}" in done.stdout
    image = sum(array.size for name, array in state.items() if name.startswith("visual."))
    counts = re.findall(r"^  (\w+) +([\d,]+) parameters$", done.stdout, re.MULTILINE)
    assert [part for part, _ in counts] == ["image", "text", "logit_scale", "total"]
    assert counts[0][1] == f"{image:,}" and counts[2][1] == "1"
    for option, sentence in (
        ("--out=x.pt", "--out=x.pt must end with .safetensors, or .npz to export\n"),
        ("--grid=3", "argument --grid: '3' is not of the form 14x20"),
    ):
        done = subprocess.run([*command, "--out=y.npz", option], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {sentence}")
