from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import clip_guidance, image_normalization
from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.mobile import MobileNet, Stage
from semivl_jax.models.resize import bilinear
from semivl_jax.models.resnet import ResNet
from semivl_jax.models.segmentation_model import SegmentationModel, applied_in_training
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.train.augment.channel_dropout import drop_channels
from semivl_jax.types import IGNORE_INDEX
from semivl_jax.weights.tree import check
from tests import golden_models
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.golden_models import class_text
from tests.models.initialisation import random_variables

TOLERANCE = 2e-5
FILES = files("vlm_forward*")


def golden_model(golden):
    model = golden_models.segmenter(
        golden,
        crop=golden.meta["img_size"],
        renormalize=golden.meta["build_cfg"]["model_args"]["renorm_clip_img"],
    )
    return model, golden_models.variables(golden)


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_logits_as_published(file):
    golden = Golden(file)
    model, variables = golden_model(golden)
    text, rate = class_text(golden["in/text_class"]), golden.meta["build_cfg"]["fp_rate"]
    check(
        variables,
        {"batch_stats": {}}
        | jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)), text),
        source=file,
    )

    @jax.jit
    def forward(variables, image, masks):
        features = model.apply(variables, image, method="encode")
        both = jax.tree.map(
            lambda *maps: jnp.concatenate(maps), features, drop_channels(features, masks, rate=rate)
        )
        logits = model.apply(variables, both, text, method="decode")
        return jnp.split(bilinear(logits, image.shape[1:3], align_corners=False), 2)

    for name, facts in golden.meta["inputs"].items():
        image = nhwc(golden[f"in/{name}/img"])
        masks = tuple(
            jnp.asarray(nhwc(golden[f"in/{name}/fp_mask{j}"]), bool)
            for j in range(facts["n_fp_masks"])
        )
        logits, perturbed = forward(variables, image, masks)
        assert_close(logits, nhwc(golden[f"out/{name}/logits"]), TOLERANCE, f"{name} logits")
        expected = nhwc(golden[f"out/{name}/logits_fp"])
        assert_close(perturbed, expected, TOLERANCE, f"{name} perturbed logits")


@pytest.mark.golden
@pytest.mark.parametrize("file", FILES)
def test_guidance_labels_as_published(file):
    golden = Golden(file)
    kwargs, state = golden.meta["clip_encoder"], golden.weights("clip_encoder.")
    tower = golden_models.vision_tower(
        kwargs,
        table_of=golden.meta["clip_encoder_img_size"],
        out_dim=state["proj.weight"].shape[0],
    )
    params = golden_models.guidance_params(golden)
    concepts = class_text(golden["in/text_concept"], golden.meta["class_to_concept_idx"])
    for name in golden.meta["inputs"]:
        image = jnp.asarray(nhwc(golden[f"in/{name}/img"]))
        if golden.meta["build_cfg"]["model_args"]["renorm_clip_img"]:
            image = image_normalization.renormalize(image)
        dense = jax.jit(tower.apply)({"params": params}, image).maps[-1]
        prefix = f"out/{name}/maskclip_label_"
        for key in golden.keys(prefix):
            threshold = float(key.removeprefix(prefix))
            labels = clip_guidance.guidance_labels(
                dense, concepts, size=image.shape[1:3], threshold=threshold
            )
            sure = np.abs(np.asarray(labels.confidence) - threshold) > 1e-5
            actual, expected = np.asarray(labels.label)[sure], golden[key][sure]
            np.testing.assert_array_equal(actual, expected, err_msg=key)
            assert sure.mean() > 0.99
            assert IGNORE_INDEX not in expected or IGNORE_INDEX in actual


@pytest.fixture(scope="module")
def tiny():
    sizes = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16, "out_dim": 16}
    tower = VisionTransformer(**CLIP, **sizes, grid=(4, 4), out_indices=(0, 2))
    decoder = DeepLabHead(num_classes=3, channels=8, low_channels=4)
    model = SegmentationModel(backbone=tower, decoder=decoder, crop=16)
    image = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
    return model, random_variables(model, image, None), image


def test_encode_and_decode_apart(tiny):
    model, variables, image = tiny
    image = image[:, :, :12]
    whole = jax.jit(model.apply)(variables, image, None)
    assert whole.shape == (*image.shape[:3], 3)
    encode = jax.jit(partial(model.apply, method=SegmentationModel.encode))
    decode = jax.jit(partial(model.apply, text=None, method=SegmentationModel.decode))
    features = encode(variables, image)
    logits = decode(variables, jax.tree.map(lambda maps: jnp.roll(maps, -1, axis=0), features))
    resized = bilinear(logits, image.shape[1:3], align_corners=False)
    np.testing.assert_allclose(resized, np.roll(whole, -1, axis=0), atol=1e-5)


@pytest.mark.parametrize(
    "backbone",
    [
        MobileNet(stages=(Stage(3, 1, 4, 1), Stage(5, 2, 8, 2)), out_indices=(0, 1), tf=True),
        ResNet(
            stem_channels=8, blocks=(1, 1), channels=(4, 8), dilated=(True,), out_indices=(0, 1)
        ),
    ],
    ids=["mobile", "resnet"],
)
def test_frozen_batch_norms_use_and_keep_their_statistics(backbone):
    model = SegmentationModel(
        backbone=backbone,
        decoder=DeepLabHead(3, channels=8, low_channels=4, aspp_channels=8),
        crop=33,
        frozen_batch_norm=True,
    )
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 33, 33, 3)), jnp.float32)
    variables = random_variables(model, image, None)

    def train(model):
        features, stats = applied_in_training(
            model, variables, image, method="encode", dropout=None
        )
        return features.maps, stats["backbone"]

    evaluated = model.apply(variables, image, method="encode").maps
    maps, stats = train(model)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"]["backbone"])
    for ours, expected in zip(maps, evaluated, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    maps, stats = train(model.clone(frozen_batch_norm=False))
    assert abs(maps[-1] - evaluated[-1]).max() > 0.1
    changed = jax.tree.map(
        lambda new, old: bool((new != old).any()), stats, variables["batch_stats"]["backbone"]
    )
    assert all(jax.tree.leaves(changed))
