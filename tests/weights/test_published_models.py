"""State dicts with the names and shapes of every published model, in full size."""

import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import base
from semivl_jax import convert
from semivl_jax.experiment import run
from semivl_jax.train import param_groups as groups_lib
from semivl_jax.train import sharding
from semivl_jax.weights import checkpoints, kinds, towers
from semivl_jax.weights.checkpoints import Checkpoint
from tests.golden_files import OWN, golden_dir
from tests.photos import make_folder
from tests.weights import published, torch_formats

KINDS = {
    "voc_unimatch_zegclip": "zegclip",
    "voc_unimatch_vit": "vit_baseline",
    "voc_unimatch_r101": "unimatch_deeplab",
}
DROPPED = (  # parameters that the published models have and never use, or not for segmentation
    "clip_encoder.",
    "backbone.m.head.",
    "decode_head.decoder_1.layers.#.self_attn.",
    "decode_head.decoder_1.layers.#.norm1.",
)


def models():
    path = golden_dir() / "published_models.json"
    path = path if path.is_file() else OWN / path.name
    return json.loads(path.read_text())


def state_of(facts, dtype=np.float16):
    """Arrays of the right shapes that take no memory."""
    return {
        tensor["name"]: np.broadcast_to(dtype(0.01), tensor["shape"]) for tensor in facts["tensors"]
    }


def is_dropped(name):
    parts = [("#" if part.isdigit() else part) for part in name.split(".")]
    return ".".join(parts).startswith(DROPPED)


@pytest.mark.golden
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", models())
def test_every_published_model_converts_with_its_number_of_parameters(tmp_path, name, prefix):
    """From a file as the training program leaves it; its tensors repeat one number and take no space."""
    facts, torch = models()[name], torch_formats.torch()
    tensors = {
        f"{prefix}{tensor['name']}": torch.full((), 0.01).half().expand(tensor["shape"])
        for tensor in facts["tensors"]
    }
    torch.save({"model": tensors, "epoch": 3, "previous_best": 1.0}, tmp_path / "best.pth")
    checkpoint = checkpoints.read(tmp_path / "best.pth")
    kind = kinds.recognise(checkpoint)
    assert kind.name == KINDS.get(name, "semivl")
    weights = kind.convert(checkpoint, kinds.Options())
    counts = convert.parameter_counts(weights)
    dropped = {
        tensor["name"]: math.prod(tensor["shape"])
        for tensor in facts["tensors"]
        if tensor["kind"] == "parameter" and is_dropped(tensor["name"])
    }
    guidance = sum(n for tensor, n in dropped.items() if tensor.startswith("clip_encoder."))
    assert guidance == facts["guidance_encoder"]
    unused = {
        part: sum(n for tensor, n in dropped.items() if tensor.startswith(prefix))
        for part, prefix in (("backbone", "backbone."), ("decoder", "decode_head."))
    }
    assert counts["total"] == facts["total"] - sum(unused.values())
    assert counts["backbone"] == facts["backbone"] - unused["backbone"]
    if facts["decoder"]:  # UniMatch's own parts are not counted there
        assert counts["decoder"] == facts["decoder"] - unused["decoder"]
    assert counts.get("conv_encoder", 0) == facts["conv_encoder"]


@pytest.mark.parametrize(
    ("patch", "side", "width", "depth", "text_width", "dim", "total"),
    [
        (16, 14, 768, 12, 512, 512, 149_620_737),
        (32, 7, 768, 12, 512, 512, 151_277_313),
        (14, 16, 1024, 24, 768, 768, 427_616_513),
    ],
    ids=["b16", "b32", "l14"],
)
def test_the_published_clips_convert(patch, side, width, depth, text_width, dim, total):
    """Totals are those that OpenAI's package prints for its models."""
    shapes = published.openai_image_shapes(width, depth, dim, patch=patch, side=side)
    shapes |= published.openai_text_shapes(text_width, 12, dim, vocabulary=49408, length=77)
    state = {name: np.broadcast_to(np.float16(0.01), shape) for name, shape in shapes.items()}
    checkpoint = Checkpoint(source="clip", state=state)
    weights = kinds.recognise(checkpoint).convert(checkpoint, kinds.Options())
    assert convert.parameter_counts(weights)["total"] == total
    assert weights.sizes["image"]["num_heads"] == width // 64
    if patch == 16:
        assert weights.sizes["image"] == towers.IMAGE_SIZES["clip_vit_b16"]
        assert weights.sizes["text"] == towers.TEXT_SIZES["clip_vit_b16"]


@pytest.mark.golden
@pytest.mark.parametrize("name", [name for name in models() if name not in KINDS])
def test_as_many_parameters_are_trained_as_published(name):
    facts = models()[name]
    checkpoint = Checkpoint(source=name, state=state_of(facts))
    weights = kinds.recognise(checkpoint).convert(checkpoint, kinds.Options())
    everything = facts["backbone_trained"] == facts["backbone"]
    groups = groups_lib.published_groups(
        finetune="all" if everything else "spatial",
        backbone_lr=1.0,
        conv_encoder_lr=1.0,
        decoder_lr=1.0,
    )
    trained, _ = groups_lib.partition(weights.tree["params"], groups)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == facts["trained"]
    backbone = sum(leaf.size for leaf in jax.tree.leaves(trained["backbone"]))
    assert backbone == facts["backbone_trained"]


@pytest.mark.slow
@pytest.mark.golden
def test_evaluation_runs_on_the_converted_voc_model(tmp_path, capsys, monkeypatch):
    """A file of full size, "module." before every name; a small crop keeps the time small."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh)
    facts = models()["voc_semivl"]
    rng = np.random.default_rng(0)
    theirs = {
        f"module.{name}": (rng.random(array.shape, np.float32) * 0.04 - 0.02).astype(np.float16)
        for name, array in state_of(facts).items()
        if not name.startswith("clip_encoder.")
    }
    save_file(theirs, tmp_path / "theirs.safetensors")
    out = tmp_path / "ours.safetensors"
    assert convert.main([str(tmp_path / "theirs.safetensors"), f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "segmenter of SemiVL" in printed and "89,045,729 parameters" in printed
    assert f"--config.model.checkpoint={out}" in printed
    config = base.get_config()
    config.data.dataset = "folder"
    photos = make_folder(tmp_path / "photos", train=2, validation=1, size=(64, 64))
    config.data.folder = str(photos)
    config.data.directory = str(tmp_path / "prepared")
    config.data.split, config.data.crop, config.data.workers = "1", 64, 0
    config.batch = 1
    config.compilation_cache = ""
    config.method.guidance = False
    config.model.weights, config.model.checkpoint = "random", str(out)
    config.evaluation.stride, config.evaluation.window_batch = 32.0, 1
    config.evaluation.short_side, config.evaluation.pictures = 0, 1
    run.evaluate(config, tmp_path / "work")
    assert "evaluation at step 0" in capsys.readouterr().out
