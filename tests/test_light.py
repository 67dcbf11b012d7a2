"""configs/folder.py:PATH,model=light from training to prediction, with a smaller network."""

import numpy as np
import pytest

from configs import folder
from semivl_jax.config import validate
from semivl_jax.experiment import run
from semivl_jax.inference.segmenter import Segmenter
from semivl_jax.models import build
from semivl_jax.models.mobile import MobileNet, Stage
from semivl_jax.weights import files
from tests.models.initialisation import random_variables
from tests.photos import make_folder

STAGES = (Stage(3, 1, 4, 1, 1), Stage(3, 1, 8, 2, 2), Stage(5, 1, 8, 2, 2), Stage(3, 1, 8, 2, 2))


def test_training_and_prediction(one_device, tmp_path, monkeypatch):
    options = {"stages": STAGES, "stem_channels": 8, "out_indices": (1, 3), "tf": True}
    monkeypatch.setitem(build.BACKBONES, "efficientnet_lite0", (MobileNet, options))
    photos = make_folder(tmp_path / "photos")
    config = folder.get_config(f"{photos},split=2,model=light")
    config.data.directory, config.compilation_cache = str(tmp_path / "prepared"), ""
    config.steps, config.batch, config.data.workers, config.log_every = 2, 2, 0, 1
    config.data.crop, config.evaluation.stride, config.evaluation.short_side = 33, 20.0, 0
    config.data.ratio_long, config.data.ratio_short = 64, 40
    config.deeplab_decoder.channels = config.deeplab_decoder.aspp_channels = 8
    config.evaluation.pictures, config.evaluation.pseudo_label_eval_images = 0, 0
    with pytest.raises(ValueError, match="prepare weights efficientnet_lite0"):
        run.train(config, str(tmp_path / "work"))
    start = random_variables(MobileNet(**options), np.zeros((1, 33, 33, 3), np.float32))
    path = tmp_path / "w.safetensors"
    files.save(
        path,
        files.Weights(format=files.BACKBONE, kind="mobile", sizes={"tf": True}, tree=start),
    )
    config.model.backbone_weights = str(path)
    run.train(config, str(tmp_path / "work"))
    served = files.load(tmp_path / "work/serving/model.safetensors", expect=files.SEGMENTER).tree
    for collection, changes in (("batch_stats", False), ("params", True)):
        kept = served[collection]["backbone"]["stem"]["norm"]
        for name, value in start[collection]["stem"]["norm"].items():
            assert (kept[name] != value).any() == changes, name
    found = Segmenter.load(tmp_path / "work", cache="")(np.zeros((40, 48, 3), np.uint8))
    assert found.labels.shape == (40, 48) and np.isfinite(found.scores).all()


def test_frozen_batch_norms_need_batch_norms():
    config = folder.get_config("/photos")
    config.model.frozen_batch_norm = True
    with pytest.raises(ValueError, match=r"model\.frozen_batch_norm is for encoders with batch"):
        validate(config)
