"""The rules that values of the configuration must keep: for single keys, and between keys."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import get_args

from ml_collections import ConfigDict

from semivl_jax import buckets
from semivl_jax.models import build, clip_guidance
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.text import class_names

_RESNET = {"decoder": ("deeplab",), "finetune": ("all",)}
_ENCODER = {"decoder": ("deeplab",), "finetune": ("all", "none")}
_LIGHT = {"decoder": ("deeplab", "dpt"), "finetune": ("all", "none")}
_DINO = {"decoder": ("dpt", "vlg"), "finetune": ("all", "spatial", "none")}
FITTING: dict[str, dict[str, tuple[str, ...]]] = {
    "clip_vit": {"decoder": ("vlg", "deeplab"), "finetune": ("spatial", "all", "none")},
    "prompted_clip_vit": {"decoder": ("atm",), "finetune": ("prompts",)},
    "resnet50": _RESNET,
    "resnet101": _RESNET,
    "resnet18": _ENCODER,
    "imagenet_vit": _ENCODER,
    "dinov2_vits14": _DINO,
    "dinov2_vitb14": _DINO,
    "dinov3_vits16": _DINO,
    "dinov3_vits16plus": _DINO,
    "dinov3_vitb16": _DINO,
    "dinov3_vitl16": _DINO,
    "efficientnet_lite0": _LIGHT,
    "timm_efficientnet_lite0": _LIGHT,
    "mobilenet_v2": _LIGHT,
    "augreg_b16": _ENCODER,
    "siglip_b16": _ENCODER,
}
"""model.backbone → values of other keys of `model` that go with it."""

CHOICES: dict[str, tuple[object, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "data.dataset": (
        "shapes",
        "folder",
        "voc",
        "coco",
        "coco_instances",
        "ade20k",
        "cityscapes",
    ),
    "data.resize": ("ratio", "long_side"),
    "model.backbone": tuple(FITTING),
    "model.init": ("clip", "random"),
    "model.finetune": ("spatial", "all", "prompts", "none"),
    "model.conv_encoder": ("none", "resnet101_v1c"),
    "model.decoder": ("vlg", "deeplab", "atm", "dpt"),
    "model.similarity": ("text", "queries", "clip", "both"),
    "model.output": ("mean", "clip", "dino"),
    "model.remat": ("none", "dots", "blocks"),
    "model.guidance_dtype": ("float32", "bfloat16"),
    "vlg_decoder.remat": ("none", "blocks"),
    "guidance.dense": get_args(clip_guidance.Dense),
    "guidance.scores": get_args(clip_guidance.Scores),
    "guidance.refine": get_args(clip_guidance.Refine),
    "text.decoder": class_names.MODES,
    "text.guidance": class_names.MODES,
    "optim.lr_scaling": ("none", "linear"),
    "optim.name": ("adamw", "sgd"),
}

POSITIVE = (
    "batch",
    "accumulation",
    "log_every",
    "data.crop",
    "data.ratio_long",
    "data.ratio_short",
    "data.scale_min",
    "data.prefetch",
    "optim.lr",
    "optim.published_batch",
    "checkpoint.every",
    "checkpoint.keep",
    "guidance.clusters",
)

NOT_NEGATIVE = (
    "seed",
    "steps",
    "epochs",
    "epoch_images",
    "max_skipped_steps",
    "data.workers",
    "model.guidance_grid",
    "optim.weight_decay",
    "optim.power",
    "optim.warmup_steps",
    "optim.backbone_lr",
    "optim.conv_encoder_lr",
    "optim.decoder_lr",
    "evaluation.short_side",
    "evaluation.every_epochs",
    "evaluation.every_steps",
    "evaluation.pictures",
    "evaluation.pseudo_label_eval_images",
)

SHARES = ("data.calibration_share", "data.rare_class_share")


def check_schemes(config: ConfigDict, prefix: str = "") -> None:
    """ValueError for a text with a scheme such as gs:// where a path of this machine must stand."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            check_schemes(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            name = prefix + key
            buckets.check_scheme(value, name, bucket=name == "data.directory")


def broken_by_single_values(config: ConfigDict) -> Iterator[str]:
    """A sentence for every value that its key does not take."""
    for key, choices in CHOICES.items():
        value = attrgetter(key)(config)
        if value not in choices:
            listed = ", ".join(str(choice) for choice in choices)
            yield f"{key} = {value!r} is unknown; choose one of {listed}"
    for key in POSITIVE:
        value = attrgetter(key)(config)
        if not value > 0:
            yield f"{key} = {value} must be greater than 0"
    for key in NOT_NEGATIVE:
        value = attrgetter(key)(config)
        if value < 0:
            yield f"{key} = {value} must be 0 or more"
    for key in SHARES:
        value = attrgetter(key)(config)
        if not 0 <= value <= 1:
            yield f"{key} = {value} must be a share from 0 to 1"


def broken_between_values(config: ConfigDict, *, guided: bool) -> Iterator[str]:
    """A sentence for every rule between keys that is broken; `guided`: the method needs a frozen CLIP."""
    yield from _length_and_images(config)
    yield from _parts_of_model(config)
    yield from _similarity(config)
    yield from _blocks_of_encoder(config)
    yield from _weights(config, guided=guided)
    yield from _evaluation(config)


