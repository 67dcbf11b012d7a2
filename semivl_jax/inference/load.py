"""Loads a model for prediction, with its own classes or with others.

In: the folder of a run or its `serving`, `hf://USER/REPO`, or `clip:WEIGHTS` for the frozen CLIP alone. Out:
a `Model`: a network for windows, its variables, classes, and how images are cut into windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from semivl_jax import utils
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.evaluation.sliding_window import SlidingWindow
from semivl_jax.inference import bundle, hub
from semivl_jax.models import build, clip_guidance
from semivl_jax.models.resize import bilinear
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.text import class_names, class_text
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights import towers
from semivl_jax.weights.tree import check

CLIP = "clip:"
OPEN_VOCABULARY = ("vlg",)
"""Decoders that compare pixels with text embeddings and were not trained for a fixed list of classes."""
_METHOD_WINDOW = 512
_CLIP_SIDE = 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What segments images: `network(variables, windows) -> logits` as an `Evaluator` takes it."""

    info: DatasetInfo
    network: Callable[[PyTree, jax.Array], jax.Array]
    variables: PyTree
    window: SlidingWindow


def open_model(
    source: str | Path,
    *,
    classes: class_names.Classes | None = None,
    definitions: str | None = None,
    cache: str = utils.TEXT_CACHE,
    window: int | None = None,
) -> Model:
    """The model of a source, for its own classes or for others.

    `definitions` is "concept" or "concept_average": concepts describe the classes (docs/semivl.md 2).
    `window` is the side of the windows of `clip:`.

    Raises:
      ValueError: nothing usable there, classes that cannot be read, or a model whose classes are fixed.
    """
    if definitions is not None and definitions not in class_names.MODES:
        raise ValueError(
            f"definitions={definitions!r} is unknown; choose one of {', '.join(class_names.MODES)}"
        )
    if str(source).startswith(CLIP):
        weights = str(source).removeprefix(CLIP)
        return _zero_shot(weights, classes, definitions or "name", cache, window)
    if window is not None:
        raise ValueError(f"a window is for {CLIP}WEIGHTS; {source} has the windows of its training")
    remote = str(source).startswith(hub.PREFIX)
    stored = bundle.load(hub.download(source) if remote else source)
    info, text = _class_text(stored, classes, definitions, cache)
    segmenter = build.segmenter(
        stored.config, num_classes=info.num_classes, clip_sizes=stored.clip_sizes
    )
    check_variables(segmenter, stored, text)
    return Model(
        info=info,
        network=build.window_network(segmenter, text),
        variables=stored.variables,
        window=SlidingWindow.from_config(stored.config, segmenter),
    )


def check_variables(
    segmenter: SegmentationModel, stored: bundle.Bundle, text: ClassText | None
) -> None:
    """ValueError unless the variables are those of the model that the configuration describes."""
    image = jax.ShapeDtypeStruct((1, segmenter.crop, segmenter.crop, 3), np.float32)
    like = jax.eval_shape(segmenter.init, jax.random.key(0), image, text)
    source = f"{stored.folder}/model.safetensors"
    check(stored.variables, {"batch_stats": {}, **like}, source=source)


def _class_text(
    stored: bundle.Bundle, classes: class_names.Classes | None, definitions: str | None, cache: str
) -> tuple[DatasetInfo, ClassText | None]:
    if classes is None and definitions is None:
        return stored.info, stored.text
    model = stored.config.model
    closed = {
        f"model.decoder = {model.decoder!r}": model.decoder not in OPEN_VOCABULARY,
        f"model.similarity = {model.similarity!r}": model.similarity in ("queries", "both"),
    }
    if any(closed.values()):
        reason = next(key for key, holds in closed.items() if holds)
        raise ValueError(
            f"{stored.folder} has {reason}, which knows the classes of its training "
            "and no others; leave out the classes, or train with model.decoder = 'vlg' and "
            "texts"
        )
    if stored.tower is None:
        raise ValueError(
            f"{stored.folder} has no text_tower.safetensors, without which no other classes can be named: an "
            "early version wrote the folder; leave out the classes, or train again"
        )
    info = stored.info
    if classes is not None:
        info = _with_known_definitions(class_names.read_classes(classes), info)
    mode = definitions or stored.config.text.decoder
    return info, class_text.class_text(info, mode=mode, tower=stored.tower, cache=cache)


def _with_known_definitions(requested: DatasetInfo, known: DatasetInfo) -> DatasetInfo:
    """Classes that the run knows keep its definitions, unless they come with their own."""
    before = dict(zip(known.classes, known.definitions, strict=True))
    definitions = tuple(
        before.get(name, concepts) if concepts == (name,) else concepts
        for name, concepts in zip(requested.classes, requested.definitions, strict=True)
    )
    return dataclasses.replace(requested, definitions=definitions)


def _zero_shot(
    weights: str, classes: class_names.Classes | None, mode: str, cache: str, window: int | None
) -> Model:
    """The frozen CLIP or SigLIP: every pixel takes the closest text's class (docs/semivl.md 2 and 4.3)."""
    if classes is None:
        raise ValueError(f"{CLIP}{weights} knows no classes of its own; name some with --classes")
    clip = towers.load(weights, "clip_vit_b16")
    info = class_names.read_classes(classes)
    text = class_text.class_text(info, mode=mode, tower=class_text.TextTower.of(clip), cache=cache)
    patch = clip.image["patch_size"]
    trained_at = clip.grid[0] * patch
    # The method runs a CLIP trained at 224 pixels on windows of 512; others on the size of their training.
    side = window or (_METHOD_WINDOW if trained_at == _CLIP_SIDE else trained_at)
    if side < patch:
        raise ValueError(
            f"a window of {side} pixels is smaller than a patch; choose {patch} or more"
        )
    tower = towers.image_tower(clip.image, (side // patch,) * 2)

    def network(variables: PyTree, images: jax.Array) -> jax.Array:
        scores = clip_guidance.class_scores(tower.apply(variables, images).maps[-1], text)
        return text.logit_scale * bilinear(scores, (side, side), align_corners=False)

    return Model(
        info=info,
        network=network,
        variables={"params": towers.resized(clip, tower.grid)},
        window=SlidingWindow(
            mode="zegclip_sliding_window",
            crop=side,
            stride=max(1, side * 5 // 6),
            short_side=side,
            patch_size=patch,
            least_side=patch,
        ),
    )
