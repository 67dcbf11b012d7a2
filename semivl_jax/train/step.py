"""One training step: a pure function of (state, batch).

    batch ─▶ views ─▶ labels (no gradient) ─▶ targets ─▶ student ─▶ losses ─▶ gradients ─▶ update ─▶ EMA

In: uint8 crops (`types.Batch`). Out: the next `TrainState` and scalar metrics (float32, on the device). The
method (`methods/`) defines labels, targets and perturbations. Random keys are folded from (seed, step), so a
resumed run draws the same numbers as an uninterrupted one. Source: docs/semivl.md 4 and 5.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jax.stages import Wrapped
from jaxtyping import Array, Float, Int32

from semivl_jax.models.clip_guidance import Guidance
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.train import ema, sharding
from semivl_jax.train.augment.views import make_views
from semivl_jax.train.forward import Networks, forward
from semivl_jax.train.methods.base import Method, Metrics, Setup, target_losses
from semivl_jax.train.param_groups import Group
from semivl_jax.train.state import Frozen, TrainState, variables
from semivl_jax.types import Batch, Key, PyTree, Views


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepModules:
    """What is fixed when the step is compiled; groups and schedule serve only to log learning rates."""

    model: SegmentationModel
    method: Method
    optimizer: optax.GradientTransformation
    total_steps: int
    num_classes: int
    seed: int = 0
    accumulation: int = 1
    guidance_model: Guidance | None = None
    method_modules: Any = ()
    groups: tuple[Group, ...] = ()
    schedule: optax.Schedule | None = None

    @property
    def setup(self) -> Setup:
        """What the method may know before training."""
        return Setup(model=self.model, num_classes=self.num_classes)

    def networks(self, frozen: Frozen, state: TrainState, dropout: Key | None = None) -> Networks:
        """Predictions for the method's labels."""
        return Networks(
            model=self.model,
            frozen=frozen,
            student=state.student(),
            teacher=state.teacher(),
            guidance_model=self.guidance_model,
            method_modules=self.method_modules,
            dropout=dropout,
        )


@struct.dataclass
class Gradients:
    """Of one batch: loss, gradients by trained leaf, and what changes beside the parameters."""

    loss: Float[Array, ""]
    params: PyTree
    batch_stats: PyTree
    method: PyTree
    metrics: Metrics


def jit_train_step(modules: StepModules, mesh: Mesh, state: TrainState) -> Wrapped:
    """(frozen, state, batch) -> (state, metrics), compiled for a mesh; the state is donated.

    `state` may be abstract. The new state has the shardings of the old one; metrics are on every device.
    """
    after = (sharding.shardings(mesh, state), sharding.replicated(mesh))
    step = sharding.on_mesh(functools.partial(train_step, modules), mesh)
    return jax.jit(step, donate_argnums=1, out_shardings=after)


