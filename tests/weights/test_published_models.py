"""State dicts with the names and shapes of every published model, in full size."""

import json
import math

import jax
import numpy as np
import pytest

from semivl_jax.models import build
from semivl_jax.weights import convert as convert_lib
from semivl_jax.weights import towers
from semivl_jax.weights.foreign_files import Checkpoint
from semivl_jax.weights.layout import Options
from semivl_jax.weights.tree import check
from tests.checked_recipes import config_of
from tests.golden_files import OWN, golden_dir
from tests.golden_models import class_text
from tests.weights import published

FORMATS = {
    "voc_unimatch_zegclip": "zegclip",
    "voc_unimatch_vit": "vit_baseline",
    "voc_unimatch_r101": "unimatch_deeplab",
}
CONFIGS = {
    "voc_semivl": "voc:92",
    "coco_semivl": "coco:1_512",
    "ade_semivl": "ade:1_128",
    "cityscapes_semivl": "cityscapes:1_30",
    "voc_unimatch_zegclip": "voc_ablation:unimatch_zegclip,92",
    "voc_unimatch_vit": "voc_ablation:unimatch_vit,92",
    "voc_unimatch_r101": "voc_ablation:unimatch_r101,92",
    "voc_clip_init": "voc_ablation:clip_init,92",
}
UNUSED = (  # parameters that the published models have and never use
    "backbone.m.head.",
    "decode_head.decoder_1.layers.#.self_attn.",
    "decode_head.decoder_1.layers.#.norm1.",
)


def models():
    path = golden_dir() / "published_models.json"
    path = path if path.is_file() else OWN / path.name
    return json.loads(path.read_text())


def is_unused(name):
    parts = [("#" if part.isdigit() else part) for part in name.split(".")]
    return ".".join(parts).startswith(UNUSED)


def convert(shapes, **options):
    """The weights from arrays of these shapes that take no memory."""
    state = {name: np.broadcast_to(np.float16(0.01), shape) for name, shape in shapes.items()}
    return convert_lib.convert(Checkpoint(source="published", state=state), Options(**options))


@pytest.mark.golden
@pytest.mark.parametrize("name", models())
def test_every_published_model_is_the_model_of_its_configuration(name):
    facts = models()[name]
    weights = convert({tensor["name"]: tensor["shape"] for tensor in facts["tensors"]})
    assert weights.kind == FORMATS.get(name, "semivl")
    unused = sum(
        math.prod(tensor["shape"])
        for tensor in facts["tensors"]
        if tensor["kind"] == "parameter" and is_unused(tensor["name"])
    )
    assert convert_lib.parameter_counts(weights)["total"] == facts["total"] - unused
    if name in CONFIGS:
        model = build.segmenter(
            config_of(f"{CONFIGS[name]},recipe=paper"),
            num_classes=facts["num_classes"],
            clip_sizes=towers.IMAGE_SIZES["clip_vit_b16"],
        )
        text = class_text(np.zeros((2, 512), np.float32))
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        like = jax.eval_shape(lambda image: model.init(jax.random.key(0), image, text), image)
        check(weights.tree, {"batch_stats": {}, **like}, source=name)


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
    shapes = published.openai_image_shapes(width, depth, dim, patch=patch, grid=(side, side))
    shapes |= published.openai_text_shapes(text_width, 12, dim, vocabulary=49408, length=77)
    weights = convert(shapes, activation="quick_gelu")
    assert convert_lib.parameter_counts(weights)["total"] == total
    assert weights.sizes["image"]["num_heads"] == width // 64
    if patch == 16:
        assert weights.sizes["image"] == towers.IMAGE_SIZES["clip_vit_b16"]
        assert weights.sizes["text"] == towers.TEXT_SIZES["clip_vit_b16"]
