"""Where a model for prediction comes from, and the words that it is asked about.

In: the folder of a run or its `serving`, `hf://USER/REPO`, or `clip:WEIGHTS` for the frozen CLIP alone. Out:
a `Model`: a network for windows, its variables, classes, and how windows slide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.inference import bundle, hub
from semivl_jax.models import build, clip_guidance, vit
from semivl_jax.models.resize import bilinear
from semivl_jax.models.segmenter import SegmentationModel
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.text import class_text, embeddings
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights import towers
from semivl_jax.weights.tree import check

CLIP = "clip:"
OPEN_VOCABULARY = ("vlg",)
"""Decoders that compare pixels with words and so take any classes."""
_METHOD_WINDOW = 512
_CLIP_SIDE = 224
_RESIDUAL_STRIDE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What segments windows.

    `network(variables, images [w, h, w', 3] normalised) -> logits [w, crop, crop, n]`, or with `via_square`
    off [w, h, w', n]; `padding_patch` as of `SegmentationModel`; `short_side` = 0 leaves images as
    they are; `least_side` is the smallest side that the network can take.
    """

    name: str
    info: DatasetInfo
    network: Callable[[PyTree, jax.Array], jax.Array]
    variables: PyTree
    crop: int
    padding_patch: int | None
    via_square: bool = True
    least_side: int
    mode: str
    stride: float
    short_side: int
    window_batch: int


def open_model(
    source: str | Path,
    *,
    classes: class_text.Classes | None = None,
    definitions: str | None = None,
    cache: str = class_text.CACHE,
    window: int | None = None,
) -> Model:
    """The model of a source, asked about its own classes or about others.

    `definitions` is "concept" or "concept_average": classes are described by their concepts (METHOD 2).
    `window` is the side of the windows of `clip:`.

    Raises:
      ValueError: nothing usable there, classes that cannot be read, or a model whose classes are fixed.
    """
    if definitions is not None and definitions not in embeddings.MODES:
        raise ValueError(
            f"definitions={definitions!r} is unknown; choose one of {', '.join(embeddings.MODES)}"
        )
    if str(source).startswith(CLIP):
        weights = str(source).removeprefix(CLIP)
        return _zero_shot(weights, classes, definitions or "name", cache, window)
    if window is not None:
        raise ValueError(f"a window is for {CLIP}WEIGHTS; {source} has the windows of its training")
    served = bundle.load(hub.download(source) if hub.is_address(source) else source)
    info, text = _text(served, classes, definitions, cache)
    return _trained(served, info, text)


def _trained(served: bundle.Served, info: DatasetInfo, text: ClassText | None) -> Model:
    config, settings = served.config, served.config.evaluation
    segmenter = build.segmenter(config, num_classes=info.num_classes, clip_sizes=served.clip_sizes)
    check_variables(segmenter, served, text)
    return Model(
        name=str(served.folder),
        info=info,
        network=build.window_network(segmenter, text),
        variables=served.variables,
        crop=config.data.crop,
        padding_patch=segmenter.padding_patch,
        via_square=segmenter.via_square,
        least_side=least_side(segmenter),
        mode=settings.mode,
        stride=settings.stride,
        short_side=settings.short_side,
        window_batch=settings.window_batch,
    )


def check_variables(
    segmenter: SegmentationModel, served: bundle.Served, text: ClassText | None
) -> None:
    """Whether the variables are those of the model that the configuration describes; ValueError if not."""
    image = jax.ShapeDtypeStruct((1, segmenter.crop, segmenter.crop, 3), np.float32)
    like = jax.eval_shape(segmenter.init, jax.random.key(0), image, text)
    source = f"{served.folder}/model.safetensors"
    check(served.variables, {"batch_stats": {}, **like}, source=source)


def least_side(segmenter: SegmentationModel) -> int:
    """Pixels that a window needs: a patch, or as many as the decoder pools together (METHOD trap 4)."""
    patch = getattr(segmenter.backbone, "patch_size", _RESIDUAL_STRIDE)
    return patch * max(getattr(segmenter.decoder, "pool_size", None) or (1,))


def _text(
    served: bundle.Served, classes: class_text.Classes | None, definitions: str | None, cache: str
) -> tuple[DatasetInfo, ClassText | None]:
    if classes is None and definitions is None:
        return served.info, served.text
    decoder = served.config.model.decoder
    if decoder not in OPEN_VOCABULARY:
        raise ValueError(
            f"{served.folder} has model.decoder = {decoder!r}, which knows the classes of its training "
            "and no others; leave the classes away, or train with model.decoder = 'vlg'"
        )
    if served.tower is None:
        raise ValueError(
            f"{served.folder} has no text_tower.safetensors, without which no other classes can be named: an "
            "early version wrote the folder; leave the classes away, or train again"
        )
    info = (
        served.info
        if classes is None
        else _described(class_text.read_classes(classes), served.info)
    )
    mode = definitions or served.config.text.decoder
    return info, class_text.class_text(info, mode=mode, tower=served.tower, cache=cache)


def _described(asked: DatasetInfo, known: DatasetInfo) -> DatasetInfo:
    """Classes that the run knows keep its definitions, unless they come with their own."""
    before = dict(zip(known.classes, known.definitions, strict=True))
    definitions = tuple(
        before.get(name, concepts) if concepts == (name,) else concepts
        for name, concepts in zip(asked.classes, asked.definitions, strict=True)
    )
    return dataclasses.replace(asked, definitions=definitions)


def _zero_shot(
    weights: str, classes: class_text.Classes | None, mode: str, cache: str, window: int | None
) -> Model:
    """The frozen CLIP: every pixel takes the class whose words it is closest to (METHOD 2 and 4.3)."""
    if classes is None:
        raise ValueError(f"{CLIP}{weights} knows no classes of its own; name some with --classes")
    clip = towers.load(weights, "clip_vit_b16")
    info = class_text.read_classes(classes)
    text = class_text.class_text(info, mode=mode, tower=class_text.TextTower.of(clip), cache=cache)
    patch = clip.image["patch_size"]
    trained_at = clip.grid[0] * patch
    # The method shows a CLIP of 224 pixels windows of 512; others see what they were trained on.
    side = window or (_METHOD_WINDOW if trained_at == _CLIP_SIDE else trained_at)
    if side < patch:
        raise ValueError(
            f"a window of {side} pixels is smaller than a patch; choose {patch} or more"
        )
    tower = VisionTransformer(
        **vit.CLIP, **clip.image, grid=(side // patch,) * 2, out_indices=(clip.image["depth"],)
    )

    def network(variables: PyTree, images: jax.Array) -> jax.Array:
        scores = clip_guidance.class_scores(tower.apply(variables, images).maps[-1], text)
        return clip_guidance.TEMPERATURE * bilinear(scores, (side, side), align_corners=False)

    return Model(
        name=f"{CLIP}{weights}",
        info=info,
        network=network,
        variables={"params": towers.resized(clip, tower.grid)},
        crop=side,
        padding_patch=patch,
        least_side=patch,
        mode="zegclip_sliding_window",
        stride=max(1, side * 5 // 6),
        short_side=side,
        window_batch=8,
    )
