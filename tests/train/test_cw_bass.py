"""Thresholds, weights and losses of CW-BASS, FreeMatch and SoftMatch against the published code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.data.splits import withhold
from semivl_jax.train import losses
from semivl_jax.train.augment import cutmix
from semivl_jax.train.label_maps import boundaries, class_weights
from semivl_jax.train.methods.base import Target, target_losses
from semivl_jax.train.methods.consistency import ImageLabels
from semivl_jax.train.methods.cw_bass import CWBass, CWBassV1
from semivl_jax.train.pseudo_labels import consistency_weights, pseudo_labels
from semivl_jax.train.thresholds import Thresholds
from tests.golden_files import Golden, assert_close, nhwc

TOLERANCE = 1e-5
NAME = "methods/cw_bass"
RULES = {"cwbass": "class_mean", "cwbass_v2": "floor", "class_adaptive": "class_adaptive",
         "freematch": "free_match", "softmatch": "soft_match"}  # fmt: skip
STATE = {"per_class_mean": "mean", "per_class_count": "count", "confidence_floor": "floor",
         "freematch_tau": "free_tau", "freematch_p_class": "free_mean", "softmatch_mu": "soft_mean",
         "softmatch_var": "soft_var"}  # fmt: skip
"""Published name → ours."""


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(NAME)


def cases(prefix: str) -> list[str]:
    return [name for name in Golden(NAME).meta["items"] if name.startswith(prefix)]


def weighted_loss(targets):
    """(logits, factors by name) -> Σ factor · loss, and the gradient of the logits."""

    @jax.jit
    @jax.value_and_grad
    def loss(logits, factors):
        values = target_losses(logits, targets)
        return sum(factor * values[name] for name, factor in factors.items())

    return loss


class Part:
    """The arrays of one case."""

    def __init__(self, golden: Golden, case: str):
        self.golden, self.case, self.meta = golden, case, golden.meta["items"][case]

    def given(self, name):
        return jnp.asarray(self.golden[f"in/{self.case}/{name}"])

    def logits(self, name):
        return jnp.asarray(nhwc(self.golden[f"in/{self.case}/{name}"]))

    def has(self, name):
        return f"out/{self.case}/{name}" in self.golden

    def check(self, name, value, tolerance=TOLERANCE):
        expected = self.golden[f"out/{self.case}/{name}"]
        if name.startswith("grad"):
            expected = nhwc(expected)
        value = np.asarray(value)
        if expected.dtype == np.uint8:
            np.testing.assert_array_equal(value.astype(np.uint8), expected, err_msg=name)
        else:
            assert_close(value, expected, tolerance, f"{self.case}/{name}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnRule:
    """A method whose threshold has settings that the configuration fixes."""

    own: Thresholds

    @property
    def rule(self):
        return self.own


@dataclasses.dataclass(frozen=True, kw_only=True)
class V1(OwnRule, CWBassV1):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class V2(OwnRule, CWBass):
    pass


@pytest.mark.golden
@pytest.mark.parametrize("case", [name for name in cases("v1/") if name != "v1/table"])
def test_v1(case, golden):
    part = Part(golden, case)
    meta = part.meta
    warmup, step = meta["warmup_iters"], meta["iter"]
    method = V1(
        own=Thresholds(rule="dynamic", base=meta["base"], slope=meta["beta"]),
        confidence_exponent=meta["gamma"],
        confidence_decay=meta["decay"] if meta["use_decay"] else 1.0,
        unlabelled_weight=meta["lambda_u"],
        ramp=warmup / 1000,
    )
    x_label = part.given("x_label").astype(jnp.int32)

    @jax.jit
    def make(teacher):
        pseudo = pseudo_labels(teacher)
        labels = ImageLabels(pseudo, jnp.zeros(pseudo.label.shape, bool))
        state = method.rule.init(meta["shape"][1])
        state = method.rule.update(state, pseudo.label, pseudo.confidence, ~labels.ignore)
        kept = pseudo.confidence >= method.thresholds(labels, state)
        found = {
            "conf": pseudo.confidence,
            "pseudo_raw": pseudo.label,
            "boundary": boundaries(pseudo.label),
            "threshold": method.rule.of_classes(state)[0],
            "pseudo": jnp.where(kept, pseudo.label, 255),
            "conf_weight": pseudo.confidence * method.confidence_decay,
        }
        labelled = Target("loss_x", x_label, losses.supervised_weights(x_label))
        return found, {"x": (labelled,), "w": method.view_targets("w", labels, state)}

    found, targets = make(part.logits("teacher_logits"))
    for name, value in found.items():
        part.check(name, value)
    logits = {"x": part.logits("x_logits"), "w": part.logits("student_logits")}
    loss_of = weighted_loss(targets)
    off = {"loss_x": 0.0, "loss_w": 0.0, "boundary_w": 0.0}
    published = {
        "L_x": off | {"loss_x": 1.0},
        "L_cw": off | {"loss_w": 1.0},
        "L_b": off | {"boundary_w": 1.0},
        "L_u": off | {"loss_w": 1.0, "boundary_w": 0.5},
        "total": method.factors(jnp.float32(step / 1000)),
    }
    for name, factors in published.items():
        value, grad = loss_of(logits, factors)
        part.check(name, value)
        grads = {f"grad_{name}": "x" if name == "L_x" else "w"}
        if name == "total":
            grads = {"grad_total_u": "w", "grad_total_x": "x"}
        for key, view in grads.items():
            if part.has(key):
                part.check(key, grad[view])


@pytest.mark.golden
def test_the_dynamic_threshold_hardly_moves(golden):
    part = Part(golden, "v1/table")

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def threshold(rule, mean):
        return rule.of_classes({"mean": jnp.zeros(1), "batch_mean": mean})[0]

    rules = [Thresholds(rule="dynamic", base=b, slope=s) for b, s in part.meta["base_beta"]]
    part.check("threshold", np.stack([threshold(rule, part.given("mean_conf")) for rule in rules]))


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("boundary/"))
def test_boundaries(case, golden):
    """Both versions give 255 to a class; pseudo-labels have none."""
    part = Part(golden, case)
    label = part.given("label").astype(jnp.int32)
    for version, void in (("v1", part.meta["K"] - 1), ("v2", 0)):
        part.check(version, boundaries(jnp.where(label == 255, void, label)))


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("v2/"))
def test_thresholds_of_v2(case, golden):
    part = Part(golden, case)
    given, classes = part.meta["kwargs"], part.meta["shape"][1]
    momenta = ("ema_decay", "freematch_momentum", "softmatch_ema")
    settings = {
        "momentum": next((given[name] for name in momenta if name in given), 0.999),
        "floor_momentum": given.get("floor_momentum", 0.99),
        "coverage": given.get("lambda_coverage", 0.1),
    }
    rule = Thresholds(rule=RULES[given["method"]], calibration_momentum=1.0, **settings)
    state = rule.init(classes)
    calibrate = jax.jit(rule.calibrate)
    if f"in/{case}/calib_conf" in golden:
        arrays = [part.given(f"calib_{name}") for name in ("pred", "conf", "gt")]
        for label, confidence, truth in zip(*arrays, strict=True):
            valid = jnp.ones(label.shape, bool)
            state = calibrate(
                state, label.astype(jnp.int32), confidence, valid, truth.astype(jnp.int32)
            )
        part.check("calib_noise_total", state["noise_total"])
        part.check("calib_noise_correct", state["noise_right"])
        part.check("calib_per_class_mean", state["mean"])
    adaptive = given["method"] == "class_adaptive"

    @jax.jit
    def step(state, label, confidence):
        state = rule.update(state, label, confidence, jnp.ones(label.shape, bool))
        values = {published: state[ours] for published, ours in STATE.items()}
        values["per_class_threshold"] = rule.of_classes(state)
        values["keep"] = confidence >= rule.of_classes(state)[label]
        values["soft_weight"] = rule.weight(state, confidence)
        if adaptive:
            values["lambda_k"], values["risks"] = rule.penalties(state), rule.risks(state)
        return state, values

    steps = []
    for label, confidence in zip(part.given("pred"), part.given("conf"), strict=True):
        state, values = step(state, label.astype(jnp.int32), confidence)
        steps.append(jax.device_get(values))
    found = {name: np.stack([values[name] for values in steps]) for name in steps[0]}
    # SoftMatch has no threshold; what the file calls one is not used.
    unused = {"keep", "per_class_threshold"} if given["method"] == "softmatch" else {"risks"}
    compared = [name for name in found if part.has(name) and name not in unused]
    assert len(compared) > 2
    for name in compared:
        part.check(name, found[name])
    if adaptive:
        part.check("risk_last", found["risks"][-1])
        clear = golden[f"out/{case}/risk_gap"] > 1e-5
        best, expected = found["risks"].argmin(-1), golden[f"out/{case}/risk_optimal"]
        np.testing.assert_allclose((best[clear] + 1) / 100, expected[clear], rtol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("v2loss/"))
def test_losses_of_v2(case, golden):
    part = Part(golden, case)
    meta, classes = part.meta, part.meta["shape"][1]
    above = float(np.nextafter(np.float32(meta["threshold"]), np.float32(np.inf)))
    method = V2(
        own=Thresholds(rule="fixed", fixed=above),
        confidence_exponent=meta["gamma"],
        boundary_weight=meta["boundary_weight"],
    )
    plain = dataclasses.replace(method, balance_classes=False)
    x_label = part.given("x_label").astype(jnp.int32)
    order, (top, bottom, left, right) = part.given("perm"), golden[f"in/{case}/box_y1y2x1x2"]

    @jax.jit
    def make(teacher, image):
        pseudo = pseudo_labels(teacher)
        state = method.rule.init(classes)
        own = ImageLabels(pseudo, jnp.zeros(pseudo.label.shape, bool))
        box = jnp.zeros(pseudo.label.shape, bool).at[:, top:bottom, left:right].set(True)
        mix = functools.partial(cutmix.mix, box)
        mixed = jax.tree.map(lambda leaf: mix(leaf, leaf[order]), own)
        label, confidence = mixed.pseudo.label, mixed.pseudo.confidence
        kept = confidence >= method.thresholds(mixed, state)
        found = {
            "conf": pseudo.confidence,
            "pseudo": pseudo.label,
            "keep": pseudo.confidence >= method.thresholds(own, state),
            "img_mix": jnp.moveaxis(mix(image, image[order]), -1, 1),
            "pseudo_mix": label,
            "conf_mix": confidence,
            "keep_mix": kept,
            "target_mix": jnp.where(kept, label, 255),
            "boundary": boundaries(label),
            "class_weights": class_weights(label, kept, num_classes=classes),
        }
        strict = consistency_weights(
            confidence, mixed.ignore, mode="pixelwise", threshold=meta["um_thresh"]
        )
        unweighted = plain.view_targets("s1", mixed, state)[0]
        others = (dataclasses.replace(unweighted, name="plain"), Target("strict", label, strict))
        return found, {
            "x": (Target("loss_x", x_label, losses.supervised_weights(x_label)),),
            "s1": method.view_targets("s1", mixed, state) + others,
            "fp": method.view_targets("fp", mixed, state),
        }

    found, targets = make(part.logits("teacher_logits"), part.logits("img"))
    for name, value in found.items():
        part.check(name, value)
    logits = {"x": part.logits("x_logits"), "s1": part.logits("student_logits"),
              "fp": part.logits("fp_logits")}  # fmt: skip
    loss = weighted_loss(targets)
    total, bw = method.factors(jnp.float32(0.5)), meta["boundary_weight"]
    off = dict.fromkeys((*total, "plain", "strict"), 0.0)
    for name, factors, grads in (
        ("L_cw", {"loss_s1": 1.0}, {}),
        ("L_cw_noclassweights", {"plain": 1.0}, {}),
        ("L_s", {"loss_s1": 1.0, "boundary_s1": bw}, {"grad_L_s": "s1"}),
        ("L_fp", {"loss_fp": 1.0}, {}),
        ("L_u", {"loss_s1": 0.5, "boundary_s1": bw / 2, "loss_fp": 0.5}, {}),
        ("L_x", {"loss_x": 1.0}, {}),
        ("unimatchv2_L_s", {"strict": 1.0}, {"grad_unimatchv2_L_s": "s1"}),
        ("total", total, {"grad_total_s": "s1", "grad_total_fp": "fp", "grad_total_x": "x"}),
    ):
        value, grad = loss(logits, off | factors)
        part.check(name, value)
        for key, view in grads.items():
            if part.has(key):
                part.check(key, grad[view])


@pytest.mark.golden
def test_the_calibration_slice_has_the_published_size(golden):
    for row in golden.meta["tables"]["calib_slice"]:
        labelled = tuple(range(row["n_labelled"]))
        kept, calibration = withhold(labelled, share=0.05, seed=0)
        assert len(calibration) == row["n_calib"]
        assert sorted((*kept, *calibration)) == list(labelled)
