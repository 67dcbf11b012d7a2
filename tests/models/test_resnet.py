import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from semivl_jax.weights.semivl_decoder import import_conv_encoder

from semivl_jax.models.resnet import ResNetV1c
from semivl_jax.weights.tree import check, flatten
from tests.golden_files import Golden, assert_close, nhwc
from tests.models.drawn import assert_same_distributions, drawn, fresh_statistics, numbered
from tests.weights import converted

TOLERANCE = 1e-5


def golden_encoder(golden):
    kwargs = golden.meta["kwargs"]
    assert kwargs["out_indices"] == [0]
    model = ResNetV1c(stem_channels=kwargs["stem_channels"], base_channels=kwargs["base_channels"])
    # ImageNet checkpoints go on behind the first stage.
    later = {"layer2.0.conv1.weight": np.ones((2, 2, 1, 1)), "fc.bias": np.ones(3)}
    weights = converted.encoder(golden.weights() | later)
    assert weights.sizes == {name: getattr(model, name) for name in weights.sizes}
    params, statistics = import_conv_encoder(golden.weights())
    converted.assert_equal_trees(weights.tree["params"], params)
    converted.assert_equal_trees(weights.tree["batch_stats"], statistics)
    return model, weights.tree


@pytest.mark.golden
def test_evaluation_and_training_as_published():
    golden = Golden("resnet_v1c")
    model, variables = golden_encoder(golden)
    evaluate = jax.jit(
        lambda variables, image: model.apply(
            variables, image, capture_intermediates=True, mutable=["intermediates"]
        )
    )
    train = jax.jit(
        lambda variables, image: model.apply(variables, image, train=True, mutable=["batch_stats"])
    )
    for name in golden.meta["inputs"]:
        image = nhwc(golden[f"in/{name}/img"])
        features, state = evaluate(variables, image)
        stem = state["intermediates"]["stem"]["__call__"][0]
        assert_close(stem, nhwc(golden[f"out/{name}/eval/stem"]), TOLERANCE, f"{name} stem")
        assert_close(features, nhwc(golden[f"out/{name}/eval/feat0"]), TOLERANCE, f"{name} eval")
        features, state = train(variables, image)
        assert_close(features, nhwc(golden[f"out/{name}/train/feat0"]), TOLERANCE, f"{name} train")
        prefix = f"out/{name}/train/after/"
        after = {key.removeprefix(prefix): golden[key] for key in golden.keys(prefix)}
        expected = flatten(import_conv_encoder(after)[1])
        actual = flatten(state["batch_stats"])
        assert expected.keys() == actual.keys()
        for path, value in expected.items():
            assert_close(actual[path], value, TOLERANCE, f"{name} {path} after training")


@pytest.mark.golden
def test_published_names_cover_the_model():
    golden = Golden("resnet_v1c")
    model, variables = golden_encoder(golden)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    check(variables, shapes, source="resnet_v1c.npz")


@pytest.mark.golden
def test_fresh_parameters_are_drawn_as_published():
    shapes, stats = fresh_statistics("conv_encoder.", having="stem.0.weight")
    key = jax.random.key(0, impl="rbg")  # compiles faster than the default
    params = jax.jit(ResNetV1c().init)(key, jnp.zeros((1, 8, 8, 3)))["params"]
    assert_same_distributions(params, stats, import_conv_encoder(numbered(shapes))[0])


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown name: layer2\.0\.conv1\.weight"):
        import_conv_encoder({"layer2.0.conv1.weight": np.zeros((1, 1, 1, 1))})


def test_published_size():
    model = ResNetV1c()
    image = jax.ShapeDtypeStruct((1, 801, 801, 3), jnp.float32)
    features, variables = jax.eval_shape(
        lambda key, image: model.init_with_output(key, image), jax.random.key(0), image
    )
    assert features.shape == (1, 201, 201, 256)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 244_576


def test_statistics_are_those_of_the_global_batch():
    model = ResNetV1c(stem_channels=8, base_channels=4, num_blocks=1)
    image = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    variables = drawn(model, image)

    @jax.jit
    def train(image):
        return model.apply(variables, image, train=True, mutable=["batch_stats"])

    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole, sharded = train(image), train(jax.device_put(image, NamedSharding(mesh, P("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, sharded)


def test_one_value_per_channel_cannot_be_trained():
    model = ResNetV1c(stem_channels=8, base_channels=4, num_blocks=1)
    image = jnp.zeros((1, 2, 2, 3))
    variables = drawn(model, image)
    with pytest.raises(ValueError, match="one value per channel"):
        model.apply(variables, image, train=True, mutable=["batch_stats"])
