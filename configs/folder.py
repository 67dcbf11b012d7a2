"""Your own images: --config=configs/folder.py:/path/to/folder[,split=1_8][,tower=demo|clip_vit_b16]

The folder holds images/, masks/ and classes.txt (docs/own_data.md). Without more it trains the small tower
that comes with the project for 100 steps, so that everything can be tried on a CPU; for results that count,
name real CLIP weights:

    --config=configs/folder.py:/path/to/folder,tower=clip_vit_b16 --config.model.weights=FILE.safetensors
"""

from ml_collections import ConfigDict

from configs import arguments, demo
from semivl_jax.config import default_config, set_method

_TOWERS = ("demo", "clip_vit_b16")


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is the folder; `split` (such as 1_4) is what of the masks to use, `tower` the tower."""
    chosen = arguments.parse(
        argument, file="configs/folder.py", path="folder", folder=None, split=None, tower=_TOWERS
    )
    config = default_config()
    config.data.dataset = "folder"
    config.data.folder = chosen["folder"]
    config.data.label_map = "n:255"  # the value after the last class: not labelled
    config.data.split = chosen["split"] or "1_8"
    if chosen["tower"] == "clip_vit_b16":
        return config
    config.steps = 100
    config.batch = 2
    config.data.crop = 192
    config.data.ratio_long, config.data.ratio_short = 1024, 256
    config.data.workers = 0
    config.model.weights = "demo"
    set_method(config, "unimatch")  # no guidance: the demo's CLIP has only the text of `shapes`
    config.model.out_indices = (0, 2, 4)
    demo.small_decoder(config)
    config.optim.lr = 3e-4
    config.optim.backbone_lr = 1.0
    config.method.ema_decay = 0.98
    config.evaluation.stride = 128.0
    config.evaluation.short_side = 256
    config.evaluation.every_steps = 100
    config.checkpoint.every = 50
    return config
