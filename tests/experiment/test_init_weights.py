"""Initial weights: files by part, names and shapes, precedence."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import tiny
from semivl_jax.config import set_method, validate
from semivl_jax.experiment import build_step, init_weights, run
from semivl_jax.models import build
from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.mobile import MobileNet, Stage
from semivl_jax.models.pos_embed import resize_table
from semivl_jax.models.resnet import ResNet, ResNetV1c
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.weights import files, store
from tests.models import hugging_face
from tests.models.initialisation import random_variables
from tests.photos import make_folder
from tests.weights import converted


def model(grid=(4, 4), classes=3, conv=False):
    tower = VisionTransformer(
        **CLIP, patch_size=8, width=8, depth=1, num_heads=2, mlp_dim=16, out_dim=8, grid=grid,
        out_indices=(0, 1),
    )  # fmt: skip
    return SegmentationModel(
        backbone=tower,
        decoder=DeepLabHead(num_classes=classes, channels=8, low_channels=4),
        crop=8 * grid[0],
        conv_encoder=ResNetV1c(stem_channels=8, base_channels=4, num_blocks=1) if conv else None,
    )


def weights_of(segmenter, **changes):
    image = np.zeros((1, segmenter.crop, segmenter.crop, 3), np.float32)
    tree = random_variables(segmenter, image, None)
    contents = {"format": files.SEGMENTER, "kind": "semivl", "sizes": {}, "tree": tree}
    return files.Weights(**{**contents, **changes})


def config_with(**keys):
    config = tiny.get_config()
    for key, value in keys.items():
        config.model[key] = str(value)
    return config


def encoder_config(backbone):
    """A transformer with a DeepLab head."""
    config = tiny.get_config()
    config.model.backbone, config.model.decoder = backbone, "deeplab"
    config.model.out_indices = (1, 3)
    config.model.init, config.model.finetune = "random", "all"
    set_method(config, "unimatch")
    return config


def begin(segmenter, config, clip=None):
    return init_weights.variables(config, segmenter, None, clip=clip)


def test_a_whole_segmenter_wins_over_everything_and_may_lie_in_a_folder(tmp_path):
    weights = weights_of(model())
    files.save(tmp_path / "model.safetensors", weights)
    clip = {"cls": np.ones(3)}
    for path in (tmp_path, tmp_path / "model.safetensors"):
        start = begin(model(), config_with(checkpoint=path), clip)
        jax.tree.map(np.testing.assert_array_equal, start, weights.tree)
    assert begin(model(), config_with(), clip)["params"] == {"backbone": clip}
    assert begin(model(), config_with()) is None


def test_the_position_table_follows_the_crop_and_nothing_else_may_differ(tmp_path):
    path, weights = tmp_path / "w.safetensors", weights_of(model())
    files.save(path, weights)
    table = weights.tree["params"]["backbone"]["pos_embedding"]
    start = begin(model(grid=(6, 6)), config_with(checkpoint=path))
    np.testing.assert_array_equal(
        start["params"]["backbone"]["pos_embedding"], resize_table(table, (4, 4), (6, 6))
    )
    sentence = r"model\.checkpoint = .*w\.safetensors does not fit the model\. of another shape: "
    with pytest.raises(ValueError, match=sentence + "params/decoder/classifier"):
        begin(model(classes=4), config_with(checkpoint=path))
    with pytest.raises(ValueError, match="missing: batch_stats/conv_encoder/"):
        begin(model(conv=True), config_with(checkpoint=path))
    with pytest.raises(ValueError, match=r"gone: no such file"):
        begin(model(), config_with(checkpoint=tmp_path / "gone"))
    files.save(path, dataclasses.replace(weights, format=files.BACKBONE))
    with pytest.raises(ValueError, match=r"takes .*; name it in model\.backbone_weights"):
        begin(model(), config_with(checkpoint=path))
    store.save_tree(path, weights.tree, {})
    with pytest.raises(ValueError, match=r"is no weight file of semivl_jax, .*semivl_jax\.convert"):
        begin(model(), config_with(checkpoint=path))


def test_encoders_start_alone(tmp_path):
    backbone = ResNet(
        stem_channels=8, blocks=(1, 1), channels=(4, 8), dilated=(True,), out_indices=(0, 1)
    )
    segmenter = model(conv=True).clone(backbone=backbone)
    image = np.zeros((1, 64, 64, 3), np.float32)
    trees = {
        part: random_variables(getattr(segmenter, part), image, seed=seed)
        for seed, part in enumerate(("backbone", "conv_encoder"))
    }
    for part, tree in trees.items():
        contents = files.Weights(format=files.BACKBONE, kind="resnet", sizes={}, tree=tree)
        files.save(tmp_path / f"{part}.safetensors", contents)
    config = config_with(
        backbone_weights=tmp_path / "backbone.safetensors",
        conv_encoder_weights=tmp_path / "conv_encoder.safetensors",
    )
    start = begin(segmenter, config)
    for name in ("params", "batch_stats"):
        assert start[name].keys() == trees.keys()
        for part, tree in trees.items():
            jax.tree.map(np.testing.assert_array_equal, start[name][part], tree[name])
    config.model.conv_encoder_weights = config.model.backbone_weights
    with pytest.raises(ValueError, match=r"model\.conv_encoder_weights = .* does not fit"):
        begin(segmenter, config)


def test_light_networks_start_without_the_classifier_and_with_their_own_padding(tmp_path):
    path, stages = tmp_path / "w.safetensors", (Stage(3, 1, 4, 1, 1), Stage(5, 1, 8, 2))
    encoder = MobileNet(stages, tf=True, out_indices=(0, 1))
    whole = encoder.clone(head_channels=6, num_classes=5)
    tree = random_variables(whole, np.zeros((1, 32, 32, 3), np.float32))
    sizes = {"tf": True, "head_channels": 6, "num_classes": 5}
    contents = files.Weights(format=files.BACKBONE, kind="mobile", sizes=sizes, tree=tree)
    files.save(path, contents)
    segmenter, config = model().clone(backbone=encoder), config_with(backbone_weights=path)
    start = begin(segmenter, config)
    for name in ("params", "batch_stats"):
        found, expected = start[name]["backbone"], dict(tree[name])
        assert expected.keys() - found.keys() <= {"head", "classifier"}
        jax.tree.map(np.testing.assert_array_equal, found, {k: expected[k] for k in found})
    other = model().clone(backbone=encoder.clone(tf=False))
    with pytest.raises(
        ValueError, match=r"another padding, .*set model\.backbone = 'efficientnet_l"
    ):
        begin(other, config)


@pytest.mark.parametrize("backbone", ["augreg_b16", "siglip_b16"])
def test_towers_of_big_vision_start_at_the_grid_of_the_crop(tmp_path, backbone):
    config = encoder_config(backbone)
    validate(config)
    segmenter = build.segmenter(config, num_classes=3, clip_sizes={})
    stored = segmenter.backbone.clone(grid=(6, 6))
    params = random_variables(stored, np.zeros((1, 48, 48, 3), np.float32))["params"]
    kind, tree = files.BACKBONE, {"params": params}
    if backbone == "siglip_b16":  # both towers in one file
        kind, tree = files.SIGLIP, {"params": {"img": params, "txt": {}, "t": np.ones(1)}}
    path = tmp_path / "w.safetensors"
    files.save(path, files.Weights(format=kind, kind="big_vision", sizes={}, tree=tree))
    config.model.backbone_weights = str(path)
    start = begin(segmenter, config)["params"]["backbone"]
    whole = np.pad(params["pos_embedding"], ((0, 0), (1, 0), (0, 0)))
    expected = resize_table(whole, (6, 6), (4, 4))[:, 1:]
    np.testing.assert_array_equal(start["pos_embedding"], expected)
    without = {name: tree for name, tree in start.items() if name != "pos_embedding"}
    jax.tree.map(np.testing.assert_array_equal, without, {name: params[name] for name in without})


@pytest.mark.parametrize("backbone", ["imagenet_vit", "dinov2_vits14"])
def test_converted_encoders_start_with_the_features_of_another_library(tmp_path, backbone):
    """A state dict under timm's names is converted by the command, named in the configuration and applied."""
    torch, transformers = hugging_face.libraries()
    config = encoder_config(backbone)
    segmenter = build.segmenter(config, num_classes=3, clip_sizes={})
    tower = segmenter.backbone
    side = tower.patch_size * tower.grid[0]
    sizes = {
        "hidden_size": tower.width, "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.num_heads, "patch_size": tower.patch_size, "image_size": side,
    }  # fmt: skip
    if backbone == "imagenet_vit":
        options = transformers.ViTConfig(
            **sizes, intermediate_size=tower.mlp_dim, layer_norm_eps=1e-6
        )
        theirs = transformers.ViTModel(options, add_pooling_layer=False)
    else:
        options = transformers.Dinov2Config(**sizes, mlp_ratio=tower.mlp_dim // tower.width)
        theirs = transformers.Dinov2Model(options)
    hugging_face.randomize(theirs, torch)
    state = hugging_face.timm_state(theirs)
    path = converted.through(tmp_path, state, image_heads=tower.num_heads)
    config.model.backbone_weights = str(path)
    params = begin(segmenter, config)["params"]["backbone"]
    image = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        last = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    features = jax.jit(tower.apply)({"params": params}, image)
    np.testing.assert_allclose(
        features.maps[-1], last[:, 1:].reshape(features.maps[-1].shape), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("backbone_weights", r"is not read by model\.backbone = 'clip_vit'"),
        ("conv_encoder_weights", r"is not read by model\.conv_encoder = 'none'"),
    ],
)
def test_weights_that_nothing_reads(key, sentence):
    with pytest.raises(ValueError, match=rf"model\.{key} = 'x' {sentence}"):
        validate(config_with(**{key: "x"}))


