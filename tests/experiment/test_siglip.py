"""SigLIP 2 in place of CLIP: guidance, language-guided decoder, prediction of any classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.inference import bundle
from semivl_jax.inference.load import open_model
from semivl_jax.models import build
from semivl_jax.weights import convert
from semivl_jax.weights.tree import flatten
from tests.train import tiny_experiment
from tests.weights import siglip_folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    siglip_folder.make(folder)
    convert.convert_file(folder, folder / "ours.safetensors")
    return folder / "ours.safetensors"


def scores(model, image):
    """Of one window of the model's size."""
    return np.asarray(model.network(model.variables, jnp.asarray(image)))


def test_training_and_prediction_with_other_classes(weights, tmp_path):
    # The sigmoid of a random tower is far below any threshold but 0.
    built = tiny_experiment.build(model__weights=str(weights), method__guidance_threshold=0.0)
    state, metrics = tiny_experiment.step_of(built)(
        built.init_state(), tiny_experiment.batch_of(built)
    )
    assert np.isfinite(metrics["loss"]) and metrics["guidance_share"] == 1
    assert built.frozen.guidance_text.logit_bias == pytest.approx(-7)
    trained = flatten(state.params["backbone"])
    assert trained and not any("MAPHead" in path for path in trained)
    bundle.save(
        tmp_path / "serving",
        jax.device_get(state.teacher()),
        text=built.frozen.text,
        tower=built.text_tower,
        clip_sizes=built.clip_sizes,
        info=tiny_experiment.INFO,
        config=built.config,
        metrics={},
    )
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    own, other = (
        open_model(tmp_path, classes=classes, cache="") for classes in (None, ["box", "wooden"])
    )
    assert [scores(model, image).shape[-1] for model in (own, other)] == [4, 2]
    assert (own.info.classes, other.info.classes) == (tiny_experiment.NAMES, ("box", "wooden"))
    # A class has the same text wherever it is named, but for the stored tower's half precision.
    stored = bundle.load(tmp_path)
    sentence = ["a photo of a box"]
    np.testing.assert_allclose(
        stored.tower.embed(sentence), built.text_tower.embed(sentence), rtol=0.02, atol=0.02
    )
    assert stored.tower.tokenizer == built.text_tower.tokenizer
    frozen = open_model(f"clip:{weights}", classes=["disc", "tree", "ground"], cache="", window=40)
    assert scores(frozen, np.zeros((1, 40, 40, 3), np.float32)).shape == (1, 40, 40, 3)


def test_settings_for_clip_only(weights):
    with pytest.raises(ValueError, match=r"are of a SigLIP.* set model\.renormalize = False"):
        tiny_experiment.build(model__weights=str(weights), model__renormalize=True)
    sizes = {"map_head": True}
    config = tiny_experiment.build(method="supervised").config
    config.model.backbone = "prompted_clip_vit"
    with pytest.raises(ValueError, match=r"of a SigLIP; set model\.backbone = 'clip_vit'"):
        build.backbone(config, sizes)
