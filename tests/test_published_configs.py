"""Published configurations: arguments are valid, numbers are the published ones, steps can be traced."""

import functools
import itertools
import json
import re
import subprocess
import sys

import jax
import pytest

from configs import (
    ade,
    arguments,
    cityscapes,
    coco,
    cw_bass,
    semivl_dino,
    unimatch_v2,
    voc,
    voc_ablation,
)
from semivl_jax.config import default_config, validate
from semivl_jax.data import published_splits
from semivl_jax.experiment import build_step, data, experiment, run
from semivl_jax.train import param_groups as groups_lib
from tests.checked_recipes import config_of
from tests.command import environment
from tests.golden_files import OWN, Golden, golden_dir

FAMILIES = {"voc": voc, "coco": coco, "ade": ade, "cityscapes": cityscapes}
NAMED = {"ade_158": "ade:1_128", "voc_92": "voc:92", "coco_232": "coco:1_512",
         "cityscapes_100": "cityscapes:1_30"}  # fmt: skip
SPECS = [
    *(f"{family}:{split},recipe={recipe}" for family, module in FAMILIES.items()
      for split, recipe in itertools.product(module.SPLITS, arguments.RECIPES)),
    *(f"voc_ablation:{row},{split},recipe={recipe}" for row, split, recipe
      in itertools.product(reversed(voc_ablation.ROWS), voc.SPLITS, arguments.RECIPES)),
    *(f"unimatch_v2:{dataset},{split},backbone={backbone},finetune={finetune}"
      for dataset, module in unimatch_v2.FAMILIES.items()
      for split, backbone, finetune
      in itertools.product(module.SPLITS, unimatch_v2.BACKBONES, unimatch_v2.FINETUNE)),
    *(f"semivl_dino:{dataset},{split},backbone={backbone},similarity={similarity}"
      for dataset, module in semivl_dino.FAMILIES.items()
      for split, backbone, similarity
      in itertools.product(module.SPLITS, semivl_dino.BACKBONES, semivl_dino.OUT_INDICES)),
    *(f"cw_bass:{dataset},{split}" for dataset, module in unimatch_v2.FAMILIES.items()
      for split in module.SPLITS),
    *(f"cw_bass:voc,92,threshold={rule}" for rule in cw_bass.RULES),
    *(f"cw_bass:{dataset},{split},version=v1" for dataset in cw_bass.V1_LR
      for split in FAMILIES[dataset].SPLITS),
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_device")


@functools.cache
def abstract(spec):
    return run.abstract_experiment(config_of(spec))


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_argument_describes_a_published_training():
    known = set(default_config().to_dict())
    for spec in SPECS:
        config = config_of(spec)
        validate(config)
        assert set(config.to_dict()) == known
        _, images = data.published_facts(config)
        assert experiment.training_length(config, images)[0] > 5000


# Every encoder and decoder.
TRACED = (
    "coco:1_512",
    "ade:1_128,recipe=supervised",
    "cityscapes:1_30,recipe=paper",
    "voc_ablation:unimatch_r101,92",
    "voc_ablation:unimatch_zegclip,92",
    "voc_ablation:unimatch_vit,92",
    "unimatch_v2:coco,1_512,backbone=dinov2_vits14,finetune=all",
    "unimatch_v2:ade,1_64,backbone=dinov2_vitb14,finetune=none",
    "unimatch_v2:voc,92,backbone=dinov3_vitl16,finetune=all",
)


@pytest.mark.slow
def test_steps_can_be_checked():
    """In a process without the type checks of the tests, as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.checked_recipes", *TRACED],
        env=environment(),
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    for spec, report in json.loads(done.stdout.splitlines()[-1]).items():
        trained, everything = re.search(r"trained ([\d,]+) of ([\d,]+) parameters", report).groups()
        assert (trained != everything) == (config_of(spec).model.finetune != "all"), spec
        assert float(re.search(r"([\d.,]+) GFLOP", report)[1].replace(",", "")) > 100


# Published model: its configuration and the learning rates of the published training; weight decay was 0.01.
MODELS = {
    "voc_semivl": ("voc:92", {"backbone": 1e-6, "decoder": 1e-3}),
    "coco_semivl": ("coco:1_512", {"backbone": 4e-7, "decoder": 4e-3}),
    "ade_semivl": ("ade:1_128", {"backbone": 4e-7, "decoder": 4e-3}),
    "cityscapes_semivl": ("cityscapes:1_30",
                          {"backbone": 5e-6, "decoder": 5e-4, "conv_encoder": 5e-6}),
    "voc_unimatch_r101": ("voc_ablation:unimatch_r101,92", {}),  # not recorded
    "voc_unimatch_zegclip": ("voc_ablation:unimatch_zegclip,92", {"backbone": 1e-3, "decoder": 1e-3}),
    "voc_unimatch_vit": ("voc_ablation:unimatch_vit,92", {"backbone": 1e-7, "decoder": 1e-3}),
    "voc_clip_init": ("voc_ablation:clip_init,92", {"backbone": 1e-7, "decoder": 1e-3}),
    "voc_spatial_finetuning": ("voc_ablation:spatial_finetuning,92",
                               {"backbone": 1e-6, "decoder": 1e-3}),
    "voc_language_decoder": ("voc_ablation:language_decoder,92", {"backbone": 1e-6, "decoder": 1e-3}),
    "voc_clip_guidance": ("voc_ablation:clip_guidance,92", {"backbone": 1e-6, "decoder": 1e-3}),
}  # fmt: skip


# Parameters of the published models that their forward passes never use (docs/models.md): in each of three
# decoder layers a self-attention of 512 channels and a norm; ImageNet's classifier.
UNUSED = {
    "voc_unimatch_zegclip": 3 * (4 * (512 * 512 + 512) + 2 * 512),
    "voc_unimatch_vit": 1000 * (768 + 1),
}


@pytest.fixture(scope="module")
def published():
    path = golden_dir() / "published_models.json"
    return json.loads((path if path.is_file() else OWN / path.name).read_text())


@pytest.mark.golden
@pytest.mark.parametrize("model", MODELS)
def test_models_rates_and_decays_are_the_published_ones(model, published):
    spec, rates = MODELS[model]
    expected, built = published[model], abstract(f"{spec},recipe=paper")
    config, state = built.config, built.abstract_state()
    assert built.info.num_classes == expected["num_classes"]
    assert config.data.crop == expected["crop"]
    unused = UNUSED.get(model, 0)
    assert count(state.params) + unused == expected["trained"]
    assert count((state.params, state.frozen_params)) + unused == expected["total"]
    assert count(built.frozen.guidance_params) == expected["guidance_encoder"]
    owners = groups_lib.assign(state.params, built.modules.groups)
    for part, rate in rates.items():
        assert config.optim.weight_decay == 0.01
        groups = {owner for path, owner in owners.items() if path.startswith(part + "/")}
        assert groups
        for group in groups:
            assert build_step.base_lr(config) * group.lr == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize(
    ("backbone", "finetune", "logged", "unused", "expected"),
    [("dinov2_vits14", "all", 24.8, 74_240, {"backbone": 5e-6, "decoder": 2e-4}),
     ("dinov2_vitb14", "none", 97.5, 295_936, {"decoder": 2e-4})],
)  # fmt: skip
def test_unimatch_v2_is_the_published_one(backbone, finetune, logged, unused, expected):
    """Sizes of the published training logs, with the parameters that our models omit (docs/models.md)."""
    built = abstract(f"unimatch_v2:voc,92,backbone={backbone},finetune={finetune}")
    state = built.abstract_state()
    everything = count((state.params, state.frozen_params)) + unused
    assert round(everything / 1e6, 1) == logged
    rates = {
        path.split("/")[0]: build_step.base_lr(built.config) * owner.lr
        for path, owner in groups_lib.assign(state.params, built.modules.groups).items()
    }
    assert rates == pytest.approx(expected)
    assert built.schedule.total_steps == 60 * ((10_582 - 92) // 16)


@pytest.mark.parametrize(
    ("spec", "epoch", "steps", "evaluations"),
    [("voc:92", 1311, 104_880, 80), ("coco:1_512", 14_756, 147_560, 10), ("ade:1_128", 2506, 100_240, 40),
     ("cityscapes:1_30", 359, 83_760, 25)],
)  # fmt: skip
def test_lengths_are_the_published_ones(spec, epoch, steps, evaluations):
    """Steps of docs/semivl.md 8; an epoch drops the last incomplete batch; the first is evaluated, too."""
    schedule = abstract(f"{spec},recipe=paper").schedule
    assert schedule.total_steps == steps
    assert min(schedule.evaluation_steps) == epoch
    assert len(schedule.evaluation_steps | {steps}) == evaluations


@pytest.mark.golden
@pytest.mark.parametrize(("number", "family"), [(40, "voc"), (44, "cityscapes")])
def test_settings_are_those_of_the_published_runs(number, family):
    runs = [item["cfg"] for item in Golden("param_groups").meta["items"] if item["exp"] == number]
    assert runs
    for theirs in runs:
        config = config_of(f"{family}:{theirs['split']},recipe=paper")
        keys = theirs["optimizer"]["paramwise_cfg"]["custom_keys"]
        ours = {
            "lr": config.optim.lr,
            "decay": config.optim.weight_decay,
            "backbone": config.optim.backbone_lr,
            "conv_encoder": config.optim.conv_encoder_lr,
            "head": config.optim.decoder_lr,
            "crop": config.data.crop,
            "batch": config.batch,
            "mode": config.method.confidence_mode,
            "threshold": config.method.confidence_threshold,
            "rate": config.method.perturbation_rate,
            "guidance": [config.method.guidance_start, config.method.guidance_end],
            "guidance_threshold": config.method.guidance_threshold,
            "reduction": config.method.guidance_reduction,
            "evaluation": config.evaluation.mode,
            "every": config.evaluation.every_epochs,
            "renormalize": config.model.renormalize,
            "steps": config.steps or None,
        }
        assert ours == {
            "lr": theirs["optimizer"]["lr"],
            "decay": theirs["optimizer"]["weight_decay"],
            **{name: keys[name]["lr_mult"] for name in ("backbone", "conv_encoder", "head")},
            "crop": theirs["crop_size"],
            "batch": theirs["n_gpus"] * theirs["n_nodes"] * theirs["batch_size"],
            "mode": theirs["conf_mode"],
            "threshold": theirs["conf_thresh"],
            "rate": theirs["fp_rate"],
            "guidance": theirs["maskclip_consistency_lambda"],
            "guidance_threshold": theirs["mcc_conf_thresh"],
            "reduction": theirs["mcc_loss_reduce"],
            "evaluation": theirs["eval_mode"],
            "every": theirs["eval_every_n_epochs"],
            "renormalize": theirs["model_args"].get("renorm_clip_img", False),
            "steps": theirs["iters"],
        }


def test_labelled_counts_are_those_of_the_lists():
    for family, module in FAMILIES.items():
        dataset = config_of(f"{family}:").data.dataset
        for split, published in published_splits.lists_of(dataset).items():
            assert module.SPLITS[split] == published.count
        assert set(module.SPLITS) >= set(published_splits.lists_of(dataset))


@pytest.mark.parametrize(("name", "spec"), NAMED.items())
def test_short_names_are_their_split(name, spec):
    assert config_of(name).to_dict() == config_of(spec).to_dict()
    assert config_of(f"{name}:recipe=paper") == config_of(f"{spec},recipe=paper")


def test_recipes():
    method = config_of("voc:92,recipe=paper").method
    assert (method.teacher, method.cutmix_partner) == ("student", "same_image")
    # The criterion belongs to the decoder.
    method = config_of("voc_ablation:unimatch_zegclip,92,recipe=fixmatch").method
    assert (method.name, method.criterion, method.dropout_passes) == (
        "fixmatch",
        "focal_dice",
        "first",
    )


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "voc:93",
            "split '93' in --config=configs/voc.py:93 is unknown; choose one of 92, 183, 366",
        ),
        (
            "voc:92,recipe=papr",
            "recipe 'papr' .* choose one of default, paper, unimatch, fixmatch, supervised",
        ),
        ("voc:92,teacher=ema", "'teacher=ema' .* is unknown; it takes split=…, recipe=…"),
        ("voc:92,split=183", "gives split twice"),
        ("voc:92,paper,x", "'x' in .* is unknown; it takes split=…, recipe=…"),
        ("unimatch_v2:coco,92", "split '92' .* choose one of 1_512, 1_256"),
        ("unimatch_v2:pascal,92", "dataset 'pascal' .* choose one of voc, coco, ade, cityscapes"),
        ("voc_ablation:clip", "row 'clip' .* choose one of unimatch_r101, unimatch_zegclip"),
    ],
)
def test_unknown_arguments_are_refused_with_the_right_ones(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_of(spec)


def test_learning_rate_rule():
    config = config_of("voc:92")
    config.batch = 16
    assert build_step.base_lr(config) == 1e-4
    config.optim.lr_scaling = "linear"
    assert build_step.base_lr(config) == 2e-4
