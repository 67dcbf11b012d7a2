"""Every key once, with what it means. Other files import this one and change fields.

On the command line `--config.optim.lr=1e-4` changes a field of whatever file is named; a key that does not
stand here is refused. Lengths are in steps, sizes in pixels, rates between 0 and 1 unless said otherwise.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """SemiVL with CLIP ViT-B/16 as published for Pascal VOC, taught by an EMA teacher."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 0  # length of training; 0: `epochs` decides
    config.epochs = 80.0  # passes over the unlabelled images
    # Images that count as one epoch; 0: the unlabelled ones (labelled, where only they are used)
    config.epoch_images = 0
    config.batch = 8  # labelled images per step = unlabelled images per step, over all devices
    # Parts of the batch that are computed one after another, their gradients added up: less memory, the
    # same step (docs/scaling.md)
    config.accumulation = 1
    # Devices along each axis; data = -1: all that the others leave. fsdp also splits parameters, optimiser
    # and average; classes splits the decoder's maps per class (docs/scaling.md)
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "classes": 1})
    config.dtype = "float32"  # of the computation (or bfloat16); parameters are always float32
    config.max_skipped_steps = 5  # non-finite steps in a row that are skipped before the run stops
    config.log_every = 10
    config.profile = (
        ""  # FIRST:LAST: a trace of these steps goes to profile/ of the working directory
    )
    config.compilation_cache = "~/.cache/semivl_jax/xla"  # empty: compile anew every time
    config.data = _data()
    config.model = _model()
    config.vlg_decoder = _vlg_decoder()
    config.deeplab_decoder = _deeplab_decoder()
    config.atm_decoder = ConfigDict({"num_layers": 3, "num_heads": 8})
    config.dpt_decoder = ConfigDict({"channels": 128, "out_channels": (96, 192, 384, 768)})
    config.text = _text()
    config.method = _method()
    config.optim = _optim()
    config.evaluation = _evaluation()
    config.checkpoint = ConfigDict({"every": 1000, "keep": 2})
    return config


def _data() -> ConfigDict:
    data = ConfigDict()
    # shapes (made by the project), folder (your own images), voc, coco, coco_instances, ade20k,
    # cityscapes (docs/datasets.md)
    data.dataset = "shapes"
    data.directory = "~/.cache/semivl_jax/data"  # prepared data sets lie here
    data.manual_dir = ""  # folder with archives that you downloaded yourself (docs/datasets.md)
    data.folder = ""  # dataset = folder: where images/, masks/ and classes.txt are
    # dataset = folder: mask values to change, such as "11:255,12:3"; "n:255": the value after the last
    data.label_map = ""
    # published list ("92" of voc, "1_512" of coco, …), labelled share 1_k, a number of labelled images,
    # all, or a file of ids
    data.split = "1_8"
    data.split_seed = 0  # draws the labelled images of a share or number; not 0: no published list
    data.unlabelled = ""  # file of ids; empty: every training image that is not labelled
    data.crop = 512
    data.resize = "ratio"  # ratio or long_side (METHOD 6)
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
    # prompts), resnet50 or resnet101 (stem of three convolutions, last stage dilated; the two out_indices are its
    # first and last stage), imagenet_vit (timm's ViT-B/16), augreg_b16 or siglip_b16 (big_vision's ViT-B/16),
    # dinov2_vits14 or dinov2_vitb14
    model.backbone = "clip_vit"
    # sizes of CLIP's towers: see semivl_jax/weights/towers.py; `tiny`: of any vision transformer
    model.tower = "clip_vit_b16"
    model.weights = ""  # CLIP weights (.safetensors), `demo` for the small tower of the demo
    # what a training starts from beside CLIP, and what --mode=evaluate scores where no run is: files of
    # python -m semivl_jax.convert (docs/checkpoints.md)
    model.checkpoint = ""  # a whole segmenter, or the serving/ folder of another run
    # an image encoder for a backbone that is not CLIP's; empty: it starts untrained
    model.backbone_weights = ""
    model.conv_encoder_weights = ""  # ImageNet weights of the convolutional encoder
    model.init = (
        "clip"  # clip, or random: the tower starts untrained (guidance still needs weights)
    )
    model.out_indices = (
        0,
        4,
        12,
    )  # blocks whose features the decoder gets; the depth = the dense embedding
    model.finetune = "spatial"  # spatial (attention and positions), all, prompts, or none
    model.guidance_grid = (
        0  # side of the frozen tower's position table in patches; 0: that of the crop
    )
    model.conv_encoder = "none"  # none or resnet101_v1c
    model.renormalize = False  # feed the towers with CLIP's image statistics instead of ImageNet's
    # vlg (language-guided), deeplab, atm (attention to classes, of ZegCLIP) or dpt (of UniMatch V2)
    model.decoder = "vlg"
    # What the backward pass makes again instead of keeping it, of a transformer's blocks: none (only the
    # cheap maps inside), dots (all but products with weights) or blocks (everything). Results are the same
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
    decoder.remat = "none"  # blocks: of every part only the input is kept for the backward pass
    return decoder


def _deeplab_decoder() -> ConfigDict:
    decoder = ConfigDict()
    decoder.channels = 256
    decoder.low_channels = 48
    decoder.dilations = (1, 6, 12, 18)
    return decoder


def _text() -> ConfigDict:
    text = ConfigDict()
    text.decoder = "name"  # what describes a class: name, concept or concept_average (METHOD 2)
    text.guidance = "concept"
    text.cache = "~/.cache/semivl_jax/text"  # embeddings are kept here; empty: made anew every time
    return text


def _method() -> ConfigDict:
    method = ConfigDict()
    method.semi_supervised = True  # False: labelled images only
    method.teacher = "ema"  # ema, or student: the published training
    method.ema_decay = 0.996
    # Of the average's stored weights. bfloat16 halves them and is rounded at random, because to the nearest
    # value the small steps of an average would all be lost (docs/performance.md)
    method.ema_dtype = "float32"
    method.partner = "batch"  # CutMix partner: batch (reversed), or same_image: the published one
    # cross_entropy, ohem (labelled images only), or focal_dice (ZegCLIP's, for pseudo-labels too: all
    # pixels count, by the share of confident ones, so confidence_mode is not read)
    method.criterion = "cross_entropy"
    method.ohem_threshold = 0.7
    method.ohem_min_kept = 100_000  # pixels of the whole batch
    method.confidence_mode = "pixelwise"  # pixelwise, pixelratio or pixelavg
    method.confidence_threshold = 0.95
    method.strong_views = 2  # strong views of an unlabelled image: 1 (FixMatch) or 2
    # feature (channels of the weak view are dropped, UniMatch), complementary (what one strong view
    # drops the other keeps, UniMatch V2) or none
    method.perturbation = "feature"
    method.perturbation_rate = 0.5  # share of dropped channels, perturbation = feature
    # Passes of the student in which layers drop something by themselves (prompt dropout, stochastic
    # depth): none, first (labelled and weak images) or all
    method.dropout_passes = "none"
    method.guidance = True
    method.guidance_threshold = 0.9
    method.guidance_reduction = "mean_all"  # mean, mean_valid or mean_all
    method.guidance_start = 0.1  # weight of the guidance losses, linear from start to end
    method.guidance_end = 0.0
    return method


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
    evaluation.pictures = (
        8  # validation images drawn at every evaluation; as many of the worst ones
    )
    # unlabelled training images whose masks exist, on which pseudo-labels and guidance are scored at
    # every evaluation; training never sees these masks. 0: none
    evaluation.held_back = 32
    return evaluation
