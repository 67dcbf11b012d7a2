"""How many pixels of the labelled images the frozen CLIP labels, and how many of these labels are right.

In: an experiment whose method is guided, and its data. Out: a table with a row for each variant of
`guidance.dense` and `guidance.scores`; the other options are those of the run. `guidance.json` of the
workdir holds it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from jaxtyping import Bool, Float, Int64

from semivl_jax import utils
from semivl_jax.data import images as images_lib
from semivl_jax.experiment.data import Data
from semivl_jax.experiment.experiment import Experiment
from semivl_jax.experiment.pseudo_label_quality import crop_with_mask
from semivl_jax.models import clip_guidance, image_normalization
from semivl_jax.models.clip_guidance import Guidance
from semivl_jax.train import distributed
from semivl_jax.types import IGNORE_INDEX

FILE = "guidance.json"
IMAGES = 100
"""Most labelled images that are measured."""
THRESHOLDS = (*np.linspace(0, 0.99, 100).round(2).tolist(), 0.995, 0.999, 0.9995, 0.9999)

Table = dict[str, Any]
Counts = Int64[np.ndarray, "3 t"]


def measure(experiment: Experiment, data: Data) -> Table:
    """The table, from one crop of every labelled image at its own size.

    {"images", "threshold": that of the run, "variants": [{"dense", "scores", "own": whether it is the run's,
    "labelled" and "right": percent at that threshold, "chosen"}]}. "chosen" is the lowest threshold at which
    a variant is as right as the run's own one is at that threshold, and its percentages; None if there is
    none.
    """
    own = experiment.modules.guidance_model
    threshold = float(experiment.config.method.guidance_threshold)
    thresholds = sorted({*THRESHOLDS, threshold})
    labelled = data.split.labelled
    images = min(IMAGES, len(labelled))
    chosen = [labelled[i * len(labelled) // images] for i in range(images)]
    choices = itertools.product(get_args(clip_guidance.Dense), get_args(clip_guidance.Scores))
    variants = [dataclasses.replace(own, dense=dense, scores=scores) for dense, scores in choices]
    counts = {
        variant: _counts(experiment, data, chosen, variant, thresholds) for variant in variants
    }
    at = thresholds.index(threshold)
    rows = [
        {
            "dense": variant.dense,
            "scores": variant.scores,
            "own": variant == own,
            **row(found, thresholds, at=at, of=counts[own]),
        }
        for variant, found in counts.items()
    ]
    return {"images": images, "threshold": threshold, "variants": rows}


def row(counts: Counts, thresholds: Sequence[float], *, at: int, of: Counts) -> dict[str, Any]:
    """Numbers of a variant at the threshold with the index `at`; `of` are the counts of the run's own."""
    labelled, right = 100 * counts[1] / np.maximum(counts[2], 1), _right(counts)
    chosen = None
    enough = np.flatnonzero(right >= _right(of)[at])  # NaN where there is no label
    if enough.size:
        first = int(enough[0])
        chosen = {
            "threshold": thresholds[first],
            "labelled": float(labelled[first]),
            "right": float(right[first]),
        }
    known = None if np.isnan(right[at]) else float(right[at])
    return {"labelled": float(labelled[at]), "right": known, "chosen": chosen}


def count(
    confidence: Float[np.ndarray, " p"], right: Bool[np.ndarray, " p"], thresholds: Sequence[float]
) -> Counts:
    """Pixels by threshold: labels that are right, all labels, all pixels.

    A label counts at every threshold up to its confidence.
    """
    place = np.searchsorted(np.asarray(thresholds, np.float32), confidence, side="right")
    lines = [
        np.bincount(of, minlength=len(thresholds) + 1)[::-1].cumsum()[::-1][1:]
        for of in (place[right], place)
    ]
    return np.stack([*lines, np.full(len(thresholds), confidence.size)]).astype(np.int64)


def write(workdir: Path, table: Table) -> None:
    """Writes the table to the workdir."""
    utils.write_text(workdir / FILE, json.dumps(table, indent=1) + "\n")


def as_text(table: Table) -> str:
    """The table for the terminal."""
    lines = [
        f"guidance on {table['images']} labelled images, percent; the last three columns: at the threshold "
        "with which a variant",
        "is as right as the run's own one (*)",
        "   dense   scores   labelled  right   threshold labelled  right",
    ]
    for variant in table["variants"]:
        chosen, right, own = variant["chosen"], variant["right"], "*" if variant["own"] else " "
        line = f"{variant['dense']:>8}{variant['scores']:>9}{own} {variant['labelled']:>9.1f}"
        line += f"{right:>7.1f}" if right is not None else f"{'–':>7}"
        if chosen:
            line += f"  {chosen['threshold']:>10g}{chosen['labelled']:>9.1f}{chosen['right']:>7.1f}"
        lines.append(line if chosen else f"{line}  {'–':>10}")
    return "\n".join(lines)


def _counts(
    experiment: Experiment,
    data: Data,
    chosen: Sequence[int],
    variant: Guidance,
    thresholds: Sequence[float],
) -> Counts:
    """`count` over the pixels of all images whose class is known."""
    side, frozen = experiment.crop, experiment.local_frozen
    label = jax.jit(functools.partial(_label, variant, experiment.modules.model.renormalize))
    counts = np.zeros((3, len(thresholds)), np.int64)
    for index in chosen[jax.process_index() :: jax.process_count()]:
        image, truth = crop_with_mask(data.train[index], index, side=side)
        rows, columns = truth.shape
        canvas = images_lib.padded(image, None, crop=side).image[None]
        made = jax.device_get(label(frozen.guidance_params, frozen.guidance_text, canvas))
        known = truth != IGNORE_INDEX
        right = made.label[0, :rows, :columns][known] == truth[known]
        counts += count(made.confidence[0, :rows, :columns][known], right, thresholds)
    return distributed.all_sum(counts)


def _label(
    variant: Guidance, renormalize: bool, params: Any, text: Any, image: jax.Array
) -> clip_guidance.PseudoLabels:
    image = image_normalization.normalize(image)
    if renormalize:
        image = image_normalization.renormalize(image)
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    return variant.labels(params, text, image, threshold=0.0)


def _right(counts: Counts) -> np.ndarray:
    """Percent of the labels that are right; NaN where there is no label."""
    return 100 * counts[0] / np.where(counts[1] > 0, counts[1], np.nan)
