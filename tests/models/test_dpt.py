"""The DPT head of UniMatch V2 against torch's operators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models import vit
from semivl_jax.models.dpt import DPTHead
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.types import Features
from tests.golden_files import assert_close, nhwc
from tests.models import hugging_face
from tests.weights import converted

TOLERANCE = 1e-5


def torch_head(torch, maps, state, patch_size):
    """UniMatch V2's head, operator by operator."""
    functional = torch.nn.functional

    def conv(x, name, **options):
        weight = state[f"{name}.weight"]
        padding = weight.shape[-1] // 2
        return torch.conv2d(x, weight, state.get(f"{name}.bias"), padding=padding, **options)

    def spread(x, name, factor):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return functional.conv_transpose2d(x, weight, bias, stride=factor)

    def unit(x, name):
        return x + conv(conv(x.relu(), f"{name}.conv1").relu(), f"{name}.conv2")

    def fuse(x, name, size, finer=None):
        if finer is not None:
            x = x + unit(finer, f"{name}.resConfUnit1")
        x = unit(x, f"{name}.resConfUnit2")
        x = functional.interpolate(x, size, mode="bilinear", align_corners=True)
        return conv(x, f"{name}.out_conv")

    rows, cols = maps[0].shape[2:]
    levels = maps
    if patch_size is not None:
        levels = [conv(x, f"projects.{i}") for i, x in enumerate(maps)]
        levels[0] = spread(levels[0], "resize_layers.0", 4)
        levels[1] = spread(levels[1], "resize_layers.1", 2)
        levels[3] = conv(levels[3], "resize_layers.3", stride=2)
    levels = [conv(x, f"scratch.layer{i + 1}_rn") for i, x in enumerate(levels)]
    x = fuse(levels[3], "scratch.refinenet4", levels[2].shape[2:])
    x = fuse(x, "scratch.refinenet3", levels[1].shape[2:], levels[2])
    x = fuse(x, "scratch.refinenet2", levels[0].shape[2:], levels[1])
    size = [2 * side for side in levels[0].shape[2:]]
    x = fuse(x, "scratch.refinenet1", size, levels[0])
    x = conv(conv(x, "scratch.output_conv.0").relu(), "scratch.output_conv.2")
    if patch_size is None:
        return x
    size = (patch_size * rows, patch_size * cols)
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def head_state(torch, width, channels, out_channels, classes):
    """Random weights under UniMatch V2's names, those that it never uses included."""
    shapes = {"scratch.output_conv.2": (classes, channels, 1, 1)}
    for i, size in enumerate(out_channels):
        shapes[f"projects.{i}"] = (size, width, 1, 1)
        shapes[f"scratch.refinenet{i + 1}.out_conv"] = (channels, channels, 1, 1)
        for unit in (1, 2):
            for number in (1, 2):
                name = f"scratch.refinenet{i + 1}.resConfUnit{unit}.conv{number}"
                shapes[name] = (channels, channels, 3, 3)
    shapes["scratch.output_conv.0"] = (channels, channels, 3, 3)
    shapes["resize_layers.0"] = (out_channels[0], out_channels[0], 4, 4)
    shapes["resize_layers.1"] = (out_channels[1], out_channels[1], 2, 2)
    shapes["resize_layers.3"] = (out_channels[3], out_channels[3], 3, 3)
    state = {}
    torch.manual_seed(0)
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape) * np.prod(shape[1:]) ** -0.5
        state[f"{name}.bias"] = torch.randn(shape[0]) * 0.1
    for i, size in enumerate(out_channels):
        state[f"scratch.layer{i + 1}_rn.weight"] = torch.randn(channels, size, 3, 3) * 0.2
    return state


def test_the_head_is_that_of_unimatch_v2():
    torch, transformers = hugging_face.libraries()
    width, channels, out_channels, classes = 6, 8, (4, 5, 6, 7), 3
    state = head_state(torch, width, channels, out_channels, classes)
    maps = [torch.randn(2, width, 3, 5) for _ in out_channels]
    expected = torch_head(torch, maps, state, 14)
    head = DPTHead(classes, channels=channels, out_channels=out_channels)
    features = Features(maps=tuple(jnp.asarray(nhwc(x.numpy())) for x in maps))
    # The head's weights go through a whole checkpoint of UniMatch V2.
    config = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=4, num_attention_heads=2, image_size=12, patch_size=4
    )
    encoder = hugging_face.timm_state(transformers.Dinov2Model(config))
    whole = {f"backbone.{name}": array for name, array in encoder.items()}
    whole |= {f"head.{name}": tensor.numpy() for name, tensor in state.items()}
    weights = converted.segmenter(whole, image_heads=2)
    assert weights.kind == "unimatch_v2"
    assert weights.sizes["dpt_decoder"]["out_channels"] == list(out_channels)
    params = weights.tree["params"]["decoder"]
    logits = jax.jit(head.apply)({"params": params}, features)
    assert_close(logits, nhwc(expected.numpy()), TOLERANCE)


def test_maps_of_a_convolutional_network_are_not_scaled():
    torch = pytest.importorskip("torch")
    widths, sides = (4, 5, 6, 7), ((9, 14), (5, 7), (3, 4), (2, 2))
    state = head_state(torch, 6, 8, widths, 3)
    maps = [torch.randn(2, w, *side) for w, side in zip(widths, sides, strict=True)]
    expected = torch_head(torch, maps, state, None)
    whole = {f"head.{name}": tensor.numpy() for name, tensor in state.items()}
    params = converted.some(whole, "unimatch_v2", {"backbone": {}, "dpt_decoder": {}})["params"]
    params = params["decoder"]
    head = DPTHead(3, channels=8, patch_size=None)
    features = Features(maps=tuple(jnp.asarray(nhwc(x.numpy())) for x in maps))
    shapes = jax.eval_shape(head.init, jax.random.key(0), features)["params"]
    assert not [name for name in shapes if name.startswith(("tap", "scale"))]
    logits = jax.jit(head.apply)({"params": {name: params[name] for name in shapes}}, features)
    assert_close(logits, nhwc(expected.numpy()), TOLERANCE)


def test_bfloat16_gives_float32_logits_of_the_images_size():
    sizes = {**vit.DINOV2, **vit.TINY, "patch_size": 4, "out_indices": (0, 1, 2, 3)}
    head = DPTHead(3, channels=4, out_channels=(2, 2, 2, 2), patch_size=4, dtype=jnp.bfloat16)
    model = SegmentationModel(vit.VisionTransformer(**sizes, dtype=jnp.bfloat16), head, crop=12)
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, 12, 8, 3)), None)
    )
    assert logits.dtype == jnp.float32 and logits.shape == (1, 12, 8, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_needs_four_maps():
    features = Features(maps=(jnp.zeros((1, 2, 2, 4)),) * 2)
    with pytest.raises(ValueError, match="takes four maps on one grid, the encoder gives 2"):
        DPTHead(2).init(jax.random.key(0), features)
