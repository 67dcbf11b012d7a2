"""Confidence thresholds that follow the teacher during training, and its reliability on calibration images.

In: labels int32 [b, h, w], confidences float32 [b, h, w], a map of the pixels that count, true classes where
they are known. Out: a state of small float32 arrays, from it a threshold per class and a weight per pixel.
The state is updated before it is used in the same step. n: classes.

    fixed           one number
    dynamic         base · sigmoid(slope · (mean confidence of the batch - ½)), clipped to 0.3 … 0.8
    class_mean      the same with the mean over the classes' running confidences, clipped to 0.3 … 0.95
    floor           at least 0.95 times the running mean confidence
    class_adaptive  per class: the floor times the class's relative confidence, or the threshold of least risk
                    on calibration images where that is higher
    gate            fixed while calibration shows the teacher to be 95 % right above 0.95, else floor
    free_match      per class: running mean confidence times the class's relative confidence
    soft_match      none: pixels below the running mean confidence get a Gaussian weight

Source: CW-BASS (arXiv 2502.15152), CW-BASS v2 (arXiv 2608.12773), FreeMatch (arXiv 2205.07246), SoftMatch
(arXiv 2301.10921).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from semivl_jax.types import IGNORE_INDEX

Rule = Literal[
    "fixed", "dynamic", "class_mean", "floor", "class_adaptive", "gate", "free_match", "soft_match"
]
State = dict[str, Array]

LOWEST, HIGHEST, HIGHEST_DYNAMIC = 0.3, 0.95, 0.8
FLOOR_SHARE = 0.95
BINS = 50  # of confidence, in the counts of calibration pixels
GRID = np.arange(1, 100) / 100  # candidates for the threshold of least risk
BOUND = float(np.log(2 / 0.01))  # Hoeffding's bound holds with probability 0.99
MIN_UPDATE = 10  # pixels of a class in a batch from which its running confidence follows
MIN_CLASS = 100  # pixels of a class so far from which it gets a threshold of its own
MAX_SCARCITY = 10.0
SURE = 0.95  # confidence above which the teacher's reliability is measured, and the reliability required


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """One of the rules; momenta are the share of the old average that a step keeps."""

    rule: Rule
    fixed: float = 0.95
    base: float = 0.6
    slope: float = 0.5
    momentum: float = 0.999
    floor_momentum: float = 0.99
    calibration_momentum: float = 0.999
    coverage: float = 0.1  # penalty per share of pixels that a threshold leaves out

    def init(self, num_classes: int) -> State:
        """State before the first step."""
        classes = {"mean": 0.5, "seen": 0.0, "count": 0.0, "free_mean": 1 / num_classes}
        fitted = {"fitted_mean": 0.5, "fitted_var": 0.1, "fitted": 0.0}
        scalars = {"batch_mean": 0.5, "floor": 0.6, "free_tau": 0.6,
                   "soft_mean": 1 / num_classes, "soft_var": 1.0}  # fmt: skip
        scalars |= dict.fromkeys(("pixels", "sure", "sure_right"), 0.0)
        state = {name: jnp.full((), value, jnp.float32) for name, value in scalars.items()}
        for name, value in (classes | fitted).items():
            state[name] = jnp.full(num_classes, value, jnp.float32)
        counts = jnp.zeros((num_classes, BINS))
        return state | {"noise_total": counts, "noise_right": counts}

    def update(
        self,
        state: State,
        label: Int32[Array, "b h w"],
        confidence: Float[Array, "b h w"],
        valid: Bool[Array, "b h w"],
    ) -> State:
        """Follows the pseudo-labels of a batch of unlabelled images."""
        made = self._follow_classes(state, label, confidence, valid)
        count = jnp.sum(valid, dtype=jnp.float32)
        mean = _mean(confidence, valid, count)
        squares = jnp.where(valid, (confidence - mean) ** 2, 0.0)
        variance = jnp.sum(squares) / jnp.maximum(count - 1, 1)
        for name, value, momentum in (
            ("floor", mean, self.floor_momentum),
            ("free_tau", mean, self.momentum),
            ("soft_mean", mean, self.momentum),
            ("soft_var", variance, self.momentum),
        ):
            average = momentum * state[name] + (1 - momentum) * value
            made[name] = jnp.where(count > 0, average, state[name])
        made["batch_mean"] = jnp.where(count > 0, mean, state["batch_mean"])
        return made

    def calibrate(
        self,
        state: State,
        label: Int32[Array, "b h w"],
        confidence: Float[Array, "b h w"],
        valid: Bool[Array, "b h w"],
        truth: Int32[Array, "b h w"],
    ) -> State:
        """Counts how often the teacher is right on images whose classes are known (255: unknown)."""
        made = self._follow_classes(state, label, confidence, valid)
        known = valid & (truth != IGNORE_INDEX)
        right = known & (truth == label)
        steps = jnp.asarray((np.arange(BINS) + 1) / BINS, jnp.float32)
        reached = jnp.searchsorted(steps, confidence, side="right")  # bins that a pixel counts in
        cell = label * (BINS + 1) + reached
        length = state["noise_total"].shape[0] * (BINS + 1)
        for name, pixels in (("noise_total", known), ("noise_right", right)):
            exactly = jnp.zeros(length).at[cell].add(pixels.astype(jnp.float32))
            above = jnp.cumsum(exactly.reshape(-1, BINS + 1)[:, ::-1], axis=1)[:, ::-1]
            made[name] = self.calibration_momentum * state[name] + above[:, 1:]
        sure = known & (confidence >= SURE)
        for name, pixels in (("pixels", known), ("sure", sure), ("sure_right", sure & right)):
            made[name] = self.calibration_momentum * state[name] + jnp.sum(pixels)
        return made

    def reliability(self, state: State) -> dict[str, Float32[Array, ""]]:
        """Of calibration pixels: share that is right among the sure ones, and share of sure ones."""
        return {
            "reliability": _share(state["sure_right"], state["sure"]),
            "saturation": _share(state["sure"], state["pixels"]),
        }

    def of_classes(self, state: State) -> Float32[Array, " n"]:
        """The confidence from which a pseudo-label of each class counts."""
        like = jnp.ones_like(state["mean"])
        if self.rule == "fixed":
            return like * self.fixed
        if self.rule == "soft_match":
            return like * 0.0
        if self.rule == "free_match":
            relative = state["free_mean"] / jnp.max(state["free_mean"])
            return jnp.clip(relative * state["free_tau"], LOWEST, HIGHEST)
        # The published comparison is "greater than".
        return jnp.nextafter(self._exclusive(state) * like, jnp.inf)

    def _exclusive(self, state: State) -> Float32[Array, "*n"]:
        if self.rule == "dynamic":
            return jnp.clip(self.sigmoid(state["batch_mean"]), LOWEST, HIGHEST_DYNAMIC)
        dynamic = jnp.clip(self.sigmoid(jnp.mean(state["mean"])), LOWEST, HIGHEST)
        if self.rule == "class_mean":
            return dynamic
        floor = jnp.clip(FLOOR_SHARE * state["floor"], LOWEST, HIGHEST)
        if self.rule == "class_adaptive":
            return self._of_least_risk(state, floor)
        raised = jnp.maximum(dynamic, floor)
        if self.rule == "gate":
            below = jnp.nextafter(jnp.float32(self.fixed), -jnp.inf)
            return jnp.where(self.reliability(state)["reliability"] >= SURE, below, raised)
        return raised

    def sigmoid(self, mean: Array) -> Array:
        """The dynamic threshold before it is clipped."""
        return self.base * jax.nn.sigmoid(self.slope * (mean - 0.5))

    def weight(self, state: State, confidence: Float[Array, "b h w"]) -> Float32[Array, "b h w"]:
        """The factor of every pixel's weight: SoftMatch's, else 1."""
        if self.rule != "soft_match":
            return jnp.ones_like(confidence)
        distance = jnp.minimum(confidence - state["soft_mean"], 0.0)
        return jnp.exp(-(distance**2) / (2 * 4 * state["soft_var"]))

    def risks(self, state: State) -> Float32[Array, "n t"]:
        """Risk of every candidate in GRID for every class.

        share kept · bound of the error of the kept + penalty · share left out. Confidences follow a beta
        distribution of the class's mean and variance; the bound is Hoeffding's on calibration pixels.
        """
        mean, variance = state["fitted_mean"], jnp.maximum(state["fitted_var"], 1e-6)
        total = jnp.maximum(mean * (1 - mean) / variance - 1, 1e-2)
        a, b = mean * total, (1 - mean) * total
        grid = jnp.asarray(GRID, jnp.float32)
        kept = 1 - jax.scipy.special.betainc(a[:, None], b[:, None], grid[None, :])
        bins = np.minimum((BINS * GRID).astype(int), BINS - 1)
        count, right = state["noise_total"][:, bins], state["noise_right"][:, bins]
        error = 1 - right / jnp.maximum(count, 1)
        bound = jnp.minimum(error + jnp.sqrt(BOUND / (2 * jnp.maximum(count, 1))), 1)
        bound = jnp.where(count > 0, bound, 1.0)
        return kept * bound + self.penalties(state)[:, None] * (1 - kept)

    def penalties(self, state: State) -> Float32[Array, " n"]:
        """Penalty of leaving out pixels of a class, larger for rare classes."""
        count = jnp.maximum(state["count"], 1)
        return self.coverage * jnp.minimum(jnp.max(count) / count, MAX_SCARCITY)

    def _of_least_risk(self, state: State, floor: Array) -> Float32[Array, " n"]:
        best = jnp.asarray(GRID, jnp.float32)[jnp.argmin(self.risks(state), axis=1)]
        lowest = floor * state["mean"] / jnp.max(state["mean"])
        enough = state["count"] >= MIN_CLASS
        return jnp.clip(jnp.where(enough, jnp.maximum(best, lowest), lowest), LOWEST, HIGHEST)

    def _follow_classes(self, state: State, label: Array, confidence: Array, valid: Array) -> State:
        """Running confidence of each class; the first batch that shows a class sets it."""
        classes = jnp.arange(len(state["mean"]), dtype=jnp.int32)
        hit = valid[..., None] & (label[..., None] == classes[None, None, None, :])
        count = jnp.sum(hit, axis=(0, 1, 2), dtype=jnp.float32)
        mean = jnp.sum(jnp.where(hit, confidence[..., None], 0.0), axis=(0, 1, 2))
        mean = mean / jnp.maximum(count, 1)
        squares = (confidence[..., None] - mean[None, None, None, :]) ** 2
        variance = jnp.sum(jnp.where(hit, squares, 0.0), axis=(0, 1, 2)) / jnp.maximum(count, 1)
        free = self.momentum * state["free_mean"] + (1 - self.momentum) * mean
        enough, fits = count >= MIN_UPDATE, count >= 2

        def follow(name: str, value: Array, seen: Array, there: Array) -> Array:
            average = self.momentum * state[name] + (1 - self.momentum) * value
            return jnp.where(there, jnp.where(seen > 0, average, value), state[name])

        return {
            **state,
            "mean": follow("mean", mean, state["seen"], enough),
            "seen": jnp.maximum(state["seen"], enough),
            "count": state["count"] + jnp.where(enough, count, 0.0),
            "free_mean": jnp.where(count > 0, free, state["free_mean"]),
            "fitted_mean": follow("fitted_mean", mean, state["fitted"], fits),
            "fitted_var": follow("fitted_var", variance, state["fitted"], fits),
            "fitted": jnp.maximum(state["fitted"], fits),
        }


def _mean(values: Array, valid: Array, count: Array) -> Array:
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(count, 1)


def _share(part: Array, whole: Array) -> Array:
    # Decayed sums fall below 1 without being empty.
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
