"""The convolutional baseline: UniMatch's DeepLabV3+ on a residual network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.resnet import EXPANSION, ResNet
from semivl_jax.models.segmenter import Segmenter, perturb
from semivl_jax.weights.tree import check, flatten
from semivl_jax.weights.unimatch import import_resnet, import_unimatch
from tests.golden_files import Golden, assert_close, nhwc
from tests.models.drawn import drawn

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
    return Segmenter(backbone, decoder, crop=64, via_square=False, align_corners=True)


@pytest.fixture(scope="module")
def golden():
    return Golden("dlv3p_unimatch")


@pytest.mark.golden
def test_evaluation_and_perturbation_as_published(golden):
    model = golden_model(golden)
    variables = import_unimatch(golden.weights())
    image = jnp.asarray(nhwc(golden["in/img"]))
    masks = tuple(jnp.asarray(nhwc(golden[f"in/fp_mask{i}"])) > 0 for i in (0, 1))

    @jax.jit
    def run(image):
        every = golden_model(golden, taps=(0, 1, 2, 3)).apply(variables, image, method="encode")
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
    model = Segmenter(ResNet(), DeepLabHead(21, align_corners=True), crop=321, via_square=False)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 321, 321, 3), jnp.float32), None
    )["params"]
    total = {name: sum(leaf.size for leaf in jax.tree.leaves(shapes[name])) for name in shapes}
    assert total == {"backbone": 42_623_936, "decoder": 59_468_085 - 42_623_936}


@pytest.mark.parametrize("dilated", [(False, False, True), (False, True, True)])
def test_stages_of_several_blocks_are_those_of_timm(dilated):
    """An independent implementation with the same stem, also where two stages are dilated."""
    torch = pytest.importorskip("torch")
    timm_resnet = pytest.importorskip("timm.models.resnet")
    blocks, channels = (2, 1, 2, 3), (4, 8, 8, 12)
    torch.manual_seed(0)
    theirs = timm_resnet.ResNet(
        timm_resnet.Bottleneck,
        list(blocks),
        stem_type="deep",
        stem_width=16,
        channels=channels,
        output_stride=8 if dilated[1] else 16,
        num_classes=3,
        zero_init_last=False,
    ).eval()
    for name, buffer in theirs.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    image = np.random.default_rng(0).normal(size=(1, 45, 66, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.forward_intermediates(
            torch.from_numpy(image.transpose(0, 3, 1, 2)), intermediates_only=True
        )[1:]
    params, statistics = import_resnet({k: v.numpy() for k, v in theirs.state_dict().items()})
    model = ResNet(
        stem_channels=32, blocks=blocks, channels=channels, dilated=dilated, taps=(0, 1, 2, 3)
    )
    maps = jax.jit(model.apply)({"params": params, "batch_stats": statistics}, image).maps
    for i, stage in enumerate(maps):
        assert_close(stage, nhwc(expected[i].numpy()), TOLERANCE, f"stage {i}")


def test_logits_go_straight_to_the_images_size_with_corners_aligned():
    """The resize of a linear ramp is a linear ramp from corner to corner."""

    class Ramp(DeepLabHead):
        def __call__(self, features, text=None, *, train=False):
            return features.maps[0]

    class Columns(ResNet):
        def __call__(self, image, *, train=False):
            from semivl_jax.types import Features

            return Features(maps=(image[:, ::4, ::4, :1],))

    model = Segmenter(Columns(), Ramp(1), crop=4, via_square=False, align_corners=True)
    image = jnp.broadcast_to(jnp.arange(13.0)[None, None, :, None], (1, 9, 13, 3))
    np.testing.assert_allclose(model.apply({}, image, None), image[..., :1], atol=1e-5)


def test_another_stem_is_named():
    with pytest.raises(ValueError, match=r"r50\.pth have a stem of one 7×7 convolution"):
        import_resnet({"conv1.weight": np.zeros((64, 3, 7, 7))}, source="r50.pth")
    assert import_resnet({"fc.weight": np.zeros((2, 2)), "fc.bias": np.zeros(2)}) == ({}, {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"taps": (0, 4)}, r"taps=\(0, 4\): name one or more of the stages 0 … 3"),
        ({"taps": (3, 0)}, "must ascend"),
        ({"dilated": (True,)}, "do not describe the same stages"),
    ],
)
def test_an_encoder_that_cannot_be_built_says_why(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(ResNet(**changes).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_bfloat16_keeps_statistics_and_logits_in_float32():
    model = Segmenter(
        ResNet(blocks=(1, 1), channels=(4, 8), dilated=(False,), taps=(0, 1), dtype=jnp.bfloat16),
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
