"""DINOv2 and the DPT head of UniMatch V2 against transformers and torch's operators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from semivl_jax.models.dinov2 import DinoV2
from semivl_jax.weights.dinov2 import import_dinov2, import_unimatch_v2

from semivl_jax.models import dinov2, dpt
from semivl_jax.models.dpt import DPTHead
from semivl_jax.models.pos_embed import resize_table, table_at
from semivl_jax.models.segmenter import SegmentationModel
from semivl_jax.types import Features
from semivl_jax.weights.tree import check
from tests.golden_files import assert_close, nhwc
from tests.models import hugging_face
from tests.models.drawn import drawn
from tests.weights import converted

TOLERANCE = 1e-5


def small(**changes):
    options = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 64, "patch_size": 4}
    return DinoV2(**{**options, "grid": (3, 3), "out_indices": (0, 2), **changes})


def test_numbers_are_those_of_another_library():
    """transformers' random weights go through DINOv2's own names."""
    torch, transformers = hugging_face.libraries()
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=12, patch_size=4
    )
    theirs = hugging_face.randomize(transformers.Dinov2Model(config), torch)
    image = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    with torch.no_grad():
        out = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2)), output_hidden_states=True)
        first = theirs.layernorm(out.hidden_states[1])
    last = out.last_hidden_state.numpy()
    tower = small()
    weights = converted.encoder(hugging_face.timm_state(theirs), image_heads=2)
    assert (weights.kind, weights.sizes["grid"]) == ("dinov2", [3, 3])
    params = import_dinov2(hugging_face.timm_state(theirs), num_heads=2)
    converted.assert_equal_trees(weights.tree["params"], params)
    check(params, jax.eval_shape(tower.init, jax.random.key(0), image)["params"], source="theirs")
    features = jax.jit(tower.apply)({"params": params}, image)
    for ours, expected in zip(features.maps, (first.numpy(), last), strict=True):
        assert_close(ours, expected[:, 1:].reshape(ours.shape), TOLERANCE)
    assert_close(features.pooled, last[:, 0], TOLERANCE)


def test_checkpoints_of_unimatch_v2_convert():
    torch, transformers = hugging_face.libraries()
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=12, patch_size=4
    )
    encoder = hugging_face.timm_state(transformers.Dinov2Model(config))
    head = head_state(torch, 16, 8, (4, 6, 8, 10), 3)
    state = {f"backbone.{name}": array for name, array in encoder.items()}
    state |= {f"head.{name}": tensor.numpy() for name, tensor in head.items()}
    weights = converted.segmenter(state, image_heads=2)
    assert weights.kind == "unimatch_v2"
    assert weights.sizes["dpt_decoder"]["out_channels"] == [4, 6, 8, 10]
    known = import_unimatch_v2(state, num_heads=2)
    converted.assert_equal_trees(weights.tree["params"], known["params"])


@pytest.mark.parametrize("grid", [(3, 7), (5, 4), (9, 12)])
def test_position_tables_are_resized_with_the_published_offset(grid):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(1, 1 + 5 * 5, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(table[:, 1:].reshape(1, 5, 5, 3).transpose(0, 3, 1, 2)),
        scale_factor=tuple((side + 0.1) / 5 for side in grid),
        mode="bicubic",
    )
    expected = nhwc(expected.numpy()).reshape(1, -1, 3)
    for resized in (
        resize_table(table, (5, 5), grid, resizing="dinov2"),
        table_at(jnp.asarray(table), (5, 5), grid, resizing="dinov2"),
    ):
        assert_close(resized[:, 1:], expected, TOLERANCE)
        np.testing.assert_array_equal(resized[:, 0], table[:, 0])


def test_images_of_other_sides_are_resized_to_whole_patches():
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).normal(size=(1, 14, 9, 3)).astype(np.float32)
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(0, 3, 1, 2)), (16, 8), mode="bilinear", align_corners=True
    )
    tower = small(depth=1, out_indices=(0,))
    variables = drawn(tower, image)
    ours = jax.jit(small(depth=1, out_indices=(0,), remat="blocks").apply)(variables, image)
    expected = jax.jit(tower.apply)(variables, nhwc(whole.numpy()))
    assert ours.maps[0].shape == (1, 4, 2, 16)
    assert_close(ours.maps[0], expected.maps[0], TOLERANCE)


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
    levels = [conv(x, f"projects.{i}") for i, x in enumerate(maps)]
    levels[0] = spread(levels[0], "resize_layers.0", 4)
    levels[1] = spread(levels[1], "resize_layers.1", 2)
    levels[3] = conv(levels[3], "resize_layers.3", stride=2)
    levels = [conv(x, f"scratch.layer{i + 1}_rn") for i, x in enumerate(levels)]
    x = fuse(levels[3], "scratch.refinenet4", levels[2].shape[2:])
    x = fuse(x, "scratch.refinenet3", levels[1].shape[2:], levels[2])
    x = fuse(x, "scratch.refinenet2", levels[0].shape[2:], levels[1])
    x = fuse(x, "scratch.refinenet1", (8 * rows, 8 * cols), levels[0])
    x = conv(conv(x, "scratch.output_conv.0").relu(), "scratch.output_conv.2")
    size = (patch_size * rows, patch_size * cols)
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def head_state(torch, width, channels, out_indices, classes):
    """Random weights under UniMatch V2's names, those that it never uses included."""
    shapes = {"scratch.output_conv.2": (classes, channels, 1, 1)}
    for i, tap in enumerate(out_indices):
        shapes[f"projects.{i}"] = (tap, width, 1, 1)
        shapes[f"scratch.refinenet{i + 1}.out_conv"] = (channels, channels, 1, 1)
        for unit in (1, 2):
            for number in (1, 2):
                name = f"scratch.refinenet{i + 1}.resConfUnit{unit}.conv{number}"
                shapes[name] = (channels, channels, 3, 3)
    shapes["scratch.output_conv.0"] = (channels, channels, 3, 3)
    shapes["resize_layers.0"] = (out_indices[0], out_indices[0], 4, 4)
    shapes["resize_layers.1"] = (out_indices[1], out_indices[1], 2, 2)
    shapes["resize_layers.3"] = (out_indices[3], out_indices[3], 3, 3)
    state = {}
    torch.manual_seed(0)
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape) * np.prod(shape[1:]) ** -0.5
        state[f"{name}.bias"] = torch.randn(shape[0]) * 0.1
    for i, tap in enumerate(out_indices):
        state[f"scratch.layer{i + 1}_rn.weight"] = torch.randn(channels, tap, 3, 3) * 0.2
    return state


