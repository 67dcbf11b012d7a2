"""SemiVL with DINO as its image encoder: fine maps of DINO, texts and guidance of a frozen CLIP.

    python -m semivl_jax.main --config=configs/semivl_dino.py:voc,92[,backbone=dinov2_vitb14]
    [,similarity=queries][,recipe=…]

The language-guided decoder compares the dense embedding of the frozen CLIP with class texts and takes its
skips from DINO (similarity=clip), or compares DINO's last map with a trained vector per class
(similarity=queries). Not published: losses and decoder are SemiVL's, the learning rate of the encoder is that
of UniMatch V2. `model.backbone_weights` names the converted weights of DINO.
"""

from ml_collections import ConfigDict

from configs import ade, arguments, cityscapes, coco, recipes, voc

FAMILIES = {"voc": voc, "coco": coco, "ade": ade, "cityscapes": cityscapes}
"""Data set → the file with its splits."""
BACKBONES = (
    "dinov3_vitb16",
    "dinov3_vits16",
    "dinov3_vits16plus",
    "dinov3_vitl16",
    "dinov2_vitb14",
    "dinov2_vits14",
)
OUT_INDICES = {"clip": (5, 11), "queries": (2, 7, 11)}
"""Similarity → blocks of DINO with 12 blocks: the skips, and for queries the map that they read."""
LARGE_OUT_INDICES = {"clip": (11, 23), "queries": (5, 15, 23)}
ENCODER_LR = 5e-6


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is a data set and one of its splits, then encoder, similarity and recipe."""
    parts = [part.removeprefix("dataset=") for part in argument.split(",")]
    family = FAMILIES[next((part for part in parts if part in FAMILIES), "voc")]
    chosen = arguments.parse(
        argument,
        file="configs/semivl_dino.py",
        dataset=FAMILIES,
        split=family.SPLITS,
        backbone=BACKBONES,
        similarity=OUT_INDICES,
        recipe=arguments.RECIPES,
    )
    config = family.semivl(chosen["split"])
    dino, similarity = chosen["backbone"], chosen["similarity"]
    large = dino == "dinov3_vitl16"
    config.model.backbone = dino
    config.model.backbone_weights = f"{dino}.safetensors"
    config.model.init = "random"
    config.model.conv_encoder, config.model.conv_encoder_weights = "none", ""
    config.model.renormalize = False  # to CLIP's statistics, which DINO was not trained with
    config.model.similarity = similarity
    config.model.out_indices = (LARGE_OUT_INDICES if large else OUT_INDICES)[similarity]
    config.model.finetune = "all"
    config.optim.backbone_lr = ENCODER_LR / config.optim.lr
    if dino.startswith("dinov2"):  # whole patches of 14 pixels, and of CLIP's 16
        config.data.crop = 784 if config.data.crop > 512 else 448
        config.evaluation.stride = float(config.data.crop * 5 // 6)
    recipes.apply(config, chosen["recipe"])
    return config
