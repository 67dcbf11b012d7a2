"""SemiVL on the synthetic images of `shapes`: minutes on two CPU cores, nothing to download.

    python -m semivl_jax.main --config=configs/demo.py[:4]
    python -m semivl_jax.sweep configs/demo.py --methods supervised,semivl

The image tower is the small CLIP that comes with the project (semivl_jax/weights/demo_clip.safetensors). It
labels pixels well by the definitions of the classes, so guidance counts as much as consistency until the end,
where published configurations start with a tenth and end without it.
"""

from ml_collections import ConfigDict

from configs import arguments
from semivl_jax.config import default_config


def get_config(argument: str = "") -> ConfigDict:
    """`argument` is the split: how many of the 3000 images are labelled, or a share such as 1_50."""
    split = arguments.parse(argument, file="configs/demo.py", split=None)["split"]
    config = default_config()
    config.steps = 600
    config.batch = 4
    config.data.dataset = "shapes"
    config.data.split = split or "4"
    config.data.crop = 64
    config.data.ratio_long, config.data.ratio_short = 64, 64
    config.data.scale_min, config.data.scale_max = 1.0, 1.5
    config.data.workers = 0  # threads suffice for such small images
    config.model.weights = "demo"
    config.model.out_indices = (2, 4)
    small_decoder(config)
    config.optim.lr = 3e-4
    config.optim.backbone_lr = 1.0
    config.method.ema_decay = 0.98  # the default average would span the whole run
    config.method.guidance_start = config.method.guidance_end = 1.0
    config.evaluation.stride = 64.0
    config.evaluation.short_side = 0
    config.evaluation.every_steps = 100
    config.checkpoint.every = 100
    return config


def small_decoder(config: ConfigDict) -> None:
    """Decoder sizes that two CPU cores train in minutes."""
    config.vlg_decoder.channels = 32
    config.vlg_decoder.text_channels = 32
    config.vlg_decoder.up_channels = (16,)
    config.vlg_decoder.skip_channels = (16,)
    config.vlg_decoder.mlp_dim = 128
    config.vlg_decoder.pool_size = (2, 2)
    config.vlg_decoder.dilations = (1, 2, 4)
    config.deeplab_decoder.channels = 64
    config.deeplab_decoder.low_channels = 32
    config.deeplab_decoder.dilations = (1, 2, 4)
