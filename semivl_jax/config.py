"""The configuration: every key once with its default.

`default_config` is the published SemiVL on Pascal VOC; the files in `configs/` change fields. On the command
line `--config.optim.lr=1e-4` changes a field of whatever file is named; a key that does not exist is refused.
The fields of `config.method` are those of the method's dataclass (`train/methods/`). Lengths are in steps,
sizes in pixels, rates between 0 and 1 unless said otherwise. What values must keep is in `config_rules`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from semivl_jax import config_rules, utils
from semivl_jax.evaluation.sliding_window import SlidingWindow
from semivl_jax.train import methods


def default_config() -> ConfigDict:
    """SemiVL with CLIP ViT-B/16 as published for Pascal VOC, with an EMA teacher."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 0  # length of training; 0: `epochs` decides
    config.epochs = 80.0  # passes over the unlabelled images
    # Images that count as one epoch; 0: the unlabelled ones, or the labelled ones where there are no others
    config.epoch_images = 0
    config.batch = 8  # labelled images per step = unlabelled images per step, over all devices
    # Parts of the batch that are computed one after another, with summed gradients: less memory, the same
    # step (docs/scaling.md)
    config.accumulation = 1
    # Devices along each axis; data = -1: all that the others leave. fsdp also splits parameters, optimiser
    # and EMA; classes splits the decoder's maps per class (docs/scaling.md)
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "classes": 1})
    config.dtype = "float32"  # of the computation (or bfloat16); parameters are always float32
    config.max_skipped_steps = 5  # non-finite steps in a row that are skipped before the run stops
    config.log_every = 10
    config.profile = ""  # FIRST:LAST: a trace of these steps goes to profile/ of the workdir
    config.compilation_cache = utils.COMPILATION_CACHE  # empty: compile every time
    config.data = _data()
    config.model = _model()
    config.vlg_decoder = _vlg_decoder()
    config.deeplab_decoder = _deeplab_decoder()
    config.atm_decoder = ConfigDict({"num_layers": 3, "num_heads": 8})
    config.dpt_decoder = ConfigDict({"channels": 128, "out_channels": (96, 192, 384, 768)})
    config.text = _text()
    config.guidance = _guidance()
    config.method = ConfigDict(methods.defaults("semivl"))
    config.optim = _optim()
    config.evaluation = _evaluation()
    config.checkpoint = ConfigDict({"every": 1000, "keep": 2})
    return config


def set_method(config: ConfigDict, name: str, **fields: Any) -> None:
    """Chooses a method: `config.method` becomes its fields.

    A field takes the given value; else its value in `config.method`, if that differs from the default of the
    previous method; else its default.

    Raises:
      ValueError: there is no such method, or it has no such field.
    """
    defaults, before = methods.defaults(name), methods.defaults(config.method.name)
    changed = {
        field: value
        for field, value in config.method.items()
        if field in defaults and field != "name" and value != before[field]
    }
    unknown = [field for field in fields if field not in defaults]
    if unknown:
        raise ValueError(
            f"method {name!r} has no field {unknown[0]!r}; it has {', '.join(defaults)}"
        )
    config.method = ConfigDict(defaults | changed | fields)


def drop_other_fields(config: ConfigDict, *, chosen: Collection[str] = ()) -> None:
    """Removes fields of other methods, which `--config.method.name=NAME` leaves in `config.method`.

    Raises:
      ValueError: one of them is among the keys `chosen` by the user, such as "method.ema_decay".
    """
    own = methods.defaults(config.method.name)
    for field, value in config.method.items():
        if field not in own and f"method.{field}" in chosen:
            raise ValueError(
                f"method.{field} = {value!r} is no field of the method {config.method.name!r}, which has "
                f"{', '.join(own)}; leave it out or choose another method.name"
            )
    with config.unlocked():
        config.method = ConfigDict(own | {k: v for k, v in config.method.items() if k in own})


def validate(config: ConfigDict) -> None:
    """Checks single values, then what must hold between them.

    Raises:
      ValueError: the first rule that is broken, in one sentence.
    """
    for broken in config_rules.broken_by_single_values(config):
        raise ValueError(broken)
    config_rules.check_schemes(config)
    method = methods.create(config.method)
    for broken in config_rules.broken_between_values(config, guided=method.guided):
        raise ValueError(broken)
    if config.accumulation > 1:
        method.check_accumulation(config.accumulation)
    SlidingWindow.from_config(config)  # raises for options that do not fit together


