"""A light student learns from one or two trained runs (MGD): data set and classes are those of the first.

    python -m semivl_jax.main --config=configs/distill.py:runs/big[,runs/other][,student=efficientnet_lite0]

The student starts from ImageNet weights (docs/checkpoints.md); with --config.model.backbone_weights= from
none, for images that ImageNet does not resemble.
"""

from ml_collections import ConfigDict

from configs import arguments
from semivl_jax import utils
from semivl_jax.config import set_method
from semivl_jax.experiment import workdir

STUDENTS = {
    "efficientnet_lite0": "python -m semivl_jax.prepare weights efficientnet_lite0",
    "mobilenet_v2": "mobilenet_v2.safetensors, of semivl_jax.convert",
    "resnet18": "resnet18.safetensors, of semivl_jax.convert",
}


def get_config(argument: str = "") -> ConfigDict:
    """`argument` names one or two runs, and the student."""
    parts = [part.removeprefix("teacher=") for part in argument.split(",")]
    options = [part for part in parts if part.startswith("student=")]
    teachers = [part for part in parts if part and part not in options]
    chosen = arguments.parse(",".join(options), file="configs/distill.py", student=STUDENTS)
    if len(teachers) not in (1, 2):
        raise ValueError(
            f"--config=configs/distill.py:{argument} names {len(teachers)} trained runs; name one or two: "
            "--config=configs/distill.py:runs/a,runs/b,student=efficientnet_lite0"
        )
    config = workdir.read(utils.user_path(teachers[0]))
    set_method(config, "mgd", teacher=",".join(teachers))
    config.accumulation = 1
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "classes": 1})
    _student(config, chosen["student"])
    config.optim = ConfigDict(config.optim.to_dict() | OPTIMISER)
    return config


OPTIMISER = {
    "name": "adamw",
    "lr": 1e-3,
    "lr_scaling": "none",
    "weight_decay": 0.01,
    "warmup_steps": 0,
    "backbone_lr": 0.3,
    "decoder_lr": 1.0,
}


def _student(config: ConfigDict, name: str) -> None:
    model, small = config.model, config.data.crop < 320
    model.backbone = name
    model.backbone_weights = name if name == "efficientnet_lite0" else f"{name}.safetensors"
    model.weights = model.checkpoint = model.conv_encoder_weights = ""
    model.conv_encoder, model.init, model.finetune, model.remat = "none", "random", "all", "none"
    model.renormalize = model.frozen_batch_norm = False
    model.decoder = "deeplab"
    config.deeplab_decoder = ConfigDict(
        {
            "channels": 64 if small else 256,
            "low_channels": 24,
            "aspp_channels": 64 if small else 256,
            "dilations": (1, 3, 6, 9) if small else (1, 6, 12, 18),
            "joint_norm": True,  # the head of MGD's students
        }
    )
