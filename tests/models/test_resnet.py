"""Residual networks: the encoder of fine detail and the one of the convolutional baseline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.resnet import RESNET18, ResNet, ResNetV1c
from semivl_jax.weights import convert
from semivl_jax.weights.foreign_files import Checkpoint
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


def resnet18_shapes(classes=1000):
    """Shapes by torchvision's names, which timm shares."""
    shapes = {
        "conv1": (64, 3, 7, 7),
        "bn1": (64,),
        "fc.weight": (classes, 512),
        "fc.bias": (classes,),
    }
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            shapes |= {
                f"{name}.conv1": (width, before, 3, 3),
                f"{name}.bn1": (width,),
                f"{name}.conv2": (width, width, 3, 3),
                f"{name}.bn2": (width,),
            }
            if width != before:
                shapes |= {
                    f"{name}.downsample.0": (width, before, 1, 1),
                    f"{name}.downsample.1": (width,),
                }
            before = width
    found = {}
    for name, shape in shapes.items():
        if name.startswith("fc"):
            found[name] = shape
        elif len(shape) == 4:
            found[f"{name}.weight"] = shape
        else:
            parts = ("weight", "bias", "running_mean", "running_var")
            found |= {f"{name}.{part}": shape for part in parts}
            found[f"{name}.num_batches_tracked"] = ()
    return found


def resnet18_state():
    rng, state = np.random.default_rng(0), {}
    for name, shape in resnet18_shapes().items():
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) == 4 else 0.1
        drawn = (scale * rng.normal(size=shape)).astype(np.float32)
        of_norm = len(shape) == 1 and name.endswith(("running_var", "weight"))
        state[name] = 1 + np.abs(drawn) if of_norm else drawn
    return state


@pytest.mark.parametrize("dilated", [(False, False, False), (False, False, True)])
def test_resnet18_is_that_of_torch_through_the_importer(dilated):
    """Output strides 32 and 16; in a dilated stage the first convolution keeps the dilation before it."""
    torch = pytest.importorskip("torch")
    state = resnet18_state()
    weights = convert.convert(Checkpoint(source="file", state=state))
    assert weights.kind == "resnet18"
    published = 11_689_512 - 513_000  # without the classifier
    assert convert.parameter_counts(weights)["total"] == published
    image = np.random.default_rng(1).normal(size=(1, 67, 90, 3)).astype(np.float32)
    model = ResNet(**RESNET18, dilated=dilated, out_indices=(0, 1, 2, 3))
    maps = jax.jit(model.apply)(weights.tree, image).maps
    state = {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}

    def conv_norm(x, conv, norm, **options):
        x = torch.conv2d(x, state[f"{conv}.weight"], **options)
        parts = ("running_mean", "running_var", "weight", "bias")
        return torch.nn.functional.batch_norm(x, *(state[f"{norm}.{part}"] for part in parts))

    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    x = conv_norm(x, "conv1", "bn1", stride=2, padding=3).relu()
    x = torch.max_pool2d(x, 3, 2, 1)
    for stage in range(4):
        last = dilated[stage - 1] if stage else False
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if block == 0 and stage > 0 and not last else 1
            first, second = (1 if block == 0 else 2, 2) if last else (1, 1)
            out = conv_norm(
                x, f"{name}.conv1", f"{name}.bn1", stride=stride, padding=first, dilation=first
            )
            out = conv_norm(
                out.relu(), f"{name}.conv2", f"{name}.bn2", padding=second, dilation=second
            )
            if f"{name}.downsample.0.weight" in state:
                x = conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
            x = (out + x).relu()
        assert_close(maps[stage], nhwc(x.numpy()), TOLERANCE, f"stage {stage}")


def test_a_resnet18_with_another_stem_is_refused():
    state = resnet18_state()
    state["conv1.0.weight"] = state.pop("conv1.weight")
    with pytest.raises(ValueError, match=r"file is a ResNet-18 with a stem of three convolutions"):
        convert.convert(Checkpoint(source="file", state=state))
