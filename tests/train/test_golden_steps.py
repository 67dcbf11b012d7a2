"""Whole training iterations against the published implementation (teacher = student, own partner)."""

import contextlib
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from semivl_jax.models import clip_guidance, image_normalization
from semivl_jax.models.resize import bilinear
from semivl_jax.train import optimizer
from semivl_jax.train import param_groups as groups_lib
from semivl_jax.train import state as state_lib
from semivl_jax.train import step as step_lib
from semivl_jax.train.forward import forward
from semivl_jax.train.methods.semivl import SemiVL
from semivl_jax.train.methods.unimatch import UniMatch
from semivl_jax.types import StreamViews, Views
from semivl_jax.weights.tree import flatten
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.golden_models import (
    class_text,
    guidance_params,
    imported,
    segmenter,
    variables,
    vision_tower,
)

FILES = files("train_steps_*")


class StoredMasks:
    """The channels that the published run kept, instead of random ones."""

    current: ClassVar[dict] = {}

    def noise(self, key, count):
        return self.current["masks"]

    def channel_masks(self, masks, features):
        return masks


class PublishedUniMatch(StoredMasks, UniMatch):
    pass


class PublishedSemiVL(StoredMasks, SemiVL):
    pass


class Run:
    """The published run of one file, repeated with our step."""

    def __init__(self, name: str):
        self.golden = golden = Golden(name)
        meta, cfg = golden.meta, golden.meta["cfg"]
        multipliers = cfg["optimizer"]["paramwise_cfg"]["custom_keys"]
        self.groups = groups_lib.published_groups(
            finetune="spatial",
            backbone_lr=multipliers["backbone"]["lr_mult"],
            conv_encoder_lr=multipliers["conv_encoder"]["lr_mult"],
            decoder_lr=multipliers["head"]["lr_mult"],
        )
        tree = variables(golden)
        self.stats = tree["batch_stats"]
        trained, frozen = groups_lib.partition(tree["params"], self.groups)
        schedule = optimizer.polynomial_schedule(
            lr=cfg["lr"], total_steps=cfg.get("scheduler_max_iters", meta["iters"]), power=0.9,
            warmup_steps=cfg["warmup_iters"], warmup_ratio=cfg["warmup_ratio"],
        )  # fmt: skip
        self.schedule, self.lr = schedule, cfg["lr"]
        tx = optimizer.build(
            trained, self.groups, schedule, name="adamw",
            weight_decay=cfg["optimizer"]["weight_decay"],
        )  # fmt: skip
        weight = cfg["maskclip_consistency_lambda"]
        start, end = weight if isinstance(weight, list) else (weight, weight)
        fields = {
            "teacher": "student", "cutmix_partner": "same_image",
            "confidence_mode": cfg["conf_mode"], "confidence_threshold": cfg["conf_thresh"],
            "perturbation_rate": cfg["fp_rate"],
        }  # fmt: skip
        if cfg["criterion"]["name"] == "OHEM":
            ohem = cfg["criterion"]["kwargs"]
            fields |= {"criterion": "ohem", "ohem_threshold": ohem["thresh"],
                       "ohem_min_kept": ohem["min_kept"]}  # fmt: skip
        if weight == 0:
            self.method = PublishedUniMatch(**fields)
        else:
            self.method = PublishedSemiVL(
                **fields, guidance_threshold=cfg["mcc_conf_thresh"],
                guidance_reduction=cfg["mcc_loss_reduce"], guidance_start=start, guidance_end=end,
            )  # fmt: skip
        clip = meta["clip_encoder"]
        out_dim = golden["w/clip_encoder.proj.weight"].shape[0]
        tower = vision_tower(clip, table_of=clip["img_size"][0], out_dim=out_dim)
        renormalize = cfg["model_args"].get("renorm_clip_img", False)
        self.modules = step_lib.StepModules(
            model=segmenter(golden, crop=meta["crop_size"], renormalize=renormalize),
            method=self.method, optimizer=tx, total_steps=meta["iters"],
            num_classes=meta.get("num_classes", 0), guidance_model=clip_guidance.Guidance(tower=tower),
        )  # fmt: skip
        self.frozen = state_lib.Frozen(
            text=self.text(cfg["pl_text"]),
            guidance_params=guidance_params(golden),
            guidance_text=self.text(cfg["mcc_text"]),
        )
        self.state = state_lib.create(trained, frozen, self.stats, tx, ema=False)
        self.gradients, self.rounding = {}, {}

    def text(self, variant: str):
        """Concepts (not averaged ones) have several rows per class."""
        if "concept" in variant and "avg" not in variant:
            rows = self.golden["in/text_concept"]
            return class_text(rows, self.golden.meta["class_to_concept_idx"])
        return class_text(self.golden["in/text_class"])

    def views(self, t: int) -> Views:
        def read(name):
            return jnp.asarray(nhwc(self.golden[f"in/{t}/{name}"]))

        def unlabelled(suffix):
            ignore = jnp.asarray(self.golden[f"in/{t}/ignore_mask{suffix}"] == 255)
            return StreamViews(*(read(f"img_{view}{suffix}") for view in ("w", "s1", "s2")), ignore)

        return Views(
            x=read("img_x"),
            y=jnp.asarray(self.golden[f"in/{t}/mask_x"], jnp.int32),
            streams={"unlabelled": unlabelled(""), "unlabelled.1": unlabelled("_other")},
            boxes={f"s{i}": jnp.asarray(self.golden[f"in/{t}/mix{i}"] == 1) for i in (1, 2)},
        )

    def masks(self, t: int) -> dict:
        """The file holds one array per map, of x and behind them of w."""
        count = self.golden.meta["n_fp_masks"]
        maps = [nhwc(self.golden[f"in/{t}/fp_mask{j}"]) > 0.5 for j in range(count)]
        return {
            view: tuple(jnp.asarray(np.split(kept, 2)[i]) for kept in maps)
            for i, view in enumerate(("x", "w"))
        }

    def iterate(self, state, views, masks):
        StoredMasks.current["masks"] = masks
        key = jax.random.key(0)  # nothing is drawn
        grads = step_lib.compute_gradients(self.modules, self.frozen, state, views, key)
        return step_lib.apply_gradients(self.modules, state, grads)[0], grads

    def train(self, iterate=None):
        """(gradients of every iteration, state after the first, after the last)"""
        state, found, after_first = self.state, [], None
        for t in range(self.golden.meta["iters"]):
            state, grads = (iterate or self.iterate)(state, self.views(t), self.masks(t))
            found.append(grads)
            after_first = after_first or state
        return found, after_first, state

    def retrain(self, change):
        """`train` without compilation; `change(number, x)` replaces x, the input of ReLU `number`."""
        relu, number = nn.relu, -1

        def changed(x):
            nonlocal number
            number += 1
            return relu(change(number, x))

        with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
            patch.setattr(nn, "relu", changed)
            return self.train()

    def units_at_kinks(self) -> list[tuple[float, int, int]]:
        """(|x| / the layer's largest, ReLU, index) of the inputs x within rounding of 0, nearest first."""
        units = []

        def record(number, x):
            size = np.abs(np.asarray(jax.lax.stop_gradient(x))).ravel()
            for index in np.flatnonzero(size <= np.finfo(np.float32).eps * size.max()):
                units.append((float(size[index] / size.max()), number, int(index)))
            return x

        self.retrain(record)
        return sorted(units)

    def train_with(self, unit: tuple[float, int, int]):
        """`retrain` with this unit on the other side of ReLU's kink."""
        _, chosen, index = unit

        def change(number, x):
            if number != chosen:
                return x
            flat = x.ravel()
            return flat.at[index].add(-2 * jax.lax.stop_gradient(flat[index])).reshape(x.shape)

        return self.retrain(change)


