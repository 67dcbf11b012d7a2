"""Residual networks: the encoder of fine detail and the one of the convolutional baseline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.resnet import ResNet, ResNetV1c
from semivl_jax.weights.tree import check, flatten
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.models.initialisation import assert_initialised_as_published, random_variables
from tests.weights import converted

TOLERANCE = 1e-5


@pytest.mark.golden
@pytest.mark.parametrize("file", files("resnet_v1c*"))
def test_evaluation_and_training_as_published(file):
    golden = Golden(file)
    kwargs = golden.meta["kwargs"]
    assert kwargs["out_indices"] == [0]
    model = ResNetV1c(stem_channels=kwargs["stem_channels"], base_channels=kwargs["base_channels"])
    # ImageNet checkpoints go on behind the first stage.
    later = {"layer2.0.conv1.weight": np.ones((2, 2, 1, 1)), "fc.bias": np.ones(3)}
    weights = converted.encoder(golden.weights() | later)
    assert weights.sizes == {name: getattr(model, name) for name in weights.sizes}
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    check(weights.tree, jax.eval_shape(model.init, jax.random.key(0), image), source=file)
    evaluate, train = (
        jax.jit(
            lambda image, train=train, mutable=mutable: model.apply(
                weights.tree, image, train=train, capture_intermediates=True, mutable=[mutable]
            )
        )
        for train, mutable in ((False, "intermediates"), (True, "batch_stats"))
    )
    for name in golden.meta["inputs"]:
        image = nhwc(golden[f"in/{name}/img"])
        features, state = evaluate(image)
        stem = state["intermediates"]["stem"]["__call__"][0]
        assert_close(stem, nhwc(golden[f"out/{name}/eval/stem"]), TOLERANCE, f"{name} stem")
        assert_close(features, nhwc(golden[f"out/{name}/eval/feat0"]), TOLERANCE, f"{name} eval")
        features, state = train(image)
        assert_close(features, nhwc(golden[f"out/{name}/train/feat0"]), TOLERANCE, f"{name} train")
        prefix = f"out/{name}/train/after/"
        after = {key.removeprefix(prefix): golden[key] for key in golden.keys(prefix)}
        expected = flatten(converted.encoder(golden.weights() | after).tree["batch_stats"])
        actual = flatten(state["batch_stats"])
        assert expected.keys() == actual.keys()
        for path, value in expected.items():
            assert_close(actual[path], value, TOLERANCE, f"{name} {path} after training")


@pytest.mark.golden
def test_parameters_are_initialised_as_published():
    assert_initialised_as_published(
        ResNetV1c(), jnp.zeros((1, 8, 8, 3)), part="conv_encoder.", having="stem.0.weight"
    )


# Per stage: (stride, dilation) of its first block, and dilation of the others, as torchvision documents
# `replace_stride_with_dilation`.
DILATIONS = {
    (False, False, True): [((1, 1), 1), ((2, 1), 1), ((2, 1), 1), ((1, 1), 2)],
    (False, True, True): [((1, 1), 1), ((2, 1), 1), ((1, 1), 2), ((1, 2), 4)],
}


@pytest.mark.parametrize("dilated", DILATIONS)
def test_stages_of_several_blocks_are_those_of_torch(dilated):
    """Against torch's operators; the golden model has only one block per stage."""
    torch = pytest.importorskip("torch")
    model = ResNet(
        stem_channels=8,
        blocks=(2, 1, 2, 3),
        channels=(4, 8, 8, 12),
        dilated=dilated,
        out_indices=(0, 1, 2, 3),
    )
    image = np.random.default_rng(0).normal(size=(1, 45, 66, 3)).astype(np.float32)
    variables = random_variables(model, image)
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