def _length_and_images(config: ConfigDict) -> Iterator[str]:
    data = config.data
    if not config.steps and not config.epochs:
        yield "steps = 0 and epochs = 0 leave nothing to train; set one of them"
    if data.dataset == "folder" and not data.folder:
        yield (
            "data.folder is empty; name the folder with images/, masks/ and classes.txt, for example "
            "--config=configs/folder.py:/path/to/photos"
        )
    if data.scale_max < data.scale_min:
        yield (
            f"data.scale_max = {data.scale_max} is below data.scale_min = {data.scale_min}; "
            "exchange them"
        )


def _parts_of_model(config: ConfigDict) -> Iterator[str]:
    model = config.model
    if config.mesh.classes > 1 and model.decoder != "vlg":
        yield (
            f"mesh.classes = {config.mesh.classes} splits what the decoder 'vlg' computes per class, but "
            f"model.decoder = {model.decoder!r}; set mesh.classes = 1"
        )
    if model.backbone in build.CLIP_BACKBONES and model.backbone_weights:
        yield (
            f"model.backbone_weights = {model.backbone_weights!r} is not read by model.backbone = "
            f"{model.backbone!r}, which starts from model.weights; name another backbone or leave it empty"
        )
    if model.conv_encoder == "none" and model.conv_encoder_weights:
        yield (
            f"model.conv_encoder_weights = {model.conv_encoder_weights!r} is not read by "
            "model.conv_encoder = 'none'; name an encoder or leave it empty"
        )
    for key, fitting in FITTING[model.backbone].items():
        if model[key] not in fitting:
            yield (
                f"model.backbone = {model.backbone!r} does not go with model.{key} = {model[key]!r}; set "
                f"model.{key} = {' or '.join(map(repr, fitting))}"
            )


def _similarity(config: ConfigDict) -> Iterator[str]:
    model = config.model
    of_clip = model.backbone in build.CLIP_BACKBONES
    chosen = f"model.similarity = {model.similarity!r}"
    if model.similarity != "text" and model.decoder != "vlg":
        yield (
            f"{chosen} is for model.decoder = 'vlg', not {model.decoder!r}; set model.similarity = 'text'"
        )
    if model.similarity in ("clip", "both") and (of_clip or model.conv_encoder != "none"):
        yield (
            f"{chosen} puts CLIP's tower beside a DINO and no convolutional encoder; choose a DINO as "
            "model.backbone and model.conv_encoder = 'none'"
        )
    if model.decoder == "vlg" and model.similarity == "text" and not of_clip:
        yield (
            f"model.backbone = {model.backbone!r} has no embedding to compare with texts; set "
            "model.similarity = 'clip' or 'queries'"
        )
    if (model.similarity == "both") != (config.method.name == "co2s"):
        yield (
            f"{chosen} does not go with method.name = {config.method.name!r}: the two students of 'both' are "
            "those of the method 'co2s'; change one of them"
        )
    if config.mesh.classes > 1 and model.similarity in ("queries", "both"):
        yield (
            f"mesh.classes = {config.mesh.classes} splits the texts of classes, but {chosen} has queries; "
            "set mesh.classes = 1"
        )


def _blocks_of_encoder(config: ConfigDict) -> Iterator[str]:
    model = config.model
    convolutional = build.BACKBONES[model.backbone][0] is not VisionTransformer
    if model.frozen_batch_norm and not convolutional and model.conv_encoder == "none":
        yield (
            f"model.frozen_batch_norm is for encoders with batch norms, model.backbone = "
            f"{model.backbone!r} has none; set model.frozen_batch_norm = False"
        )
    if model.remat != "none" and convolutional:
        yield (
            f"model.remat = {model.remat!r} is for the blocks of transformers, model.backbone = "
            f"{model.backbone!r} has none; set model.remat = 'none'"
        )


def _weights(config: ConfigDict, *, guided: bool) -> Iterator[str]:
    model = config.model
    of_clip = model.backbone in build.CLIP_BACKBONES
    if not of_clip and model.init == "clip":
        yield f"model.backbone = {model.backbone!r} is no CLIP tower; set model.init = 'random'"
    untrained = model.init == "random" and model.weights != "random"
    if untrained and model.finetune != "all" and (of_clip or not model.backbone_weights):
        remedy = "model.init = 'clip'" if of_clip else "name a file in model.backbone_weights"
        yield (
            f"model.init = 'random' with model.finetune = {model.finetune!r} would freeze weights that "
            f"were never trained; set model.finetune = 'all' or {remedy}"
        )
    needs_weights = {
        f"method.name = {config.method.name!r}": guided,
        "model.init = 'clip'": model.init == "clip",
        f"model.decoder = {model.decoder!r}": build.needs_text(model),
    }
    for setting, needed in needs_weights.items():
        if needed and not model.weights:
            yield (
                f"{setting} needs CLIP weights, but model.weights is empty; name a .safetensors file, 'demo' "
                "for the small tower that comes with the project, or 'random' to try things out"
            )


def _evaluation(config: ConfigDict) -> Iterator[str]:
    evaluation = config.evaluation
    if not evaluation.every_epochs and not evaluation.every_steps:
        yield (
            "evaluation.every_epochs = 0 and evaluation.every_steps = 0 never evaluate; set one of them"
        )