@pytest.fixture(scope="module", params=FILES)
def finished(request):
    """The run, what every iteration found out, and the states after the first and the last."""
    run = Run(request.param)
    return run, *run.train(jax.jit(run.iterate))


def compare_after_steps(run, compare, found, last):
    """`compare(found, last)` of several steps.

    A unit within rounding of ReLU's kink may be on in one implementation and off in the other, after which
    the weights drift apart. Where the comparison fails, it is made again, at the same tolerance, with the
    nearest such units on the other side, one at a time; the unit is printed.
    """
    try:
        compare(found, last)
    except AssertionError:
        for unit in run.units_at_kinks()[:4]:
            again, _, last = run.train_with(unit)
            with contextlib.suppress(AssertionError):
                compare(again, last)
                print(
                    f"equal with unit {unit[2]} of ReLU {unit[1]} on the other side of the kink, from which "
                    f"it is {unit[0]:.1e} of its layer's largest input"
                )
                return
        raise


@pytest.mark.golden
def test_losses_of_every_iteration(finished):
    run, found, _, last = finished
    names = {"loss_all": "loss", "loss_mc_s1": "guidance_s1", "loss_mc_s2": "guidance_s2",
             "loss_mc_fp": "guidance_fp"}  # fmt: skip

    def compare(found, last):
        for key in run.golden.keys("out/loss/"):
            name = key.removeprefix("out/loss/")
            ours = np.stack([grads.metrics[names.get(name, name)] for grads in found])
            assert_close(ours[:1], run.golden[key][:1], 1e-5, key)
            assert_close(ours, run.golden[key], 1e-4, key)

    compare_after_steps(run, compare, found, last)


@pytest.mark.golden
def test_gradients_of_the_first_iteration(finished):
    run, found, _, _ = finished
    ours = flatten(found[0].params)
    theirs = flatten(_imported(run, "out/grad0/")["params"])
    assert set(ours) == set(theirs)
    for path, expected in theirs.items():
        if _is_free_of_gradient(path):
            continue
        assert_close(ours[path], expected, 1e-4, path)


