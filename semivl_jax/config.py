"""Rules that a configuration must keep, checked before anything is loaded.

Every message names the key, its value and what to do. The configuration is an `ml_collections.ConfigDict`
with the keys of `configs/base.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from semivl_jax.evaluation import sliding_window
from semivl_jax.experiment import profiling
from semivl_jax.text import class_names

FITTING: dict[str, dict[str, tuple[str, ...]]] = {
    "clip_vit": {"decoder": ("vlg", "deeplab"), "finetune": ("spatial", "all", "none")},
    "prompted_clip_vit": {"decoder": ("atm",), "finetune": ("prompts",)},
    "resnet50": {"decoder": ("deeplab",), "finetune": ("all",)},
    "resnet101": {"decoder": ("deeplab",), "finetune": ("all",)},
    "imagenet_vit": {"decoder": ("deeplab",), "finetune": ("all", "none")},
    "dinov2_vits14": {"decoder": ("dpt",), "finetune": ("all", "none")},
    "dinov2_vitb14": {"decoder": ("dpt",), "finetune": ("all", "none")},
    "augreg_b16": {"decoder": ("deeplab",), "finetune": ("all", "none")},
    "siglip_b16": {"decoder": ("deeplab",), "finetune": ("all", "none")},
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
    "model.remat": ("none", "dots", "blocks"),
    "model.guidance_dtype": ("float32", "bfloat16"),
    "vlg_decoder.remat": ("none", "blocks"),
    "text.decoder": class_names.MODES,
    "text.guidance": class_names.MODES,
    "method.teacher": ("ema", "student"),
    "method.ema_dtype": ("float32", "bfloat16"),
    "method.partner": ("batch", "same_image"),
    "method.strong_views": (1, 2),
    "method.perturbation": ("feature", "complementary", "none"),
    "method.dropout_passes": ("none", "first", "all"),
    "method.criterion": ("cross_entropy", "ohem", "focal_dice"),
    "method.confidence_mode": ("pixelwise", "pixelratio", "pixelavg"),
    "method.guidance_reduction": ("mean", "mean_valid", "mean_all"),
    "optim.lr_scaling": ("none", "linear"),
    "optim.name": ("adamw", "sgd"),
    "evaluation.mode": sliding_window.MODES,
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
    "evaluation.stride",
    "evaluation.window_batch",
    "checkpoint.every",
    "checkpoint.keep",
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
    "evaluation.held_back",
    "method.guidance_start",
    "method.guidance_end",
    "method.ohem_min_kept",
)

SHARES = (
    "method.ema_decay",
    "method.ohem_threshold",
    "method.confidence_threshold",
    "method.perturbation_rate",
    "method.guidance_threshold",
)


def validate(config: ConfigDict) -> None:
    """Checks single values, then what must hold between them.

    Raises:
      ValueError: the first rule that is broken, in one sentence.
    """
    for broken in (*_single_values(config), *_between_values(config)):
        raise ValueError(broken)
    profiling.span(config.profile)


def _value(config: ConfigDict, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = value[name]
    return value


def _single_values(config: ConfigDict) -> Iterator[str]:
    for key, choices in CHOICES.items():
        if _value(config, key) not in choices:
            listed = ", ".join(str(choice) for choice in choices)
            yield f"{key} = {_value(config, key)!r} is unknown; choose one of {listed}"
    for key in POSITIVE:
        if not _value(config, key) > 0:
            yield f"{key} = {_value(config, key)} must be greater than 0"
    for key in NOT_NEGATIVE:
        if _value(config, key) < 0:
            yield f"{key} = {_value(config, key)} must be 0 or more"
    for key in SHARES:
        if not 0 <= _value(config, key) <= 1:
            yield f"{key} = {_value(config, key)} must lie between 0 and 1"


def _between_values(config: ConfigDict) -> Iterator[str]:
    data, model, method, evaluation = config.data, config.model, config.method, config.evaluation
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
    if method.perturbation_rate == 1:
        yield "method.perturbation_rate = 1 drops every channel; choose less than 1"
    if method.perturbation == "complementary" and method.strong_views != 2:
        yield (
            f"method.strong_views = {method.strong_views} leaves nothing to complement; set it to 2 for "
            "method.perturbation = 'complementary'"
        )
    if config.mesh.classes > 1 and model.decoder != "vlg":
        yield (
            f"mesh.classes = {config.mesh.classes} splits what the decoder 'vlg' computes per class, but "
            f"model.decoder = {model.decoder!r}; set mesh.classes = 1"
        )
    if config.accumulation > 1:
        yield from _accumulates(config)
    of_clip = model.backbone in ("clip_vit", "prompted_clip_vit")
    if of_clip and model.backbone_weights:
        yield (
            f"model.backbone_weights = {model.backbone_weights!r} is not read by model.backbone = "
            f"{model.backbone!r}, which starts from model.weights; name another backbone or leave it empty"
        )
    if model.conv_encoder == "none" and model.conv_encoder_weights:
        yield (
            f"model.conv_encoder_weights = {model.conv_encoder_weights!r} is not read by "
            "model.conv_encoder = 'none'; name an encoder or leave it empty"
        )
    for key, fitting in FITTING.get(model.backbone, {}).items():
        if model[key] not in fitting:
            yield (
                f"model.backbone = {model.backbone!r} does not go with model.{key} = {model[key]!r}; set "
                f"model.{key} = {' or '.join(map(repr, fitting))}"
            )
    if model.remat != "none" and model.backbone in ("resnet50", "resnet101"):
        yield (
            f"model.remat = {model.remat!r} is for the blocks of transformers, model.backbone = "
            f"{model.backbone!r} has none; set model.remat = 'none'"
        )
    if not of_clip and model.init == "clip":
        yield f"model.backbone = {model.backbone!r} is no CLIP tower; set model.init = 'random'"
    if model.init == "random" and model.finetune != "all" and model.weights != "random":
        yield from _frozen_untrained(model, of_clip=of_clip)
    if method.semi_supervised and method.guidance and not model.weights:
        yield from _needs_weights("method.guidance = True")
    elif model.init == "clip" and not model.weights:
        yield from _needs_weights("model.init = 'clip'")
    elif model.decoder in ("vlg", "atm") and not model.weights:
        yield from _needs_weights(f"model.decoder = {model.decoder!r}")
    if evaluation.stride > data.crop:
        yield (
            f"evaluation.stride = {evaluation.stride} is larger than data.crop = {data.crop}, so "
            "windows would leave gaps; choose at most the crop"
        )
    if evaluation.short_side and evaluation.mode not in sliding_window.RESIZES_SCORES:
        yield (
            f"evaluation.mode = {evaluation.mode!r} scores the pixels of the image, but "
            f"evaluation.short_side = {evaluation.short_side} resizes it; set evaluation.short_side = 0, "
            f"or choose the mode {' or '.join(sliding_window.RESIZES_SCORES)}"
        )
    if not evaluation.every_epochs and not evaluation.every_steps:
        yield (
            "evaluation.every_epochs = 0 and evaluation.every_steps = 0 never evaluate; set one of them"
        )


def _accumulates(config: ConfigDict) -> Iterator[str]:
    method, key = config.method, f"accumulation = {config.accumulation}"
    if method.criterion == "ohem":
        yield (
            f"{key} does not go with method.criterion = 'ohem', which chooses pixels of the whole batch by "
            "their predictions; set accumulation = 1 or another criterion"
        )
    if method.dropout_passes != "none":
        yield (
            f"{key} does not go with method.dropout_passes = {method.dropout_passes!r}, because dropout "
            "drawn part by part is another one than the batch's; set one of them back to 1 or 'none'"
        )


def _frozen_untrained(model: ConfigDict, *, of_clip: bool) -> Iterator[str]:
    if of_clip or not model.backbone_weights:
        remedy = "model.init = 'clip'" if of_clip else "name a file in model.backbone_weights"
        yield (
            f"model.init = 'random' with model.finetune = {model.finetune!r} would freeze weights that "
            f"were never trained; set model.finetune = 'all' or {remedy}"
        )


def _needs_weights(reason: str) -> Iterator[str]:
    yield (
        f"{reason} needs CLIP weights, but model.weights is empty; name a .safetensors file, 'demo' for "
        "the small tower that comes with the project, or 'random' to try things out"
    )
