import jax
import jax.numpy as jnp
import numpy as np
import pytest
from semivl_jax.weights.semivl_decoder import import_deeplab_head

from semivl_jax.models.deeplab import DeepLabHead
from semivl_jax.models.resize import bilinear
from semivl_jax.types import Features
from semivl_jax.weights.tree import check, flatten
from tests.golden_files import Golden, assert_close, nhwc
from tests.models.drawn import drawn
from tests.weights import converted, published

TOLERANCE = 1e-5


def golden_head(golden):
    kwargs = golden.meta["kwargs"]
    backbone = published.semivl_backbone(kwargs["c1_in_channels"], kwargs["in_channels"])
    state = {f"decode_head.{name}": array for name, array in golden.weights().items()}
    weights = converted.segmenter(state | backbone, image_heads=4)
    sizes = weights.sizes["deeplab_decoder"]
    assert sizes["num_classes"] == kwargs["num_classes"]
    assert sizes["low_channels"] == kwargs["c1_channels"]
    model = DeepLabHead(**sizes, dilations=(1, *kwargs["dilations"]))
    return model, {name: weights.tree[name]["decoder"] for name in ("params", "batch_stats")}


@pytest.mark.golden
def test_evaluation_and_training_as_published():
    golden = Golden("dlv3p_head")
    model, variables = golden_head(golden)
    low, high = nhwc(golden["in/feat0"]), nhwc(golden["in/feat1"])
    evaluate = jax.jit(lambda variables, *maps: model.apply(variables, Features(maps=maps)))
    logits = evaluate(variables, low, high)
    assert_close(logits, nhwc(golden["out/eval/logits"]), TOLERANCE, "logits")
    side = golden.meta["kwargs"]["img_size"]
    resized = bilinear(logits, (side, side), align_corners=False)
    assert_close(resized, nhwc(golden["out/eval/pred_masks"]), TOLERANCE, "pred_masks")
    other = evaluate(variables, nhwc(golden["in/diffsize/feat0"]), high)
    assert_close(other, nhwc(golden["out/diffsize/logits"]), TOLERANCE, "two grids")

    logits, state = jax.jit(
        lambda variables, *maps: model.apply(
            variables, Features(maps=maps), train=True, mutable=["batch_stats"]
        )
    )(variables, low, high)
    assert_close(logits, nhwc(golden["out/train/logits"]), TOLERANCE, "training logits")
    prefix = "out/train/after/"
    after = {key.removeprefix(prefix): golden[key] for key in golden.keys(prefix)}
    expected, actual = flatten(import_deeplab_head(after)[1]), flatten(state["batch_stats"])
    assert expected.keys() == actual.keys()
    for path, value in expected.items():
        assert_close(actual[path], value, TOLERANCE, f"{path} after training")


@pytest.mark.golden
def test_published_names_cover_the_model():
    golden = Golden("dlv3p_head")
    model, variables = golden_head(golden)
    features = Features(maps=tuple(jnp.asarray(nhwc(golden[f"in/feat{i}"])) for i in (0, 1)))
    check(
        variables,
        jax.eval_shape(model.init, jax.random.key(0), features),
        source="dlv3p_head.npz",
    )


@pytest.mark.parametrize(("high", "count"), [(512, 1_862_773), (768, 3_150_325)])
def test_published_sizes(high, count):
    features = Features(maps=tuple(jnp.zeros((1, 4, 4, c)) for c in (768, high)))
    shapes = jax.eval_shape(DeepLabHead(num_classes=21).init, jax.random.key(0), features)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def test_needs_two_maps():
    features = Features(maps=tuple(jnp.zeros((1, 4, 4, 8)) for _ in range(3)))
    with pytest.raises(ValueError, match="two maps"):
        DeepLabHead(num_classes=2).init(jax.random.key(0), features)


def test_evaluation_leaves_statistics_alone():
    features = Features(maps=(jnp.ones((2, 4, 4, 8)), jnp.ones((2, 2, 2, 16))))
    model = DeepLabHead(num_classes=2, channels=8, low_channels=4)
    variables = drawn(model, features)
    _, state = jax.jit(lambda *args: model.apply(*args, mutable=["batch_stats"]))(
        variables, features
    )
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