@pytest.mark.golden
@pytest.mark.parametrize("which", ["first", "last"])
def test_weights_after_training(finished, which):
    run, found, first, last = finished
    number = 1 if which == "first" else run.golden.meta["iters"]
    tolerance = 1e-5 if which == "first" else 1e-4
    expected = _imported(run, f"out/w_after{number}/")
    theirs = flatten(expected["params"])

    def compare(found, state):
        ours, stats = flatten(state.params), flatten(state.batch_stats)
        assert set(ours) == set(theirs)
        for path, value in theirs.items():
            if _is_free_of_gradient(path):
                continue
            allowed = tolerance * np.abs(value).max() + number * _rounding_of_adam(run, path)
            assert (np.abs(ours[path] - value) <= allowed).all(), path
        for path, value in flatten(expected["batch_stats"]).items():
            assert_close(stats[path], value, tolerance, path)

    if which == "first":
        compare(found, first)
    else:
        compare_after_steps(run, compare, found, last)


@pytest.mark.golden
def test_frozen_weights_stay(finished):
    run, _, _, last = finished
    before = flatten(run.state.frozen_params)
    assert before
    for path, leaf in flatten(last.frozen_params).items():
        np.testing.assert_array_equal(leaf, before[path])


@pytest.mark.golden
def test_learning_rates(finished):
    run, *_ = finished
    factors = [float(run.schedule(t)) / run.lr for t in range(run.golden.meta["iters"])]
    np.testing.assert_allclose(factors, run.golden["out/lr_factor_used"], rtol=1e-6)


@pytest.mark.golden
def test_predictions_and_guidance_of_the_first_iteration(finished):
    run, *_ = finished
    golden, views, method = run.golden, run.views(0), run.method
    named = {"x": "x", "w": "w", "w_fp": "fp", "s1": "s1", "s2": "s2"}

    @jax.jit
    def predict(state, views, masks):
        outputs, _ = forward(
            run.modules.model, run.frozen.text, state.student(), method.passes(views),
            perturb=functools.partial(method.perturb, masks), names=named.values(),
        )  # fmt: skip
        size = views.x.shape[1:3]
        return {
            name: bilinear(outputs.logits[view], size, align_corners=False)
            for name, view in named.items()
        }

    for name, ours in predict(run.state, views, run.masks(0)).items():
        expected = nhwc(golden[f"out/0/pred_{name}_s0_every3px"])
        assert_close(ours[:1, ::3, ::3], expected, 1e-4, name)
    if not method.guided:
        return
    tower = run.modules.guidance_model.tower
    images = jnp.concatenate([stream.w for stream in views.streams.values()])
    if run.modules.model.renormalize:
        images = image_normalization.renormalize(images)
    dense = tower.apply({"params": run.frozen.guidance_params}, images).maps[-1]
    labels = clip_guidance.guidance_labels(
        dense, run.frozen.guidance_text, size=images.shape[1:3],
        threshold=method.guidance_threshold,
    )  # fmt: skip
    near = np.abs(np.asarray(labels.confidence) - method.guidance_threshold) < 1e-5
    differ = np.asarray(labels.label) != golden["out/0/mclip_cat"]
    assert not (differ & ~near).any()


def _imported(run: Run, prefix: str) -> dict:
    golden = run.golden
    named = {key.removeprefix(prefix): golden[key] for key in golden.keys(prefix)}
    return imported(golden, named)


def _rounding_of_adam(run: Run, path: str) -> np.ndarray:
    """How far rounding of the gradient moves each weight in Adam's first step.

    That step is lr·g/(|g| + ε), with the derivative lr·ε/(|g| + ε)²: next to nothing, except where |g| is
    of the size of ε. The rounding of g is what the file says that its own float32 and float64 runs differ
    by in this leaf, three times.
    """
    if not run.gradients:
        run.gradients = flatten(_imported(run, "out/grad0/")["params"])
        per_param = run.golden.meta["float64_comparison"]["per_param"]
        filled = {
            name: np.full_like(run.golden[f"w/{name}"], values["g"], dtype=np.float32)
            for name, values in per_param.items()
            if "g" in values  # running statistics have no gradient
        }
        run.rounding = flatten(imported(run.golden, filled)["params"])
    group = groups_lib.assign(run.state.params, run.groups)[path]
    eps = run.golden.meta["optimizer_defaults"]["eps"]
    rounding = 3.0 * run.rounding[path].astype(np.float64)
    size = np.maximum(np.abs(run.gradients[path]) - rounding, 0.0) + eps
    return np.minimum(2.0, eps * rounding / size**2) * run.lr * group.lr


def _is_free_of_gradient(path: str) -> bool:
    """Leaves whose exact gradient is zero: Adam moves them by rounding noise (METHOD trap 13)."""
    return path.endswith("/key/bias") or path == "decoder/head/bias"