def _data() -> ConfigDict:
    data = ConfigDict()
    # shapes (made by the project), folder (your own images), voc, coco, coco_instances, ade20k,
    # cityscapes (docs/datasets.md)
    data.dataset = "shapes"
    data.directory = utils.DATA_DIRECTORY  # prepared data sets; a folder or gs://BUCKET/FOLDER
    data.manual_dir = ""  # folder with archives that you downloaded yourself (docs/datasets.md)
    data.folder = ""  # dataset = folder: where images/, masks/ and classes.txt are
    # dataset = folder: mask values to change, such as "11:255,12:3"; "n:255": the value after the last
    data.label_map = ""
    # published list ("92" of voc, "1_512" of coco, …), labelled share 1_k, a number of labelled images,
    # all, auto (all, or 1_8 where every image has a mask), or a file of ids
    data.split = "1_8"
    data.split_seed = 0  # draws the labelled images of a share or number; not 0: no published list
    # Share of the labelled images, at least 8 and at most a quarter, that method.calibrate withholds
    data.calibration_share = 0.05
    data.unlabelled = ""  # file of ids; empty: every training image that is not labelled
    # NAME=FOLDER, …: further images for streams of a method (docs/methods.md)
    data.extra_sources = ""
    # Share of the labelled crops that are drawn to show rare classes (docs/own_data.md); 0: all uniformly
    data.rare_class_share = 0.0
    data.crop = 512
    data.resize = "ratio"  # ratio or long_side (docs/semivl.md 6)
    data.ratio_long = 2048  # resize = ratio: the image is first fitted into long × short, …
    data.ratio_short = 512
    data.scale_min = 0.5  # … times a factor drawn from [scale_min, scale_max]
    data.scale_max = 2.0
    data.workers = 2  # processes that decode and crop; 0: threads of the main process
    data.prefetch = 2  # batches kept ready on the devices
    return data


def _model() -> ConfigDict:
    model = ConfigDict()
    # clip_vit (CLIP's image tower as a dense encoder), prompted_clip_vit (the frozen tower with trained
    # prompts), resnet50 or resnet101 (stem of three convolutions, last stage dilated; the decoder gets its
    # first and last stage), imagenet_vit (timm's ViT-B/16), augreg_b16 or siglip_b16 (big_vision's
    # ViT-B/16), dinov2_vits14 or dinov2_vitb14, dinov3_vits16, dinov3_vits16plus, dinov3_vitb16 or
    # dinov3_vitl16, efficientnet_lite0, timm_efficientnet_lite0, mobilenet_v2 or resnet18 (light;
    # docs/models.md)
    model.backbone = "clip_vit"
    # sizes of CLIP's towers: see semivl_jax/weights/towers.py; `tiny`: of any vision transformer
    model.tower = "clip_vit_b16"
    # weights of CLIP or SigLIP 2 (.safetensors), `demo` for the small tower of the demo
    model.weights = ""
    # initial weights beside CLIP's; --mode=evaluate scores them where there is no run. Files of
    # python -m semivl_jax.convert (docs/checkpoints.md)
    model.checkpoint = ""  # a whole segmenter, or the serving/ folder of another run
    # an image encoder for a backbone that is not CLIP's; empty: it starts untrained
    model.backbone_weights = ""
    model.conv_encoder_weights = ""  # ImageNet weights of the convolutional encoder
    model.init = "clip"  # or random: the tower starts untrained (guidance still needs weights)
    # blocks whose features the decoder gets; the depth = the dense embedding
    model.out_indices = (0, 4, 12)
    model.finetune = "spatial"  # spatial (attention and positions), all, prompts, or none
    # side of the frozen tower's position table in patches; 0: that of the crop
    model.guidance_grid = 0
    model.conv_encoder = "none"  # none or resnet101_v1c
    # batch norms of the encoders use and keep their running statistics in training; for small batches
    model.frozen_batch_norm = False
    model.renormalize = False  # feed the towers with CLIP's image statistics instead of ImageNet's
    # vlg (language-guided), deeplab, atm (attention to classes, of ZegCLIP) or dpt (of UniMatch V2)
    model.decoder = "vlg"
    # What vlg compares pixels with: text (the backbone's dense embedding with class texts), queries (its
    # last map with a trained vector per class), clip (the dense embedding of a frozen CLIP beside a DINO,
    # whose maps are the skips) or both (two students, CLIP with text and DINO with queries; method co2s)
    model.similarity = "text"
    # similarity = both: maps of CLIP's tower; out_indices are those of DINO
    model.clip_out_indices = (0, 4, 12)
    model.output = "mean"  # similarity = both: mean of the two probabilities, clip or dino
    # What of a transformer's blocks is rematerialised in the backward pass: none (only the cheap maps
    # inside), dots (all but products with weights) or blocks (everything). Results are the same
    model.remat = "none"
    model.guidance_dtype = "float32"  # of the frozen tower's stored weights; bfloat16 halves them
    return model


