"""What users get wrong ends in one sentence that names it, and exit code 2; nothing is lost."""

import json
from contextlib import closing

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import tiny
from semivl_jax.config import validate
from semivl_jax.experiment import run as run_lib
from semivl_jax.experiment import workdir
from semivl_jax.models import build
from semivl_jax.train.checkpoint import Checkpoints, LoopState
from semivl_jax.weights import towers
from tests.command import run
from tests.photos import make_folder


def changed(**fields) -> ConfigDict:
    config = tiny.get_config()
    for key, value in fields.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__resize": "squash"}, r"data\.resize = 'squash' is unknown; choose one of ratio"),
        ({"optim__lr": 0.0}, r"optim\.lr = 0\.0 must be greater than 0"),
        ({"data__workers": -1}, r"data\.workers = -1 must be 0 or more"),
        (
            {"data__rare_class_share": 1.5},
            r"data\.rare_class_share = 1\.5 must be a share from 0 to 1",
        ),
        (
            {"method__guidance_threshold": 1.5},
            r"method\.guidance_threshold = 1\.5 must lie between",
        ),
        (
            {"method__confidence_mode": "pixel"},
            r"method\.confidence_mode = 'pixel' .* choose one of",
        ),
        (
            {"method__guidance_reduction": "sum"},
            r"method\.guidance_reduction = 'sum' .* mean_valid",
        ),
        ({"method__ohem_min_kept": -1}, r"method\.ohem_min_kept = -1 must be 0 or more"),
        (
            {"method__perturbation_rate": 1.0},
            r"method\.perturbation_rate = 1\.0 must be 0 or more and below",
        ),
        ({"steps": 0, "epochs": 0.0}, r"steps = 0 and epochs = 0 leave nothing to train"),
        ({"data__dataset": "folder"}, r"data\.folder is empty; name the folder"),
        ({"data__scale_max": 0.1}, r"data\.scale_max = 0\.1 is below data\.scale_min"),
        ({"model__weights": ""}, r"method\.name = 'semivl' needs CLIP weights"),
        (
            {"evaluation__stride": 64.0},
            r"evaluation\.stride = 64\.0 is larger than data\.crop = 32",
        ),
        (
            {"evaluation__mode": "sliding_window", "evaluation__short_side": 64},
            r"evaluation\.short_side = 64 resizes it; set evaluation\.short_side = 0",
        ),
        ({"evaluation__every_steps": 0, "evaluation__every_epochs": 0}, "never evaluate"),
        ({"accumulation": 0}, r"accumulation = 0 must be greater than 0"),
        (
            {"accumulation": 2, "method__criterion": "ohem"},
            r"accumulation = 2 does not go with method\.criterion = 'ohem'",
        ),
        (
            {"accumulation": 2, "method__dropout_passes": "all"},
            r"accumulation = 2 does not go with method\.dropout_passes = 'all'",
        ),
        (
            {"mesh__classes": 2, "model__decoder": "deeplab"},
            r"mesh\.classes = 2 splits what the decoder 'vlg' .* set mesh\.classes = 1",
        ),
        (
            {"model__weights": "demo", "model__init": "random"},
            r"model\.init = 'random' with model\.finetune = 'spatial' would freeze",
        ),
    ],
)
def test_rules_between_values(fields, message):
    with pytest.raises(ValueError, match=message):
        validate(changed(**fields))


@pytest.mark.parametrize(
    ("out_indices", "message"),
    [
        ((0, 1, 7), r"model\.out_indices = \(0, 1, 7\): choose .* 0 to 2 \(the dense embedding\)"),
        ((), r"model\.out_indices = \(\): choose one or more"),
        ((0, 1), r"model\.out_indices = \(0, 1\) lack the dense embedding.*end them with 2"),
    ],
)
def test_out_indices_that_the_tower_or_the_decoder_cannot_use(out_indices, message):
    with pytest.raises(ValueError, match=message):
        build.segmenter(
            changed(model__out_indices=out_indices),
            num_classes=2,
            clip_sizes=towers.IMAGE_SIZES["tiny"],
        )


def test_workdir_of_another_configuration(tmp_path):
    workdir.claim(tmp_path, changed())
    workdir.claim(tmp_path, changed(data__workers=4, log_every=1, max_skipped_steps=9))
    workdir.claim(tmp_path, changed(mesh__fsdp=2, accumulation=2))
    workdir.claim(tmp_path, changed(data__folder="/new/photos"))
    with pytest.raises(ValueError, match=r"belongs to a run with optim\.lr = 0\.0001 \(now 0\.5\)"):
        workdir.claim(tmp_path, changed(optim__lr=0.5))
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 1e-4


def test_a_key_of_a_newer_version_has_its_default_in_older_runs(tmp_path):
    workdir.claim(tmp_path, changed())
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["data"]["rare_class_share"], stored["method"]["confidence_mode"], stored["mesh"]
    path.write_text(json.dumps(stored))
    workdir.check(tmp_path, changed())
    with pytest.raises(ValueError, match=r"data\.rare_class_share = 0\.0 \(now 0\.5\)"):
        workdir.check(tmp_path, changed(data__rare_class_share=0.5))


def test_lists_that_moved_with_their_folder(tmp_path):
    workdir.claim(tmp_path, changed(data__split="/old/photos/few.txt", data__folder="/old/photos"))
    workdir.claim(tmp_path, changed(data__split="/new/photos/few.txt", data__folder="/new/photos"))
    for split in ("/new/photos/more.txt", "1_4", "few.txt"):
        with pytest.raises(
            ValueError, match=r"belongs to a run with data\.split = '/new/photos/few"
        ):
            workdir.claim(tmp_path, changed(data__split=split))


def test_evaluation_of_a_run_that_is_not_there_leaves_no_trace(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere holds no run; train first, or name another"):
        run_lib.evaluate(changed(), str(tmp_path / "nowhere"))
    assert not list(tmp_path.iterdir())


def test_checkpoint_that_cannot_be_restored_is_named(tmp_path):
    with closing(Checkpoints(tmp_path / "checkpoints", keep=1)) as checkpoints:
        with pytest.raises(ValueError, match=r"checkpoints holds no checkpoint; train first"):
            checkpoints.restore({"weight": np.zeros(3)})
        checkpoints.save({"weight": np.zeros(3)}, LoopState(next_step=5))
        checkpoints.wait()
        for file in (tmp_path / "checkpoints" / "5" / "progress").iterdir():
            file.write_text('{"next_st')
        with pytest.raises(ValueError, match=r"checkpoints/5 cannot be restored"):
            checkpoints.restore({"weight": np.zeros(3)})


def test_an_error_in_the_data_is_one_sentence(tmp_path):
    """Errors in the command itself: test_help."""
    folder = make_folder(tmp_path / "photos")
    mask = folder / "masks" / "train" / "photo_00.png"
    Image.fromarray(np.full((40, 48), 9, np.uint8)).save(mask)
    result = run(f"--config=configs/tiny.py:{folder}", f"--config.data.directory={tmp_path}/d")
    assert result.returncode == 2, result.stdout
    assert "Traceback" not in result.stdout
    assert f"mask {mask} has the value 9" in result.stdout
