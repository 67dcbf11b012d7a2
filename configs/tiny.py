"""Smallest of everything: seconds on a CPU, weights never trained. For trying out and for the tests.

    python -m semivl_jax.main --config=configs/tiny.py:/path/to/folder[,split=1_2]

The argument is a folder of images as in `folder.py`; without it the synthetic pictures of `shapes` are used.
"""

from ml_collections import ConfigDict

from configs import arguments
from semivl_jax.config import default_config


def get_config(argument: str = "") -> ConfigDict:
    """Eight steps; folder and split are optional."""
    chosen = arguments.parse(
        argument, file="configs/tiny.py", path="folder", folder=None, split=None
    )
    folder = chosen["folder"]
    config = default_config()
    config.steps = 8
    config.batch = 2
    config.log_every = 2
    config.data.dataset = "folder" if folder else "shapes"
    config.data.folder = folder
    config.data.split = chosen["split"] or ("1_2" if folder else "1_100")
    config.data.crop = 32
    config.data.ratio_long, config.data.ratio_short = 64, 40
    config.data.workers = 0
    config.model.tower = "tiny"
    config.model.weights = "random"
    config.model.out_indices = (0, 1, 2)
    config.vlg_decoder.channels = 16
    config.vlg_decoder.text_channels = 16
    config.vlg_decoder.up_channels = (16, 16)
    config.vlg_decoder.skip_channels = (8, 8)
    config.vlg_decoder.num_layers = 1
    config.vlg_decoder.num_heads = 2
    config.vlg_decoder.mlp_dim = 32
    config.vlg_decoder.pool_size = (2, 2)
    config.vlg_decoder.dilations = (1, 2)
    config.deeplab_decoder.channels = 16
    config.deeplab_decoder.low_channels = 8
    config.deeplab_decoder.dilations = (1, 2)
    config.atm_decoder.num_layers, config.atm_decoder.num_heads = 1, 2
    config.dpt_decoder.channels, config.dpt_decoder.out_channels = 8, (8, 8, 8, 8)
    config.evaluation.stride = 24.0
    config.evaluation.short_side = 0
    config.evaluation.window_batch = 2
    config.evaluation.every_steps = 4
    config.evaluation.pictures = 1
    config.evaluation.pseudo_label_eval_images = 2
    config.checkpoint.every = 2
    return config
