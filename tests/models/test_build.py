"""From a configuration to a model."""

import jax
import jax.numpy as jnp
import pytest

from configs import tiny
from semivl_jax import config_rules
from semivl_jax.models import build
from semivl_jax.types import ClassText
from semivl_jax.weights import towers

CLIP_SIZES = towers.IMAGE_SIZES["tiny"]
DECODERS = {
    "clip_vit": ("vlg", (0, 1, 2)),
    "prompted_clip_vit": ("atm", (2,)),
    "dinov2_vits14": ("dpt", (0, 1, 2, 3)),
    "dinov2_vitb14": ("dpt", (0, 1, 2, 3)),
    "dinov3_vits16": ("dpt", (0, 1, 2, 3)),
    "dinov3_vits16plus": ("dpt", (0, 1, 2, 3)),
    "dinov3_vitb16": ("dpt", (0, 1, 2, 3)),
    "dinov3_vitl16": ("dpt", (0, 1, 2, 3)),
    "mobilenet_v2": ("dpt", ()),
}


@pytest.mark.parametrize("backbone", build.BACKBONES)
def test_every_backbone_makes_a_model(backbone):
    decoder, out_indices = DECODERS.get(backbone, ("deeplab", (0, 3)))
    config = tiny.get_config()
    config.model.backbone, config.model.decoder = backbone, decoder
    config.model.out_indices, config.atm_decoder.num_heads = out_indices, 2
    model = build.segmenter(config, num_classes=3, clip_sizes=CLIP_SIZES)
    text = ClassText(jnp.zeros((3, CLIP_SIZES["out_dim"])), jnp.arange(3), 3)
    image = jax.ShapeDtypeStruct((2, 40, 24, 3), jnp.float32)
    logits, _ = jax.eval_shape(
        lambda image: model.init_with_output(jax.random.key(0), image, text), image
    )
    assert logits.shape == (2, 40, 24, 3)
    own_size = (
        backbone.startswith(("resnet", "dinov")) or "lite0" in backbone or "mobile" in backbone
    )
    assert model.via_square == (not own_size)
    assert (model.padding_patch is not None) == (backbone == "clip_vit")


def test_the_table_holds_what_a_configuration_can_choose():
    assert set(build.BACKBONES) == set(config_rules.CHOICES["model.backbone"])


def test_clip_is_needed_for_its_tower_and_for_texts_in_the_decoder():
    model = tiny.get_config().model
    needed = {}
    for backbone in ("clip_vit", "prompted_clip_vit", "resnet101"):
        for decoder in ("vlg", "atm", "deeplab"):
            model.backbone, model.decoder = backbone, decoder
            needed[backbone, decoder] = build.needs_clip(model)
    assert [pair for pair, needs in needed.items() if not needs] == [("resnet101", "deeplab")]


def test_guidance_reads_the_dense_embedding_at_its_own_grid():
    config = tiny.get_config()
    config.model.guidance_grid = 5
    tower = build.guidance_tower(config, {**CLIP_SIZES, "quick_gelu": True})
    assert (tower.grid, tower.out_indices, tower.quick_gelu) == ((5, 5), (2,), True)
    features = jax.eval_shape(
        lambda: tower.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 24, 3)))[0]
    )
    assert features.maps[0].shape == (1, 2, 3, CLIP_SIZES["out_dim"])
