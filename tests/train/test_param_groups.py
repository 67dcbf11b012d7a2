"""Which parameters are trained, at which learning rate and weight decay."""

import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.train import param_groups as groups_lib
from semivl_jax.weights import convert
from semivl_jax.weights.foreign_files import Checkpoint
from semivl_jax.weights.tree import flatten
from tests.golden_files import Golden


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


ITEMS = Golden("param_groups").meta["items"]
FINETUNE = {"ftap": "spatial", "pt": "prompts"}
"""By what the published name of a model says; any other name: all of it is trained."""


@pytest.mark.golden
@pytest.mark.parametrize("item", ITEMS, ids=[f"{i['exp']}-{i['index']}" for i in ITEMS])
def test_every_parameter_has_the_published_rate_and_decay(item):
    rows = [*item["params"], *item["buffers"]]
    # Every tensor is filled with its number, so that leaves say what they were made of.
    state = {
        name: np.broadcast_to(np.float16(i), shape) for i, (name, shape, *_) in enumerate(rows)
    }
    weights = convert.convert(Checkpoint(source="param_groups", state=state))
    optimizer = item["cfg"]["optimizer"]
    multipliers = optimizer["paramwise_cfg"]["custom_keys"]
    words = item["cfg"]["model"].split("-")
    groups = groups_lib.published_groups(
        finetune=next((FINETUNE[word] for word in words if word in FINETUNE), "all"),
        backbone_lr=multipliers["backbone"]["lr_mult"],
        conv_encoder_lr=multipliers["conv_encoder"]["lr_mult"],
        decoder_lr=multipliers["head"]["lr_mult"],
    )
    leaves = flatten(weights.tree["params"])
    for path, group in groups_lib.assign(weights.tree["params"], groups).items():
        name, _, trained, lr, decay = rows[int(leaves[path].flat[0])]
        assert trained != group.frozen, f"{path} ({name})"
        if trained:
            assert optimizer["lr"] * group.lr == pytest.approx(lr, rel=1e-9), path
            assert optimizer["weight_decay"] == pytest.approx(decay), path


@pytest.mark.parametrize(("finetune", "frozen"), [("all", 0), ("spatial", 3), ("none", 5)])
def test_frozen_leaves_of_the_tower(finetune, frozen):
    parts = groups_lib.partition(tree(), published(finetune))
    assert len(flatten(parts[1])) == frozen
    assert flatten(groups_lib.merge(*parts)).keys() == flatten(tree()).keys()


def test_a_leaf_without_a_group_is_an_error():
    with pytest.raises(ValueError, match=r"no parameter group covers neck/kernel; add a group"):
        groups_lib.assign({"neck": {"kernel": jnp.zeros(1)}}, published("all"))


def test_the_table_counts_every_parameter_once():
    table = groups_lib.parameter_table(tree(), published("spatial"), lr=1e-4, decay=0.01)
    assert table.splitlines()[-1] == "trained 18 of 36 parameters"
    assert "1e-06" in table and "0.001" in table and "frozen" in table
