import jax.numpy as jnp
import pytest

from semivl_jax.train import param_groups as groups_lib
from semivl_jax.weights.tree import flatten

BLOCK = "backbone/Transformer/encoderblock_0"


def tree():
    leaf = jnp.zeros((2, 3))
    return {
        "backbone": {
            "cls": leaf,
            "pos_embedding": leaf,
            "Transformer": {
                "encoderblock_0": {
                    "LayerNorm_0": {"scale": leaf},
                    "MultiHeadDotProductAttention_0": {"query": {"kernel": leaf}},
                    "MlpBlock_0": {"Dense_0": {"kernel": leaf}},
                }
            },
        },
        "decoder": {"head": {"bias": leaf}},
    }


def published(finetune):
    return groups_lib.published_groups(
        finetune=finetune, backbone_lr=0.01, conv_encoder_lr=1.0, decoder_lr=10.0
    )


def test_spatial_fine_tuning_trains_attention_and_positions_only():
    trained, frozen = groups_lib.partition(tree(), published("spatial"))
    assert set(flatten(trained)) == {
        "backbone/pos_embedding",
        f"{BLOCK}/MultiHeadDotProductAttention_0/query/kernel",
        "decoder/head/bias",
    }
    assert set(flatten(frozen)) == {
        "backbone/cls",
        f"{BLOCK}/LayerNorm_0/scale",
        f"{BLOCK}/MlpBlock_0/Dense_0/kernel",
    }


@pytest.mark.parametrize(("finetune", "frozen"), [("all", 0), ("none", 5)])
def test_all_or_nothing_of_the_tower(finetune, frozen):
    assert len(flatten(groups_lib.partition(tree(), published(finetune))[1])) == frozen


def test_partition_and_merge_are_inverse():
    whole = tree()
    assert flatten(groups_lib.merge(*groups_lib.partition(whole, published("spatial")))).keys() == (
        flatten(whole).keys()
    )


def test_a_leaf_without_a_group_is_an_error():
    with pytest.raises(ValueError, match=r"no parameter group covers neck/kernel; add a group"):
        groups_lib.assign({"neck": {"kernel": jnp.zeros(1)}}, published("all"))


def test_the_table_counts_every_parameter_once():
    table = groups_lib.parameter_table(tree(), published("spatial"), lr=1e-4, decay=0.01)
    assert table.splitlines()[-1] == "trained 18 of 36 parameters"
    assert "1e-06" in table and "0.001" in table and "frozen" in table