def _vlg_decoder() -> ConfigDict:
    decoder = ConfigDict()
    decoder.channels = 128
    decoder.text_channels = 128
    decoder.up_channels = (64, 32)
    decoder.skip_channels = (32, 16)  # deepest skip first
    decoder.num_layers = 2  # semantic layers
    decoder.num_heads = 4
    decoder.mlp_dim = 512
    decoder.pool_size = (4, 4)  # patches that share one semantic token
    decoder.kernel_size = 7  # of the convolution over the similarity map
    decoder.dilations = (1, 6, 12, 18)
    decoder.remat = "none"  # or blocks: the backward pass recomputes every part from its input
    return decoder


def _deeplab_decoder() -> ConfigDict:
    decoder = ConfigDict()
    decoder.channels = 256
    decoder.low_channels = 48
    decoder.aspp_channels = 0  # 0: an eighth of the channels of the encoder's last map
    decoder.dilations = (1, 6, 12, 18)
    decoder.joint_norm = False  # one batch norm for all branches, as in CPS and MGD
    return decoder


def _text() -> ConfigDict:
    text = ConfigDict()
    # what describes a class: name, concept or concept_average (docs/semivl.md 2)
    text.decoder = "name"
    text.guidance = "concept"
    text.cache = utils.TEXT_CACHE  # folder of embeddings; empty: computed every time
    return text


def _guidance() -> ConfigDict:
    guidance = ConfigDict()
    # value (the value path), or svc: calibrated by correlations of tokens, as in ExCEL (docs/methods.md)
    guidance.dense = "value"
    # cosine, or surgery: channels normalised over the image, what texts share removed
    guidance.scores = "cosine"
    # affinity: labels follow CLIP's attention; par: they follow the colours of the pixels
    guidance.refine = "none"
    # Sentences that enrich the texts of guidance: a JSON file {"class": ["sentence", …]}, or "definitions";
    # empty: none
    guidance.sentences = ""
    guidance.clusters = 112  # of the sentences
    return guidance


def _optim() -> ConfigDict:
    optim = ConfigDict()
    optim.name = "adamw"  # or sgd
    optim.lr = 1e-4
    optim.lr_scaling = "none"  # or linear: lr is multiplied with batch / published_batch
    optim.published_batch = 8  # labelled images per step with which lr was published
    optim.weight_decay = 0.01
    optim.power = 0.9  # of the polynomial decay
    optim.warmup_steps = 0
    optim.backbone_lr = 0.01  # times optim.lr
    optim.conv_encoder_lr = 1.0
    optim.decoder_lr = 10.0
    return optim


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.mode = "zegclip_sliding_window"
    evaluation.stride = 426.0  # below 1: share of the crop
    evaluation.short_side = 512  # resize before; 0: as it is
    evaluation.window_batch = 8  # windows per forward pass
    evaluation.every_epochs = 1  # after epoch 0, n, 2n, … and at the end
    evaluation.every_steps = 0  # if set, counts instead of epochs
    # validation images drawn at every evaluation, and as many of the worst ones
    evaluation.pictures = 8
    # unlabelled training images, those with masks first, whose pseudo-labels and guidance are counted and,
    # where there is a mask, scored at every evaluation; training never reads these masks. 0: none
    evaluation.pseudo_label_eval_images = 32
    return evaluation
