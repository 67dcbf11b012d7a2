"""Whole training iterations of the published implementation, repeated with our step.

In: a golden file `train_steps_*` (teacher = student, own partner). Out: gradients and states of its
iterations.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from semivl_jax.models import clip_guidance
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.train import optimizer
from semivl_jax.train import param_groups as groups_lib
from semivl_jax.train import state as state_lib
from semivl_jax.train import step as step_lib
from semivl_jax.train.methods.semivl import SemiVL
from semivl_jax.train.methods.unimatch import UniMatch
from semivl_jax.types import StreamViews, Views
from tests import golden_models
from tests.golden_files import Golden, nhwc
from tests.golden_models import class_text, guidance_params, segmenter, variables, vision_tower


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


class GoldenRun:
    """The published run of one file, repeated with our step; `dtype` is the precision of the arithmetic."""

    def __init__(self, name: str, dtype=jnp.float32):
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
        renormalize = cfg["model_args"].get("renorm_clip_img", False)
        tower = vision_tower(clip, table_of=clip["img_size"][0], out_dim=out_dim)
        model = segmenter(golden, crop=meta["crop_size"], renormalize=renormalize)
        self.modules = step_lib.StepModules(
            model=with_dtype(model, dtype), method=self.method, optimizer=tx, total_steps=meta["iters"],
            num_classes=meta.get("num_classes", 0),
            guidance_model=clip_guidance.Guidance(tower=tower.clone(dtype=jnp.dtype(dtype))),
        )  # fmt: skip
        self.frozen = state_lib.Frozen(
            text=self.text(cfg["pl_text"]),
            guidance_params=guidance_params(golden),
            guidance_text=self.text(cfg["mcc_text"]),
        )
        self.state = state_lib.create(trained, frozen, self.stats, tx, ema=False)

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

    def imported(self, prefix: str) -> dict:
        """{"params", "batch_stats"} stored under a prefix."""
        golden = self.golden
        named = {key.removeprefix(prefix): golden[key] for key in golden.keys(prefix)}
        return golden_models.imported(golden, named)


def with_dtype(model: SegmentationModel, dtype) -> SegmentationModel:
    """The model with this precision of the arithmetic."""
    parts = {name: getattr(model, name) for name in ("backbone", "decoder", "conv_encoder")}
    return model.clone(
        **{name: part and part.clone(dtype=jnp.dtype(dtype)) for name, part in parts.items()}
    )


def is_free_of_gradient(path: str) -> bool:
    """Leaves whose exact gradient is zero: Adam moves them by rounding noise (docs/semivl.md 9.13)."""
    return path.endswith("/key/bias") or path == "decoder/head/bias"
