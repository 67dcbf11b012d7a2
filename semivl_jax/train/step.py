"""One training step: a pure function of (state, batch), in two halves that can be compiled apart.

    find_outcome    batch ─▶ views ─▶ targets (teacher, frozen CLIP) ─▶ student ─▶ losses ─▶ gradients
    apply_outcome   gradients ─▶ update ─▶ EMA

Enter: uint8 crops (`types.Batch`); leave: the next `TrainState` and scalar metrics (float32, on the
device). Source: METHOD 4 and 5. Randomness is folded from (seed, purpose, step), so a resumed run draws
what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import functools
import zlib

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32

from semivl_jax.models import clip_guidance as guidance_lib
from semivl_jax.models import normalization
from semivl_jax.models import segmenter as segmenter_lib
from semivl_jax.train import accumulation, ema, objective, pseudo, sharding
from semivl_jax.train import noise as noise_lib
from semivl_jax.train.augment import views as views_lib
from semivl_jax.train.forward import StudentLogits, student_forward
from semivl_jax.train.noise import Noise
from semivl_jax.train.objective import Metrics, Targets
from semivl_jax.train.outcome import Outcome
from semivl_jax.train.recipe import Parts
from semivl_jax.train.state import Constants, TrainState
from semivl_jax.types import Batch, Features, Key, PseudoLabels, PyTree, Views


def train_step(
    parts: Parts, constants: Constants, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """The state after the update that a batch leads to."""
    return apply_outcome(parts, state, find_outcome(parts, constants, state, batch))


def find_outcome(parts: Parts, constants: Constants, state: TrainState, batch: Batch) -> Outcome:
    """Draws the views of the batch and finds what the update needs of them; logits are not kept.

    Where parameters rest split over devices, whole ones are computed with; the gradients come split.
    """
    views, noise = draw(parts, state, batch)
    whole = state.replace(
        trained=sharding.together(state.trained),
        frozen=sharding.together(state.frozen),
        ema=sharding.together(state.ema),
    )
    find = differentiate if parts.recipe.accumulation == 1 else accumulate
    outcome = find(parts, sharding.together(constants), whole, views, noise)
    return outcome.replace(logits=None)


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


def differentiate(
    parts: Parts, constants: Constants, state: TrainState, views: Views, noise: Noise
) -> Outcome:
    """Targets, student predictions, loss and its gradient with respect to the trained leaves."""
    targets = make_targets(parts, constants, state, views)

    def loss_of(trained: PyTree) -> tuple[Array, tuple[Metrics, PyTree, StudentLogits]]:
        logits, stats = student_forward(parts, constants, state, trained, views, noise)
        total, metrics = objective.total_loss(parts.recipe, logits, targets, views, state.step)
        return total, (metrics, stats, logits)

    gradient = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (metrics, stats, logits)), grads = gradient(state.trained)
    # Whoever does not look at the logits does not pay for them.
    logits = logits.resized(views.y.shape[1:])
    return Outcome(loss, sharding.apart(grads), stats, metrics, logits)


def accumulate(
    parts: Parts, constants: Constants, state: TrainState, views: Views, noise: Noise
) -> Outcome:
    """What `differentiate` finds, with the images in parts one after another.

    First the targets of all parts, because the partner of an image may lie in another part and because
    losses divide by counts of the whole batch; then the gradients, added up. For models without batch
    statistics and dropout only the order of additions differs.
    """
    recipe, count = parts.recipe, parts.recipe.accumulation

    def targets_of(part: Views) -> Targets:
        found = make_targets(parts, constants, state, part)
        if found.w is None and recipe.semi_supervised:  # the student teaches itself
            label = pseudo_label(parts, constants, state.student(), part.unlabelled.w)
            found = found.replace(w=label)
        return found

    targets = accumulation.join(jax.lax.map(targets_of, accumulation.split(views, count)))
    if recipe.semi_supervised and views.partner is None:
        guidance = None if targets.guidance_w is None else targets.guidance_w[::-1]
        partner = jax.tree.map(lambda leaf: leaf[::-1], (views.unlabelled, targets.w))
        views = views.replace(partner=partner[0])
        targets = targets.replace(partner=partner[1], guidance_partner=guidance)
    targets, by_view = objective.student_targets(recipe, None, targets, views)
    whole = objective.whole_batch(recipe, views, by_view)

    def one_part(
        sums: PyTree, part: tuple[Views, Noise, dict[str, objective.ViewTarget]]
    ) -> tuple[PyTree, None]:
        def loss_of(trained: PyTree) -> tuple[Array, Metrics]:
            logits, _ = student_forward(parts, constants, state, trained, part[0], part[1])
            terms = objective.terms_of(recipe, logits, part[0], part[2], whole=whole)
            return objective.weighted_sum(recipe, terms, state.step), terms

        (loss, terms), grads = jax.value_and_grad(loss_of, has_aux=True)(state.trained)
        return jax.tree.map(jnp.add, sums, (loss, terms, sharding.apart(grads))), None

    pieces = (
        accumulation.split(views, count),
        accumulation.split_noise(noise, count),
        accumulation.split(by_view, count),
    )
    zero = jnp.zeros(())
    nothing = sharding.apart(jax.tree.map(jnp.zeros_like, state.trained))
    start = (zero, dict.fromkeys(whole, zero), nothing)
    (loss, terms, grads), _ = jax.lax.scan(one_part, start, pieces)
    metrics = {"loss": loss, **terms, **objective.shares(recipe, targets, views, state.step)}
    return Outcome(loss, grads, state.batch_stats, metrics)


def apply_outcome(parts: Parts, state: TrainState, outcome: Outcome) -> tuple[TrainState, Metrics]:
    """Optimiser, then the average (METHOD 5).

    A step whose loss or gradient is not finite changes nothing but the two counters.
    """
    norm = optax.tree.norm(outcome.gradients)
    finite = jnp.isfinite(outcome.loss) & jnp.isfinite(norm)
    updates, opt_state = parts.optimizer.update(outcome.gradients, state.opt_state, state.trained)
    trained, stats = optax.apply_updates(state.trained, updates), outcome.batch_stats
    decay = ema.ema_decay(state.step, ceiling=parts.recipe.ema_decay)
    kept = state.ema is not None
    average = functools.partial(ema.ema_update, decay=decay, key=_step_key(parts, state, "average"))
    candidate = state.replace(
        trained=trained,
        batch_stats=stats,
        opt_state=opt_state,
        ema=average(state.ema, trained) if kept else None,
        ema_batch_stats=average(state.ema_batch_stats, stats) if kept else None,
    )
    new = jax.tree.map(functools.partial(jax.lax.select, finite), candidate, state)
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


def _learning_rates(parts: Parts, step: Int32[Array, ""]) -> Metrics:
    if parts.schedule is None:
        return {}
    rate = parts.schedule(step)
    return {f"lr_{group.name}": rate * group.lr for group in parts.groups if not group.frozen}


def _encode(parts: Parts, tree: PyTree, image: Array) -> Features:
    return segmenter_lib.applied(parts.segmenter, tree, image, method="encode")


def pseudo_label(
    parts: Parts, constants: Constants, tree: PyTree, image: Float[Array, "b h w 3"]
) -> PseudoLabels:
    """Labels and confidence that these variables give an image, batch statistics not used."""
    features = _encode(parts, tree, image)
    logits = segmenter_lib.applied(
        parts.segmenter, tree, features, constants.text, method="decode_grid"
    )
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
