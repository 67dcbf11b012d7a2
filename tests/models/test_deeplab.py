"""The DeepLabV3+ head, alone and behind the residual network of UniMatch: published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import build
from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.resize import bilinear
from semivl_jax.models.resnet import EXPANSION, ResNet
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.train.augment.channel_dropout import drop_channels
from semivl_jax.types import Features
from semivl_jax.weights.tree import check, flatten
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.models.initialisation import random_variables
from tests.weights import converted, published

TOLERANCE = 1e-5


def assert_statistics(actual, weights):
    """Running statistics after a step of training are those of the converted weights after it."""
    expected, actual = flatten(weights["batch_stats"]), flatten(actual["batch_stats"])
    assert expected.keys() == actual.keys()
    for path, value in expected.items():
        assert_close(actual[path], value, TOLERANCE, f"{path} after training")


def after(golden):
    prefix = "out/train/after/"
    return {key.removeprefix(prefix): golden[key] for key in golden.keys(prefix)}


def head_weights(golden, **changed):
    kwargs = golden.meta["kwargs"]
    backbone = published.semivl_backbone(kwargs["c1_in_channels"], kwargs["in_channels"])
    state = {f"decode_head.{name}": array for name, array in (golden.weights() | changed).items()}
    weights = converted.segmenter(state | backbone, image_heads=4)
    return weights, {name: weights.tree[name]["decoder"] for name in ("params", "batch_stats")}


@pytest.mark.golden
@pytest.mark.parametrize("file", files("dlv3p_head*"))
def test_the_head_evaluates_and_trains_as_published(file):
    golden = Golden(file)
    kwargs, (weights, variables) = golden.meta["kwargs"], head_weights(golden)
    sizes = weights.sizes["deeplab_decoder"]
    assert sizes["num_classes"] == kwargs["num_classes"]
    assert sizes["low_channels"] == kwargs["c1_channels"]
    model = DeepLabHead(**sizes, dilations=(1, *kwargs["dilations"]))
    low, high = nhwc(golden["in/feat0"]), nhwc(golden["in/feat1"])
    evaluate = jax.jit(lambda *maps: model.apply(variables, Features(maps=maps)))
    logits = evaluate(low, high)
    assert_close(logits, nhwc(golden["out/eval/logits"]), TOLERANCE, "logits")
    resized = bilinear(logits, (kwargs["img_size"],) * 2, align_corners=False)
    assert_close(resized, nhwc(golden["out/eval/pred_masks"]), TOLERANCE, "pred_masks")
    for key in golden.keys("in/"):
        if key.count("/") == 2:  # low-level maps on another grid
            name = key.split("/")[1]
            other = evaluate(nhwc(golden[key]), high)
            assert_close(other, nhwc(golden[f"out/{name}/logits"]), TOLERANCE, name)
    logits, state = jax.jit(
        lambda *maps: model.apply(
            variables, Features(maps=maps), train=True, mutable=["batch_stats"]
        )
    )(low, high)
    assert_close(logits, nhwc(golden["out/train/logits"]), TOLERANCE, "training logits")
    assert_statistics(state, head_weights(golden, **after(golden))[1])


def unimatch(golden, **changes):
    meta = golden.meta
    assert meta["expansion"] == EXPANSION
    backbone = ResNet(
        stem_channels=meta["stem"][-1],
        blocks=tuple(meta["layers"]),
        channels=tuple(meta["planes"]),
        dilated=tuple(meta["replace_stride_with_dilation"]),
        **changes,
    )
    decoder = DeepLabHead(
        meta["num_classes"],
        channels=meta["fuse_channels"],
        low_channels=meta["reduce_channels"],
        dilations=(1, *meta["dilations"]),
        align_corners=True,
    )
    return SegmentationModel(backbone, decoder, crop=64)


@pytest.mark.golden
@pytest.mark.parametrize("file", files("dlv3p_unimatch*"))
def test_unimatch_evaluates_and_trains_as_published(file):
    golden = Golden(file)
    model, weights = unimatch(golden), converted.segmenter(golden.weights())
    assert weights.sizes["backbone"] == {
        "stem_channels": model.backbone.stem_channels,
        "blocks": list(model.backbone.blocks),
        "channels": list(model.backbone.channels),
    }
    variables, image = weights.tree, jnp.asarray(nhwc(golden["in/img"]))
    check(variables, jax.eval_shape(model.init, jax.random.key(0), image, None), source=file)
    masks = tuple(jnp.asarray(nhwc(golden[f"in/fp_mask{i}"])) > 0 for i in (0, 1))

    @jax.jit
    def run(image):
        every = unimatch(golden, out_indices=(0, 1, 2, 3))
        stages = every.apply(variables, image, method="encode").maps
        features = drop_channels(model.apply(variables, image, method="encode"), masks, rate=0.5)
        size = image.shape[1:3]
        perturbed = model.apply(variables, features, None, size=size, method="decode")
        trained = model.apply(variables, image, None, train=True, mutable=["batch_stats"])
        return stages, model.apply(variables, image, None), perturbed, trained

    stages, logits, perturbed, (in_training, state) = run(image)
    for key in golden.keys("out/eval/c"):
        stage, _, step = key.removeprefix("out/eval/c").partition("_ch")
        ours = stages[int(stage) - 1][..., :: int(step or 1)]
        assert_close(ours, nhwc(golden[key]), TOLERANCE, key)
    for key in ("logits", "need_fp_logits"):
        assert_close(logits, nhwc(golden[f"out/eval/{key}"]), TOLERANCE, key)
    assert_close(perturbed, nhwc(golden["out/eval/need_fp_logits_fp"]), TOLERANCE, "perturbed")
    assert_close(in_training, nhwc(golden["out/train/logits"]), TOLERANCE, "training logits")
    assert_statistics(state, converted.segmenter(golden.weights() | after(golden)).tree)


class FirstMap(DeepLabHead):
    """Passes its first map on."""

    def __call__(self, features, text=None, *, train=False):
        return features.maps[0]


class EveryFourthPixel(ResNet):
    def __call__(self, image, *, train=False):
        return Features(maps=(image[:, ::4, ::4, :1],))


def test_logits_get_the_images_size_directly_with_corners_aligned():
    """The resize of a linear ramp is a linear ramp from corner to corner; so in evaluation."""
    model = SegmentationModel(EveryFourthPixel(), FirstMap(1), crop=4)
    image = jnp.broadcast_to(jnp.arange(13.0)[None, None, :, None], (1, 9, 13, 3))
    np.testing.assert_allclose(model.apply({}, image, None), image[..., :1], atol=1e-5)
    network = build.window_network(model, None)
    np.testing.assert_allclose(network({}, image), image[..., :1], atol=1e-5)
    assert model.padding_patch is None


def test_bfloat16_keeps_statistics_and_logits_in_float32():
    half = jnp.bfloat16
    backbone = ResNet(
        blocks=(1, 1), channels=(4, 8), dilated=(False,), out_indices=(0, 1), dtype=half
    )
    model = SegmentationModel(backbone, DeepLabHead(3, 8, low_channels=4, dtype=half), crop=16)
    image = jnp.ones((2, 16, 16, 3))
    logits, state = jax.eval_shape(
        lambda variables: model.apply(variables, image, None, train=True, mutable=["batch_stats"]),
        random_variables(model, image, None),
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def test_needs_two_maps():
    features = Features(maps=tuple(jnp.zeros((1, 4, 4, 8)) for _ in range(3)))
    with pytest.raises(ValueError, match="two maps"):
        DeepLabHead(num_classes=2).init(jax.random.key(0), features)
