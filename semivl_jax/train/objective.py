"""What a step minimises: the targets of every view, the criteria, and their weighted sum.

Enter: logits of the student, views, and labels of the teacher and the frozen CLIP. Leave: a float32 scalar
and its parts by name. Source: METHOD 4.6 and 4.7. A batch may come in parts (`accumulation`): then the
criteria are given what they must know of the whole batch, and the sums over the parts are those of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int32

from semivl_jax.train import losses, mask_losses, pseudo
from semivl_jax.train.forward import StudentLogits
from semivl_jax.train.recipe import Recipe
from semivl_jax.types import PseudoLabels, Views

Metrics = dict[str, Array]


@struct.dataclass
class Targets:
    """What the student must agree with; None where a part is switched off or not known yet.

    Of a batch, or of all parts of one along a first axis (as `ViewTarget`).
    """

    w: PseudoLabels | None = None
    partner: PseudoLabels | None = None
    guidance_w: Int32[Array, "*parts b h w"] | None = None
    guidance_partner: Int32[Array, "*parts b h w"] | None = None


@struct.dataclass
class ViewTarget:
    """What one view must agree with; `guidance` is None without the frozen CLIP."""

    pseudo: PseudoLabels
    ignore: Bool[Array, "*parts b h w"]
    guidance: Int32[Array, "*parts b h w"] | None


def total_loss(
    recipe: Recipe, logits: StudentLogits, targets: Targets, views: Views, step: Int32[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """The optimised sum and its parts by name (METHOD 4.6 and 4.7)."""
    targets, by_view = student_targets(recipe, logits, targets, views)
    terms = terms_of(recipe, logits, views, by_view, whole={})
    total = weighted_sum(recipe, terms, step)
    return total, {"loss": total, **terms, **shares(recipe, targets, views, step)}


def terms_of(
    recipe: Recipe,
    logits: StudentLogits,
    views: Views,
    by_view: Mapping[str, ViewTarget],
    *,
    whole: Mapping[str, Mapping[str, Array]],
) -> Metrics:
    """The criteria by name; `whole` has their further arguments where the images are a part of a batch."""
    terms = {"loss_x": _supervised_loss(recipe, logits.x, views, **whole.get("loss_x", {}))}
    for name, target in by_view.items():
        terms |= _view_losses(recipe, name, getattr(logits, name), target, whole)
    return terms


def whole_batch(
    recipe: Recipe, views: Views, by_view: Mapping[str, ViewTarget]
) -> dict[str, dict[str, Array]]:
    """What the criteria of parts must know of the batch, by name; without OHEM no prediction is needed."""
    masks = recipe.criterion == "focal_dice"
    known = {
        "loss_x": {"masks": mask_losses.shown_classes(views.y)}
        if masks
        else {"count": losses.labelled_pixels(views.y)}
    }
    for name, target in by_view.items():
        pseudo_labels = target.pseudo
        if masks:
            known[f"loss_{name}"] = {
                "masks": mask_losses.shown_classes(pseudo_labels.label),
                "scale": _confident_share(recipe, pseudo_labels, target.ignore),
            }
        else:
            known[f"loss_{name}"] = {
                "count": losses.valid_pixels(target.ignore),
                "confidence_sum": losses.confidence_sums(pseudo_labels.confidence, target.ignore),
            }
        if recipe.guidance:
            count = losses.guidance_pixels(
                target.guidance, target.ignore, reduction=recipe.guidance_reduction
            )
            known[f"guidance_{name}"] = {"count": count}
    return known


def weighted_sum(
    recipe: Recipe, terms: Mapping[str, Array], step: Int32[Array, ""]
) -> Float[Array, ""]:
    """The total of METHOD 4.7: labelled images and views half each, and guidance by its weight."""
    if not recipe.semi_supervised:
        return terms["loss_x"]
    total = (terms["loss_x"] + _weighted(recipe, terms, "loss_")) / 2.0
    if recipe.guidance:
        total += _guidance_weight(recipe, step) * _weighted(recipe, terms, "guidance_")
    return total


def _guidance_weight(recipe: Recipe, step: Int32[Array, ""]) -> Float[Array, ""]:
    progress = step.astype(jnp.float32) / recipe.total_steps
    return recipe.guidance_start + (recipe.guidance_end - recipe.guidance_start) * progress


def shares(recipe: Recipe, targets: Targets, views: Views, step: Int32[Array, ""]) -> Metrics:
    """Metrics of the targets alone."""
    if not recipe.semi_supervised:
        return {}
    found = {"confident": _confident_share(recipe, targets.w, views.unlabelled.ignore)}
    if recipe.guidance:
        found["guidance_weight"] = _guidance_weight(recipe, step)
        found["guidance_share"] = _labelled_share(targets, views)
    return found


def _supervised_loss(
    recipe: Recipe, logits: Array, views: Views, **whole: Array
) -> Float[Array, ""]:
    if recipe.criterion == "ohem":
        return losses.ohem(
            logits, views.y, threshold=recipe.ohem_threshold, min_kept=recipe.ohem_min_kept
        )
    if recipe.criterion == "focal_dice":
        return mask_losses.mask_loss(logits, views.y, **whole).total
    return losses.supervised(logits, views.y, **whole)


def _view_losses(
    recipe: Recipe,
    name: str,
    logits: Array,
    target: ViewTarget,
    whole: Mapping[str, Mapping[str, Array]],
) -> Metrics:
    """Loss with the pseudo-labels of a view and, where there is guidance, with its labels."""
    by_pseudo, by_guidance = f"loss_{name}", f"guidance_{name}"
    labels = [target.guidance] if recipe.guidance else []
    further = whole.get(by_pseudo, {})
    if recipe.criterion == "focal_dice":
        further = further or {"scale": _confident_share(recipe, target.pseudo, target.ignore)}
        consistency = mask_losses.mask_loss(logits, target.pseudo.label, **further).total
        maps = losses.cross_entropies(logits, *labels) if labels else []
    else:
        first, *maps = losses.cross_entropies(logits, target.pseudo.label, *labels)
        consistency = losses.consistency(
            first, target.pseudo.confidence, target.ignore,
            mode=recipe.confidence_mode, threshold=recipe.confidence_threshold, **further,
        )  # fmt: skip
    terms = {by_pseudo: consistency}
    if maps:
        terms[by_guidance] = losses.guidance(
            maps[0], target.guidance, target.ignore,
            reduction=recipe.guidance_reduction, **whole.get(by_guidance, {}),
        )  # fmt: skip
    return terms


def _confident_share(
    recipe: Recipe, labels: PseudoLabels, ignore: Bool[Array, "b h w"]
) -> Float[Array, ""]:
    return losses.confident_share(labels.confidence, ignore, threshold=recipe.confidence_threshold)


def _weighted(recipe: Recipe, parts: Mapping[str, Array], prefix: str) -> Float[Array, ""]:
    return sum(weight * parts[prefix + name] for name, weight in recipe.view_weights.items())


def _labelled_share(targets: Targets, views: Views) -> Float[Array, ""]:
    valid = ~views.unlabelled.ignore
    labelled = (targets.guidance_w != 255) & valid
    return labelled.sum() / jnp.maximum(valid.sum(), 1)


def student_targets(
    recipe: Recipe, logits: StudentLogits | None, targets: Targets, views: Views
) -> tuple[Targets, dict[str, ViewTarget]]:
    """Targets with all labels known, and those by view: mixed by CutMix for s1 and s2, plain for fp.

    Logits are only read where the student teaches itself and its label of w is not known yet.
    """
    if not recipe.semi_supervised:
        return targets, {}
    w = targets.w
    if w is None:
        w = pseudo.pseudo_labels(logits.w, size=views.y.shape[1:])
    partner = targets.partner
    if partner is None:
        partner = jax.tree.map(lambda leaf: leaf[::-1], w)
    ignore = views.unlabelled.ignore
    ignore_partner = ignore[::-1] if views.partner is None else views.partner.ignore
    here = ViewTarget(w, ignore, targets.guidance_w)
    there = ViewTarget(partner, ignore_partner, targets.guidance_partner)

    def mixed(box: Array) -> ViewTarget:
        return jax.tree.map(lambda one, other: pseudo.mix(box, one, other), here, there)

    boxes = {"s1": views.box1, "s2": views.box2}
    by_view = {name: mixed(boxes[name]) if name in boxes else here for name in recipe.view_weights}
    return targets.replace(w=w), by_view