def test_the_head_is_that_of_unimatch_v2():
    torch = pytest.importorskip("torch")
    width, channels, out_indices, classes = 6, 8, (4, 5, 6, 7), 3
    state = head_state(torch, width, channels, out_indices, classes)
    maps = [torch.randn(2, width, 3, 5) for _ in out_indices]
    expected = torch_head(torch, maps, state, 14)
    head = DPTHead(classes, channels=channels, out_channels=out_indices)
    features = Features(maps=tuple(jnp.asarray(nhwc(x.numpy())) for x in maps))
    tree = import_unimatch_v2({f"head.{k}": v.numpy() for k, v in state.items()}, num_heads=1)
    params = tree["params"]["decoder"]
    shapes = jax.eval_shape(head.init, jax.random.key(0), features)["params"]
    check(params, shapes, source="UniMatch V2's names")
    logits = jax.jit(head.apply)({"params": params}, features)
    assert_close(logits, nhwc(expected.numpy()), TOLERANCE)


@pytest.mark.parametrize(("size", "millions"), [("small", (22.1, 2.7)), ("base", (86.6, 10.9))])
def test_published_sizes(size, millions):
    """Millions of parameters as the published training logs have them, unused ones included."""
    head = DPTHead(21, **dpt.SIZES[size])
    model = SegmentationModel(
        DinoV2(**dinov2.SIZES[size]), head, crop=518, via_square=False, align_corners=True
    )
    image = jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)
    logits, shapes = jax.eval_shape(
        lambda image: model.init_with_output(jax.random.key(0), image, None), image
    )
    assert logits.shape == (1, 518, 518, 21)
    total = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in shapes["params"].items()}
    mask_token = dinov2.SIZES[size]["width"]
    unused_unit = 2 * (9 * head.channels**2 + head.channels)
    assert round((total["backbone"] + mask_token) / 1e6, 1) == millions[0]
    assert round((total["decoder"] + unused_unit) / 1e6, 1) == millions[1]


def test_bfloat16_gives_float32_logits():
    head = DPTHead(3, channels=4, out_channels=(2, 2, 2, 2), patch_size=4, dtype=jnp.bfloat16)
    model = SegmentationModel(
        small(depth=4, out_indices=(0, 1, 2, 3), dtype=jnp.bfloat16), head, crop=12
    )
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, 12, 12, 3)), None)
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_wrong_taps_and_names_say_why():
    features = Features(maps=(jnp.zeros((1, 2, 2, 4)),) * 2)
    with pytest.raises(ValueError, match="takes four maps on one grid, the encoder gives 2"):
        DPTHead(2).init(jax.random.key(0), features)
    with pytest.raises(ValueError, match="name one or more of 0 … the last block=2"):
        jax.eval_shape(small(out_indices=(3,)).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"v2\.pth has tensors of unknown name: register_tokens"):
        import_dinov2({"register_tokens": np.ones(1)}, num_heads=1, source="v2.pth")
    with pytest.raises(ValueError, match=r"v2\.pth has tensors of unknown name: neck\.weight"):
        import_unimatch_v2({"neck.weight": np.ones(1)}, num_heads=1, source="v2.pth")
