"""Floating-point operations of a step by formula: what the method needs, whatever the program does.

In: a configuration and its workload. Out: operations (2 per multiply-add) of one global step by part. Counted
are matrix products and convolutions of the CLIP tower and the language-guided decoder; a backward pass costs
the gradient of the activations (as much as the forward pass) and that of the trained weights only.
"""

from __future__ import annotations

from benchmarks.workload import Workload

STUDENT_IMAGES = 4  # x, w, s1, s2; the decoder also gets the perturbed w


def step_flops(work: Workload) -> dict[str, float] | None:
    """Operations by part, None for models that the formulas do not describe."""
    config = work.config
    if config.model.decoder != "vlg" or config.model.conv_encoder != "none":
        return None
    weights, mixing = tower_forward(work)
    decode = decoder_forward(work)
    trained = {"all": 1.0, "none": 0.0, "spatial": _attention_share(work)}[config.model.finetune]
    images = STUDENT_IMAGES if config.method.semi_supervised else 1
    decoded = images + 1 if config.method.semi_supervised else 1
    # The gradient of softmax(QKᵀ)V has two factors to each product.
    backward = weights * (1 + trained) + 2 * mixing if trained else 0.0
    parts = {
        "towers": images * (weights + mixing + backward),
        "decoder": decoded * 3 * decode,
    }
    if config.method.semi_supervised:
        passes = (config.method.teacher == "ema") + (config.method.partner == "same_image")
        parts["teacher"] = passes * (weights + mixing + decode)
    if work.parts.guidance_tower is not None:
        streams = 2 if config.method.partner == "same_image" else 1
        parts["guidance"] = streams * (weights + mixing)
    return {name: config.batch * flops for name, flops in parts.items()}


def tower_forward(work: Workload) -> tuple[float, float]:
    """Of one image: (products with weights, products of tokens with tokens).

    Of the last block only the value path reaches the decoder (METHOD trap 1).
    """
    tower = work.parts.segmenter.backbone
    patches = (-(-work.config.data.crop // tower.patch_size)) ** 2
    tokens, width = patches + 1, tower.width
    block = 4 * width**2 + 2 * width * tower.mlp_dim
    value_path = width**2 + 2 * width * tower.mlp_dim
    out_indices = len({*tower.out_indices, tower.depth - 1} - {tower.depth})
    embed = patches * 3 * tower.patch_size**2 * width + patches * width * tower.out_dim
    last = patches * width**2
    weights = tokens * (tower.depth - 1) * block + last + patches * out_indices * value_path + embed
    return 2.0 * weights, 2.0 * (tower.depth - 1) * 2 * tokens**2 * width


def decoder_forward(work: Workload) -> float:
    """Of one image: the convolutions over the maps of all rows of text, and what is shared by them."""
    d, tower = work.parts.segmenter.decoder, work.parts.segmenter.backbone
    side = -(-work.config.data.crop // tower.patch_size)
    rows, area, grid, c = len(work.constants.text.class_of), side**2, side, d.channels
    branches = sum(1.0 if rate == 1 else _out_indices(side, 3, rate) for rate in d.dilations)
    first = _out_indices(side, d.kernel_size)
    per_class = area * (first * c + branches * c**2 + len(d.dilations) * c**2)
    pooled = area if d.pool_size is None else (side // d.pool_size[0]) * (side // d.pool_size[1])
    both = c + d.text_channels
    layer = 4 * both**2 + 2 * both * d.mlp_dim + 2 * rows * both
    per_class += d.num_layers * pooled * layer
    shared = area * tower.out_dim * rows
    for skip, up in zip(d.skip_channels, d.up_channels, strict=True):
        shared += _out_indices(side, 3) * side**2 * tower.width * skip
        per_class += area * c * 4 * (c - skip)
        area, own, grid = 4 * area, c - skip, 2 * grid
        per_class += _out_indices(grid, 3) * area * (own * up + up * up)
        shared += _out_indices(grid, 3) * area * skip * up
        c = up
    per_class += _out_indices(grid, 3) * area * c
    return 2.0 * (rows * per_class + shared)


def _out_indices(side: int, size: int, dilation: int = 1) -> float:
    """Taps of a square kernel that lie inside a square map, on average over its pixels."""
    offsets = (dilation * abs(i - size // 2) for i in range(size))
    return sum(max(0.0, 1 - offset / side) for offset in offsets) ** 2


def _attention_share(work: Workload) -> float:
    """Share of the attention's weights, which spatial fine-tuning trains, in those of a block."""
    tower = work.parts.segmenter.backbone
    attention = 4 * tower.width**2
    return attention / (attention + 2 * tower.width * tower.mlp_dim)
