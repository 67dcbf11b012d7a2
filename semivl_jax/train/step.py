"""One training step: a pure function of (state, batch).

    batch ─▶ views ─▶ targets (teacher, frozen CLIP; no gradients) ─▶ student ─▶ losses ─▶ update ─▶ EMA

Enter: uint8 crops (`types.Batch`); leave: the next `TrainState` and scalar metrics (float32, on the
device). Source: METHOD 4 and 5. Randomness is folded from (seed, purpose, step), so a resumed run draws
what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int32

from semivl_jax.augment import views as views_lib
from semivl_jax.models import guidance as guidance_lib
from semivl_jax.models import normalization
from semivl_jax.train import losses, mask_losses, pseudo, teacher
from semivl_jax.train import noise as noise_lib
from semivl_jax.train.noise import Noise
from semivl_jax.train.recipe import Parts, Recipe
from semivl_jax.train.state import Constants, TrainState
from semivl_jax.train.student import StudentLogits, student_forward
from semivl_jax.types import Batch, Features, Key, PseudoLabels, PyTree, Views

Metrics = dict[str, Array]


@struct.dataclass
class Targets:
    """What the student must agree with; None where a part is switched off or not known yet."""

    w: PseudoLabels | None = None
    partner: PseudoLabels | None = None
    guidance_w: Int32[Array, "b h w"] | None = None
    guidance_partner: Int32[Array, "b h w"] | None = None


def train_step(
    parts: Parts, constants: Constants, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """Draws the views of the batch and updates the state with them."""
    views, noise = draw(parts, state, batch)
    return update(parts, constants, state, views, noise)


def draw(parts: Parts, state: TrainState, batch: Batch) -> tuple[Views, Noise]:
    """The randomness of this step: augmented views, and what the student drops of its features."""
    views_key, noise_key = jax.random.split(_step_key(parts, state))
    views = views_lib.make_views(views_key, batch)
    # Without unlabelled images there are no features to drop channels of.
    image = views.x if views.unlabelled is None else views.unlabelled.w
    features = jax.eval_shape(
        lambda tree, image: _encode(parts, tree, image), state.student(), image
    )
    return views, noise_lib.draw_noise(noise_key, parts.recipe, features)


def _step_key(parts: Parts, state: TrainState, purpose: str = "") -> Key:
    key = jax.random.fold_in(jax.random.key(parts.recipe.seed), state.step)
    return jax.random.fold_in(key, zlib.crc32(purpose.encode())) if purpose else key


def update(
    parts: Parts, constants: Constants, state: TrainState, views: Views, noise: Noise
) -> tuple[TrainState, Metrics]:
    """One update from given views and noise."""
    return apply_outcome(parts, state, differentiate(parts, constants, state, views, noise))


@struct.dataclass
class Outcome:
    """What one step found out: the loss, its gradients (by trained leaf) and what led there."""

    loss: Float[Array, ""]
    gradients: PyTree
    batch_stats: PyTree
    metrics: Metrics
    targets: Targets
    logits: StudentLogits


def differentiate(
    parts: Parts, constants: Constants, state: TrainState, views: Views, noise: Noise
) -> Outcome:
    """Targets, student predictions, loss and its gradient with respect to the trained leaves."""
    targets = make_targets(parts, constants, state, views)

    def objective(trained: PyTree) -> tuple[Array, tuple[Metrics, PyTree, StudentLogits]]:
        logits, stats = student_forward(parts, constants, state, trained, views, noise)
        total, metrics = total_loss(parts.recipe, logits, targets, views, state.step)
        return total, (metrics, stats, logits)

    gradient = jax.value_and_grad(objective, has_aux=True)
    (loss, (metrics, stats, logits)), grads = gradient(state.trained)
    # Whoever does not look at the logits does not pay for them.
    return Outcome(loss, grads, stats, metrics, targets, logits.resized(views.y.shape[1:]))


def apply_outcome(parts: Parts, state: TrainState, outcome: Outcome) -> tuple[TrainState, Metrics]:
    """Optimiser, then the average (METHOD 5).

    A step whose loss or gradient is not finite changes nothing but the two counters.
    """
    norm = optax.tree.norm(outcome.gradients)
    finite = jnp.isfinite(outcome.loss) & jnp.isfinite(norm)
    updates, opt_state = parts.optimizer.update(outcome.gradients, state.opt_state, state.trained)
    trained, stats = optax.apply_updates(state.trained, updates), outcome.batch_stats
    decay = teacher.ema_decay(state.step, ceiling=parts.recipe.ema_decay)
    kept = state.ema is not None
    average = functools.partial(
        teacher.ema_update, decay=decay, key=_step_key(parts, state, "average")
    )
    candidate = state.replace(
        trained=trained,
        batch_stats=stats,
        opt_state=opt_state,
        ema=average(state.ema, trained) if kept else None,
        ema_batch_stats=average(state.ema_batch_stats, stats) if kept else None,
    )
    new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), candidate, state)
    new = new.replace(step=state.step + 1, skipped=jnp.where(finite, 0, state.skipped + 1))
    skipped = new.skipped.astype(jnp.float32)
    rates = _learning_rates(parts, state.step)
    return new, {**outcome.metrics, **rates, "gradient_norm": norm, "skipped": skipped}


def make_targets(parts: Parts, constants: Constants, state: TrainState, views: Views) -> Targets:
    """Pseudo-labels of the teacher and guidance labels of the frozen CLIP.

    The label of w is left None with `teacher="student"`: it then comes from the student's own clean
    training pass (METHOD trap 7). With `partner="batch"` the partner is the reversed batch and no
    second pass is needed.
    """
    if not parts.recipe.semi_supervised:
        return Targets()
    own_partner = views.partner is not None
    label_w = partner = None
    if parts.recipe.teacher == "ema":
        label_w = pseudo_label(parts, constants, state.teacher(), views.unlabelled.w)
    if own_partner:
        partner = pseudo_label(parts, constants, state.teacher(), views.partner.w)
    guidance_w = guidance_partner = None
    if parts.recipe.guidance:
        guidance_w = guidance_label(parts, constants, views.unlabelled.w, views.unlabelled.ignore)
        if own_partner:
            guidance_partner = guidance_label(
                parts, constants, views.partner.w, views.partner.ignore
            )
        else:
            guidance_partner = guidance_w[::-1]
    return jax.lax.stop_gradient(Targets(label_w, partner, guidance_w, guidance_partner))


def total_loss(
    recipe: Recipe, logits: StudentLogits, targets: Targets, views: Views, step: Int32[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """The optimised sum and its parts by name (METHOD 4.6 and 4.7)."""
    loss_x = _supervised_loss(recipe, logits.x, views)
    if not recipe.semi_supervised:
        return loss_x, {"loss": loss_x, "loss_x": loss_x}
    label, view_targets = _student_targets(recipe, logits, targets, views)
    parts: Metrics = {}
    for name, target in view_targets.items():
        pseudo_loss, guidance_loss = _view_losses(recipe, getattr(logits, name), target)
        parts[f"loss_{name}"] = pseudo_loss
        if recipe.guidance:
            parts[f"guidance_{name}"] = guidance_loss
    total = (loss_x + _weighted(recipe, parts, "loss_")) / 2.0
    if recipe.guidance:
        progress = step.astype(jnp.float32) / recipe.total_steps
        weight = recipe.guidance_start + (recipe.guidance_end - recipe.guidance_start) * progress
        total += weight * _weighted(recipe, parts, "guidance_")
        parts |= {"guidance_weight": weight, "guidance_share": _labelled_share(targets, views)}
    confident = losses.confident_share(
        label.confidence, views.unlabelled.ignore, threshold=recipe.confidence_threshold
    )
    return total, {"loss": total, "loss_x": loss_x, **parts, "confident": confident}


def _supervised_loss(recipe: Recipe, logits: Array, views: Views) -> Float[Array, ""]:
    if recipe.criterion == "ohem":
        return losses.ohem(
            logits, views.y, threshold=recipe.ohem_threshold, min_kept=recipe.ohem_min_kept
        )
    if recipe.criterion == "focal_dice":
        return mask_losses.mask_loss(logits, views.y).total
    return losses.supervised(logits, views.y)


def _view_losses(
    recipe: Recipe, logits: Array, target: _Target
) -> tuple[Float[Array, ""], Float[Array, ""] | None]:
    """Loss with the pseudo-labels of a view and, where there is guidance, with its labels."""
    labels = [target.guidance] if recipe.guidance else []
    if recipe.criterion == "focal_dice":
        share = losses.confident_share(
            target.pseudo.confidence, target.ignore, threshold=recipe.confidence_threshold
        )
        consistency = mask_losses.mask_loss(logits, target.pseudo.label, scale=share).total
        maps = losses.cross_entropies(logits, *labels) if labels else []
    else:
        first, *maps = losses.cross_entropies(logits, target.pseudo.label, *labels)
        consistency = losses.consistency_mean(
            first, target.pseudo.confidence, target.ignore,
            mode=recipe.confidence_mode, threshold=recipe.confidence_threshold,
        )  # fmt: skip
    guidance = None
    if maps:
        guidance = losses.guidance_mean(
            maps[0], target.guidance, target.ignore, reduction=recipe.guidance_reduction
        )
    return consistency, guidance


def _learning_rates(parts: Parts, step: Int32[Array, ""]) -> Metrics:
    if parts.schedule is None:
        return {}
    rate = parts.schedule(step)
    return {f"lr_{group.name}": rate * group.lr for group in parts.groups if not group.frozen}


def _weighted(recipe: Recipe, parts: Mapping[str, Array], prefix: str) -> Float[Array, ""]:
    return sum(weight * parts[prefix + name] for name, weight in recipe.view_weights.items())


def _labelled_share(targets: Targets, views: Views) -> Float[Array, ""]:
    valid = ~views.unlabelled.ignore
    labelled = (targets.guidance_w != 255) & valid
    return labelled.sum() / jnp.maximum(valid.sum(), 1)


@struct.dataclass
class _Target:
    """What one view must agree with; `guidance` is None without the frozen CLIP."""

    pseudo: PseudoLabels
    ignore: Bool[Array, "b h w"]
    guidance: Int32[Array, "b h w"] | None


def _student_targets(
    recipe: Recipe, logits: StudentLogits, targets: Targets, views: Views
) -> tuple[PseudoLabels, dict[str, _Target]]:
    """Pseudo-labels of w, and targets by view: mixed by CutMix for s1 and s2, plain for fp."""
    w = targets.w
    if w is None:
        w = pseudo.pseudo_labels(logits.w, size=views.y.shape[1:])
    partner = targets.partner
    if partner is None:
        partner = jax.tree.map(lambda leaf: leaf[::-1], w)
    ignore = views.unlabelled.ignore
    ignore_partner = ignore[::-1] if views.partner is None else views.partner.ignore
    here = _Target(w, ignore, targets.guidance_w)
    there = _Target(partner, ignore_partner, targets.guidance_partner)

    def mixed(box: Array) -> _Target:
        return jax.tree.map(lambda one, other: pseudo.mix(box, one, other), here, there)

    boxes = {"s1": views.box1, "s2": views.box2}
    by_view = {name: mixed(boxes[name]) if name in boxes else here for name in recipe.view_weights}
    return w, by_view


def _encode(parts: Parts, tree: PyTree, image: Array) -> Features:
    return parts.segmenter.apply(tree, image, method="encode")


def pseudo_label(
    parts: Parts, constants: Constants, tree: PyTree, image: Float[Array, "b h w 3"]
) -> PseudoLabels:
    """Labels and confidence that these variables give an image, batch statistics not used."""
    features = _encode(parts, tree, image)
    logits = parts.segmenter.apply(tree, features, constants.text, method="decode_grid")
    return pseudo.pseudo_labels(logits, size=image.shape[1:3])


def guidance_label(
    parts: Parts,
    constants: Constants,
    image: Float[Array, "b h w 3"],
    ignore: Bool[Array, "b h w"],
) -> Int32[Array, "b h w"]:
    """Labels of the frozen CLIP; 255 where it is not sure enough or the pixel is padding."""
    size = image.shape[1:3]
    if parts.segmenter.renormalize:
        image = normalization.renormalize(image)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), constants.guidance_params)
    dense = parts.guidance_tower.apply({"params": params}, image).maps[-1]
    labels = guidance_lib.guidance_labels(
        dense,
        constants.guidance_text,
        size=size,
        threshold=parts.recipe.guidance_threshold,
        ignore=ignore,
    )
    return labels.label
