"""SemiOVS against the published code: mixed images, labels inside and outside the boxes, losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train.methods.base import target_losses
from semivl_jax.train.methods.consistency import ImageLabels
from semivl_jax.train.methods.semi_ovs import SemiOVS, SemiOVSSemiVL, stored_labels
from semivl_jax.train.pseudo_labels import pseudo_labels
from semivl_jax.types import StreamViews, Views
from tests.golden_files import Golden, assert_close, nhwc

TOLERANCE = 1e-5
NAME = "methods/semiovs"
TERMS = {"x": "L_x", "s1": "L_s1", "s2": "L_s2", "fp": "L_fp", "s1_ood": "L_s1_ood",
         "s2_ood": "L_s2_ood", "fp_ood": "L_fp_ood"}  # fmt: skip
"""View → published name of its loss."""


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(NAME)


class Case:
    """The views, labels and logits of one case."""

    def __init__(self, golden, case):
        self.golden, self.case, self.item = golden, case, golden.meta["items"][case]
        image, ignore = self.image, self.given("ignore_mask") == 255
        empty = jnp.zeros_like(image("img_s1"))
        raw = self.given("ood_label_raw").astype(jnp.int32)
        streams = {
            "unlabelled": StreamViews(empty, image("img_s1"), image("img_s2"), ignore),
            "unlabelled.1": StreamViews(
                empty,
                image("img_s1_mix"),
                image("img_s2_mix"),
                self.given("ignore_mask_mix") == 255,
            ),
            "ood": StreamViews(empty, image("img_s1_ood"), image("img_s2_ood"), raw == 255, raw),
        }
        boxes = {f"s{i}": self.given(f"cutmix_box{i}") == 1 for i in (1, 2)}
        label = self.given("label_x").astype(jnp.int32)
        x = jnp.zeros((*label.shape, 3))
        self.views = Views(x=x, y=label, streams=streams, boxes=boxes)
        self.logits = {view: self.image(f"logits_{view}") for view in TERMS}

    def given(self, name):
        return jnp.asarray(self.golden[f"in/{self.case}/{name}"])

    def image(self, name):
        return jnp.asarray(nhwc(self.golden[f"in/{self.case}/{name}"]))

    def labels(self, *guidance):
        streams = self.views.streams
        names = (("logits_w", "unlabelled"), ("logits_w_mix", "unlabelled.1"))
        return [
            ImageLabels(pseudo_labels(self.image(logits)), streams[key].ignore, *extra)
            for (logits, key), *extra in zip(names, *guidance, strict=True)
        ]

    def expected(self, name):
        return self.golden[f"out/{self.case}/{name}"]

    def check(self, name, value):
        if name.startswith("img") or "grad" in name:
            value = np.moveaxis(np.asarray(value), -1, 1)
        assert_close(value, self.expected(name), TOLERANCE, f"{self.case}/{name}")

    def losses(self, method, labels):
        """A function of the factors of the losses: their sum, the losses, and the gradients of the logits."""
        targets = jax.jit(method.targets)(labels, self.views, {}, self.progress())

        @jax.jit
        def compute(logits, factors):
            def loss(logits):
                values = target_losses(logits, targets.views)
                return sum(factors[name] * value for name, value in values.items()), values

            return jax.value_and_grad(loss, has_aux=True)(logits)

        return lambda factors: compute(self.logits, factors)

    def check_losses(self, found, head):
        (total, values), grads = found
        self.check(f"{head}/total", total)
        for view, name in TERMS.items():
            self.check(name, values[f"loss_{view}"])
            if f"out/{self.case}/{head}/grad_{view}" in self.golden:
                self.check(f"{head}/grad_{view}", grads[view])
        return values

    def progress(self):
        return jnp.float32(self.item["it"] / self.item["total"])


def cases():
    return list(Golden(NAME).meta["items"])


def fields(case, **more):
    return {"teacher": "student", "cutmix_partner": "same_image", "confidence_threshold": case.item["tau"],
            **more}  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize("name", cases())
def test_views_and_labels(name, golden):
    case = Case(golden, name)
    method = SemiOVS(**fields(case))
    first, strong, further = jax.jit(method.passes)(case.views)
    assert set(first) == {"x", "w", "w_ood"}
    for view, image in (strong | further).items():
        case.check(f"img_{view}", image)
    stored = stored_labels(case.views.streams["ood"])
    np.testing.assert_array_equal(stored.ignore * 255, case.expected("ood_ignore"))
    known = np.where(stored.ignore, 0, stored.pseudo.label)
    np.testing.assert_array_equal(known, case.expected("ood_label"))
    pseudo = case.labels()[0].pseudo
    case.check("conf_w", pseudo.confidence)
    np.testing.assert_array_equal(pseudo.label, case.expected("label_w"))
    targets = method.targets(case.labels(), case.views, {}, jnp.float32(0))
    for view, suffix in (("s1", "1"), ("s2", "2"), ("s1_ood", "1_ood"), ("s2_ood", "2_ood")):
        (target,) = targets.views[view]
        ignored = case.expected(f"target_ign{suffix}") == 255
        label = np.where(ignored, 0, target.label)
        np.testing.assert_array_equal(
            label, np.where(ignored, 0, case.expected(f"target_mask{suffix}"))
        )
        sure = case.expected(f"target_conf{suffix}") >= np.float32(case.item["tau"])
        expected = (sure & ~ignored) / max(1, (~ignored).sum())
        assert_close(target.weight, expected, TOLERANCE, view)


@pytest.mark.golden
@pytest.mark.parametrize("name", cases())
def test_losses_on_unimatch(name, golden):
    case = Case(golden, name)
    method = SemiOVS(**fields(case))
    losses = case.losses(method, case.labels())
    for weight in case.item["lambdas"]:
        factors = dataclasses.replace(method, ood_weight=weight).factors(case.progress())
        head = f"lambda{weight}"
        values = case.check_losses(losses(factors), head)
        parts = (share * values[f"loss_{view}_ood"] for view, share in method.view_shares.items())
        case.check(f"{head}/L_ood", weight * sum(parts))


@pytest.mark.golden
@pytest.mark.parametrize("name", cases())
def test_losses_on_semivl(name, golden):
    case = Case(golden, name)
    guidance = [
        # As the frozen CLIP labels images: not where they are padding.
        jnp.where(case.views.streams[stream].ignore, 255, case.given(key).astype(jnp.int32))
        for key, stream in (("mclip", "unlabelled"), ("mclip_other", "unlabelled.1"))
    ]
    for reduction in ("mean_all", "mean_valid"):
        head = f"semivl_{reduction}"
        method = SemiOVSSemiVL(**fields(case, guidance_reduction=reduction))
        losses = case.losses(method, case.labels(guidance))
        values = case.check_losses(losses(method.factors(case.progress())), head)
        for view in method.view_shares:
            case.check(f"{head}/L_mc_{view}", values[f"guidance_{view}"])
    case.check("semivl_current_lambda", method.guidance_weight(case.progress()))