def test_missing_parts_are_initialised():
    segmenter = model()
    shapes = jax.eval_shape(lambda: build_step.init_variables(segmenter, None, 0))
    clip = jax.tree.map(lambda leaf: np.ones(leaf.shape), shapes["params"]["backbone"])
    config = tiny.get_config()
    set_method(config, "supervised")
    config.model.decoder = "deeplab"
    config.model.out_indices = (0, 1)
    names = ("patch_size", "width", "depth", "num_heads", "mlp_dim", "out_dim")
    sizes = {name: getattr(segmenter.backbone, name) for name in names}
    modules, _ = build_step.build_modules(
        config, num_classes=3, clip_sizes=sizes, text=None, total_steps=1
    )
    modules = dataclasses.replace(modules, model=segmenter)
    state = jax.eval_shape(
        lambda start: build_step.create_state(modules, None, start),
        {"params": {"backbone": clip}},
    )
    assert set(state.student()["params"]) == {"backbone", "decoder"}
    assert set(state.batch_stats) == {"decoder"}


def test_a_missing_file_is_an_error_before_the_folder_is_claimed(tmp_path):
    config = tiny.get_config(str(make_folder(tmp_path / "photos")))
    config.data.directory = str(tmp_path / "prepared")
    config.compilation_cache = ""
    config.batch = 8
    config.model.checkpoint = str(tmp_path / "gone")
    with pytest.raises(ValueError, match="gone: no such file"):
        run.train(config, str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()
    config.model.checkpoint = ""
    with pytest.raises(ValueError, match="holds no run; train first"):
        run.evaluate(config, str(tmp_path / "work"))