def train_step(
    modules: StepModules, frozen: Frozen, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """The state after the update for one batch, and its metrics."""
    step_key = jax.random.fold_in(jax.random.key(modules.seed), state.step)
    views_key, noise_key = jax.random.split(step_key)
    views = modules.method.views(views_key, make_views(views_key, batch))
    grads = compute_gradients(modules, frozen, state, views, noise_key)
    return apply_gradients(modules, state, grads)


def compute_gradients(
    modules: StepModules, frozen: Frozen, state: TrainState, views: Views, key: Key
) -> Gradients:
    """The gradient of the method's loss for one batch, computed in `modules.accumulation` parts.

    Parameters that are split over devices are gathered first; the gradients are split like them.
    """
    loss = student_loss(modules, frozen, state, views, key)
    gradient = jax.value_and_grad(loss.of_part, has_aux=True)
    params = sharding.all_gather(state.params)
    total, values, stats, grads = _sum_parts(gradient, params, loss.part, modules.accumulation)
    metrics = {"loss": total, **values, **loss.metrics}
    return Gradients(total, grads, stats, loss.method_state, metrics)


class StudentLoss(NamedTuple):
    """The loss of a batch as a function of the trained parameters.

    of_part: (params, part) -> loss, (values by name, running statistics); losses of parts add up.
    part: the whole batch as such a part.
    """

    of_part: Callable[[PyTree, PyTree], tuple[Array, tuple[Metrics, PyTree]]]
    part: PyTree
    metrics: Metrics
    method_state: PyTree


def student_loss(
    modules: StepModules, frozen: Frozen, state: TrainState, views: Views, key: Key
) -> StudentLoss:
    """Labels and weights of the whole batch, without gradient, and the loss that they define."""
    method = modules.method
    frozen = sharding.all_gather(frozen)
    state = state.replace(
        params=sharding.all_gather(state.params),
        frozen_params=sharding.all_gather(state.frozen_params),
        ema_params=sharding.all_gather(state.ema_params),
    )
    noise_key, dropout = jax.random.split(key)
    noise = method.noise(noise_key, views.x.shape[0])
    networks = modules.networks(frozen, state, dropout)

    def labels_of(part: tuple[Views, PyTree]) -> PyTree:
        return method.labels(networks, *part)

    labels = jax.lax.stop_gradient(_map_parts(labels_of, (views, noise), modules.accumulation))
    method_state = method.update(state.method, labels, views)
    progress = state.step.astype(jnp.float32) / modules.total_steps
    targets = jax.lax.stop_gradient(method.targets(labels, views, method_state, progress))

    def of_part(params: PyTree, part: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        passes, by_view, labels, views, noise = part
        outputs, stats = forward(
            modules.model,
            frozen.text,
            variables(params, state.frozen_params, state.batch_stats),
            passes,
            names=by_view,
            dropout=dropout,
            **method.forward_options(noise),
        )
        values = target_losses(outputs.logits, by_view)
        further, metrics = method.losses(params.get("method", {}), outputs, labels, views)
        total = further + sum(targets.factors[name] * value for name, value in values.items())
        return total, ({**values, **metrics}, stats)

    part = (method.passes(views), targets.views, labels, views, noise)
    return StudentLoss(of_part, part, targets.metrics, method_state)


def apply_gradients(
    modules: StepModules, state: TrainState, grads: Gradients
) -> tuple[TrainState, Metrics]:
    """Optimiser, then the EMA (docs/semivl.md 5).

    A step whose loss or gradient is not finite changes nothing but the two counters.
    """
    norm = optax.tree.norm(grads.params)
    finite = jnp.isfinite(grads.loss) & jnp.isfinite(norm)
    updates, opt_state = modules.optimizer.update(grads.params, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    averages = {}
    if state.ema_params is not None:
        decay = ema.ema_decay(state.step, ceiling=modules.method.decay)
        averages = {
            "ema_params": ema.ema_update(state.ema_params, params, decay),
            "ema_batch_stats": ema.ema_update(state.ema_batch_stats, grads.batch_stats, decay),
        }
    candidate = state.replace(
        params=params,
        batch_stats=grads.batch_stats,
        opt_state=opt_state,
        method=grads.method,
        **averages,
    )
    new = jax.tree.map(functools.partial(jax.lax.select, finite), candidate, state)
    new = new.replace(step=state.step + 1, skipped=jnp.where(finite, 0, state.skipped + 1))
    rates = _learning_rates(modules, state.step)
    skipped = new.skipped.astype(jnp.float32)
    return new, {**grads.metrics, **rates, "gradient_norm": norm, "skipped": skipped}


def _learning_rates(modules: StepModules, step: Int32[Array, ""]) -> Metrics:
    if modules.schedule is None:
        return {}
    rate = modules.schedule(step)
    return {f"lr_{group.name}": rate * group.lr for group in modules.groups if not group.frozen}


def _map_parts(function: Callable[[PyTree], PyTree], tree: PyTree, parts: int) -> PyTree:
    """`function` of the whole batch, computed in parts one after another."""
    if parts == 1:
        return function(tree)
    return sharding.join_batch(jax.lax.map(function, sharding.split_batch(tree, parts)))


def _sum_parts(
    gradient: Callable[..., Any], params: PyTree, tree: PyTree, parts: int
) -> tuple[Array, Metrics, PyTree, PyTree]:
    """(loss, values by name, running statistics, gradients split as the parameters are) of a batch."""
    if parts == 1:
        (loss, (values, stats)), grads = gradient(params, tree)
        return loss, values, stats, sharding.reshard(grads)

    def add(sums: PyTree, part: PyTree) -> tuple[PyTree, None]:
        (loss, (values, _)), grads = gradient(params, part)
        found = (loss, values, sharding.reshard(grads))
        return jax.tree.map(jnp.add, sums, found), None

    pieces = sharding.split_batch(tree, parts)
    first = jax.tree.map(lambda leaf: leaf[0], pieces)
    shapes = jax.eval_shape(gradient, params, first)
    (loss, (values, stats)), grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (loss, values, grads), _ = jax.lax.scan(add, (loss, values, sharding.reshard(grads)), pieces)
    return loss, values, stats, grads
