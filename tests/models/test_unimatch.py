"""The convolutional baseline: UniMatch's DeepLabV3+ on a residual network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from semivl_jax.weights.unimatch import import_resnet, import_unimatch

from semivl_jax.models import build
from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.resnet import EXPANSION, ResNet
from semivl_jax.models.segmenter import SegmentationModel, perturb
from semivl_jax.types import Features
from semivl_jax.weights.tree import check, flatten
from tests.golden_files import Golden, assert_close, nhwc
from tests.models.drawn import drawn
from tests.weights import converted

TOLERANCE = 1e-5


def golden_model(golden, **changes):
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
    return SegmentationModel(backbone, decoder, crop=64, via_square=False, align_corners=True)


@pytest.fixture(scope="module")
def golden():
    return Golden("dlv3p_unimatch")


@pytest.mark.golden
def test_evaluation_and_perturbation_as_published(golden):
    model = golden_model(golden)
    weights = converted.segmenter(golden.weights())
    sizes = dict(weights.sizes["backbone"])
    assert sizes == {
        "stem_channels": model.backbone.stem_channels,
        "blocks": list(model.backbone.blocks),
        "channels": list(model.backbone.channels),
    }
    variables = weights.tree
    image = jnp.asarray(nhwc(golden["in/img"]))
    masks = tuple(jnp.asarray(nhwc(golden[f"in/fp_mask{i}"])) > 0 for i in (0, 1))

    @jax.jit
    def run(image):
        every = golden_model(golden, out_indices=(0, 1, 2, 3)).apply(
            variables, image, method="encode"
        )
        features = model.apply(variables, image, method="encode")
        other = perturb(features, masks, rate=0.5)
        size = image.shape[1:3]
        perturbed = model.apply(variables, other, None, size=size, method="decode")
        return every.maps, model.apply(variables, image, None), perturbed

    stages, logits, perturbed = run(image)
    for i in range(3):
        expected = nhwc(golden[f"out/eval/c{i + 1}_ch4"])
        assert_close(stages[i][..., ::4], expected, TOLERANCE, f"stage {i}")
    assert_close(stages[3], nhwc(golden["out/eval/c4"]), TOLERANCE, "stage 3")
    for key in ("logits", "need_fp_logits"):
        assert_close(logits, nhwc(golden[f"out/eval/{key}"]), TOLERANCE, key)
    assert_close(perturbed, nhwc(golden["out/eval/need_fp_logits_fp"]), TOLERANCE, "perturbed")


@pytest.mark.golden
def test_training_as_published(golden):
    model = golden_model(golden)
    variables = import_unimatch(golden.weights())
    train = jax.jit(
        lambda image: model.apply(variables, image, None, train=True, mutable=["batch_stats"])
    )
    logits, state = train(nhwc(golden["in/img"]))
    assert_close(logits, nhwc(golden["out/train/logits"]), TOLERANCE, "logits")
    prefix = "out/train/after/"
    after = {key.removeprefix(prefix): golden[key] for key in golden.keys(prefix)}
    expected = flatten(import_unimatch(after)["batch_stats"])
    actual = flatten(state["batch_stats"])
    assert expected.keys() == actual.keys()
    for path, value in expected.items():
        assert_close(actual[path], value, TOLERANCE, f"{path} after training")


@pytest.mark.golden
def test_published_names_cover_the_model(golden):
    shapes = jax.eval_shape(
        golden_model(golden).init, jax.random.key(0), jnp.zeros((2, 64, 64, 3)), None
    )
    check(import_unimatch(golden.weights()), shapes, source="dlv3p_unimatch.npz")


def test_published_sizes():
    """Numbers of parameters of the full-size model for 21 classes."""
    model = SegmentationModel(
        ResNet(), DeepLabHead(21, align_corners=True), crop=321, via_square=False
    )
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 321, 321, 3), jnp.float32), None
    )["params"]
    total = {name: sum(leaf.size for leaf in jax.tree.leaves(shapes[name])) for name in shapes}
    assert total == {"backbone": 42_623_936, "decoder": 59_468_085 - 42_623_936}


# Per stage: (stride, dilation) of its first block, and dilation of the others, as torchvision documents
# `replace_stride_with_dilation`.
DILATIONS = {
    (False, False, True): [((1, 1), 1), ((2, 1), 1), ((2, 1), 1), ((1, 1), 2)],
    (False, True, True): [((1, 1), 1), ((2, 1), 1), ((1, 1), 2), ((1, 2), 4)],
}


@pytest.mark.parametrize("dilated", DILATIONS)
def test_stages_of_several_blocks_are_those_of_torch(dilated):
    """The golden model has one block per stage; torch's operators say what more of them give."""
    torch = pytest.importorskip("torch")
    model = ResNet(
        stem_channels=8,
        blocks=(2, 1, 2, 3),
        channels=(4, 8, 8, 12),
        dilated=dilated,
        out_indices=(0, 1, 2, 3),
    )
    image = np.random.default_rng(0).normal(size=(1, 45, 66, 3)).astype(np.float32)
    variables = drawn(model, image)
    weights, running = variables["params"], variables["batch_stats"]

    def conv_norm(x, *path, stride=1, dilation=1):
        kernel, norm, stats = weights, weights, running
        for name in path:
            kernel, norm, stats = kernel[name], norm[name], stats[name]
        kernel = torch.from_numpy(kernel["conv"]["kernel"].transpose(3, 2, 0, 1).copy())
        padding = dilation * (kernel.shape[-1] // 2)
        x = torch.conv2d(x, kernel, stride=stride, padding=padding, dilation=dilation)
        norm, stats = norm["norm"], stats["norm"]
        arrays = (stats["mean"], stats["var"], norm["scale"], norm["bias"])
        return torch.nn.functional.batch_norm(x, *map(torch.from_numpy, arrays))

    def block(x, name, stride, dilation):
        out = conv_norm(x, name, "conv1").relu()
        out = conv_norm(out, name, "conv2", stride=stride, dilation=dilation).relu()
        out = conv_norm(out, name, "conv3")
        if "shortcut" in weights[name]:
            x = conv_norm(x, name, "shortcut", stride=stride)
        return (out + x).relu()

    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    for i in (1, 2, 3):
        x = conv_norm(x, "stem", f"conv{i}", stride=2 if i == 1 else 1).relu()
    x = torch.max_pool2d(x, 3, 2, 1)
    maps = jax.jit(model.apply)(variables, image).maps
    for stage, (first, other) in enumerate(DILATIONS[dilated]):
        x = block(x, f"stage_{stage}_block_0", *first)
        for i in range(1, model.blocks[stage]):
            x = block(x, f"stage_{stage}_block_{i}", 1, other)
        assert_close(maps[stage], nhwc(x.numpy()), TOLERANCE, f"stage {stage}")


class Ramp(DeepLabHead):
    """Passes its first map on."""

    def __call__(self, features, text=None, *, train=False):
        return features.maps[0]


class Columns(ResNet):
    """Every fourth pixel."""

    def __call__(self, image, *, train=False):
        return Features(maps=(image[:, ::4, ::4, :1],))


def test_logits_go_straight_to_the_images_size_with_corners_aligned():
    """The resize of a linear ramp is a linear ramp from corner to corner; so in evaluation."""
    model = SegmentationModel(Columns(), Ramp(1), crop=4, via_square=False, align_corners=True)
    image = jnp.broadcast_to(jnp.arange(13.0)[None, None, :, None], (1, 9, 13, 3))
    np.testing.assert_allclose(model.apply({}, image, None), image[..., :1], atol=1e-5)
    network = build.window_network(model, None)
    np.testing.assert_allclose(network({}, image), image[..., :1], atol=1e-5)
    assert build.padding_patch(model) is None


def test_another_stem_is_named():
    with pytest.raises(ValueError, match=r"r50\.pth have a stem of one 7×7 convolution"):
        import_resnet({"conv1.weight": np.zeros((64, 3, 7, 7))}, source="r50.pth")
    assert import_resnet({"fc.weight": np.zeros((2, 2)), "fc.bias": np.zeros(2)}) == ({}, {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"out_indices": (0, 4)},
            r"out_indices=\(0, 4\): name one or more of 0 … the last stage=3",
        ),
        ({"out_indices": (3, 0)}, "must ascend"),
        ({"dilated": (True,)}, "do not describe the same stages"),
    ],
)
def test_an_encoder_that_cannot_be_built_says_why(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(ResNet(**changes).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_bfloat16_keeps_statistics_and_logits_in_float32():
    model = SegmentationModel(
        ResNet(
            blocks=(1, 1), channels=(4, 8), dilated=(False,), out_indices=(0, 1), dtype=jnp.bfloat16
        ),
        DeepLabHead(3, channels=8, low_channels=4, dtype=jnp.bfloat16),
        crop=16,
    )
    image = jnp.ones((2, 16, 16, 3))
    logits, state = jax.eval_shape(
        lambda variables: model.apply(variables, image, None, train=True, mutable=["batch_stats"]),
        drawn(model, image, None),
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
