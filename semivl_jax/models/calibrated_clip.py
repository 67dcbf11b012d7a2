"""Dense tokens of a frozen CLIP: its own value path, or calibrated by the correlations of its tokens.

In: normalised images B×H×W×3. Out: `DenseTokens`, projected into the space of texts but not normalised. The
tower and its parameters stay as they are: queries, keys and values of the last blocks are read while it runs.

Source: MaskCLIP (docs/semivl.md 1.5) for "value"; ExCEL's visual calibration (arXiv 2503.20826) for "svc".
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Float32

from semivl_jax.models.transformer import layer_norm
from semivl_jax.models.vit import VisionTransformer
from semivl_jax.types import PyTree

Dense = Literal["value", "svc"]

BLOCKS = 5
"""Blocks of the calibrated path, the last ones of the tower."""

HIGHEST = jax.lax.Precision.HIGHEST
_ATTENTION = "MultiHeadDotProductAttention_0"


@struct.dataclass
class DenseTokens:
    """Class token first, then the patches of the grid, row by row.

    attention: of the normal path, mean over the last `BLOCKS` blocks, in each the sum over heads, and the
    block before them, there the mean over heads.
    """

    tokens: Float32[Array, "b t d"]
    attention: Float32[Array, "b t t"]
    grid: tuple[int, int] = struct.field(pytree_node=False)


def dense_tokens(
    tower: VisionTransformer, params: PyTree, image: Float[Array, "b h w 3"], dense: Dense
) -> DenseTokens:
    """Tokens of a CLIP tower; the class token is that of its normal path.

    The calibrated path begins with the tokens before the last `BLOCKS` blocks. Each adds to it what its
    attention would with the correlations of queries, of keys and of values in place of every head's weights.
    It has no MLP, and the blocks themselves see the normal path only.
    """
    features, captured = tower.apply(
        {"params": params}, image, capture_intermediates=_is_read, mutable=["intermediates"]
    )
    found = captured["intermediates"]
    patches, pooled = (jnp.asarray(x, jnp.float32) for x in found["projection"]["__call__"])
    first = max(tower.depth - BLOCKS, 0)
    if dense == "svc":
        path = _tokens_before(found, first)
        for index in range(first, tower.depth):
            query, key, value = _heads(found, index)
            weights = _summed_attention([(query, query), (key, key), (value, value)]) / 3
            mixed = jnp.einsum("bqk,bkhd->bqhd", weights, value, precision=HIGHEST)
            out = params["Transformer"][f"encoderblock_{index}"][_ATTENTION]["out"]
            mixed = jnp.einsum("bqhd,hdc->bqc", mixed, out["kernel"], precision=HIGHEST)
            path = path + mixed + out["bias"][None, None]
        norm = layer_norm(None, eps=tower.eps, dtype=jnp.float32)
        path = norm.apply({"params": params["Transformer"]["encoder_norm"]}, path[:, 1:])
        kernel = params["projection"]["kernel"]
        patches = jnp.einsum("btc,cd->btd", path, kernel, precision=HIGHEST)
    maps = [_summed_attention([_heads(found, index)[:2]]) for index in range(first, tower.depth)]
    if first:
        maps.append(_summed_attention([_heads(found, first - 1)[:2]]) / tower.num_heads)
    return DenseTokens(
        tokens=jnp.concatenate([pooled[:, None], patches], axis=1),
        attention=sum(maps) / len(maps),
        grid=features.maps[-1].shape[1:3],
    )


def _is_read(module: nn.Module, method: str) -> bool:
    """Whether `dense_tokens` reads this module's output."""
    name = module.name or ""
    read = name in ("query", "key", "value", "pre_norm", "projection") or "encoderblock" in name
    return read and method == "__call__"


def _tokens_before(found: PyTree, block: int) -> Float32[Array, "b t c"]:
    if block:
        (tokens, _), *_ = found["Transformer"][f"encoderblock_{block - 1}"]["__call__"]
    else:
        tokens, *_ = found["pre_norm"]["__call__"]
    return tokens.astype(jnp.float32)


def _heads(found: PyTree, block: int) -> tuple[Array, Array, Array]:
    """Query, key and value of all heads of a block, float32 b×t×h×d."""
    batch, tokens, _ = _tokens_before(found, block).shape
    attention = found["Transformer"][f"encoderblock_{block}"][_ATTENTION]
    query, key, value = (
        attention[name]["__call__"][0].astype(jnp.float32) for name in ("query", "key", "value")
    )
    shape = (batch, tokens, *query.shape[-2:])
    return query.reshape(shape), key.reshape(shape), value.reshape(shape)


def _summed_attention(pairs: list[tuple[Array, Array]]) -> Float32[Array, "b t t"]:
    """Attention weights of (queries, keys) b×t×h×d, summed over pairs and heads, head by head."""

    def add(total: Array, head: list[tuple[Array, Array]]) -> tuple[Array, None]:
        for query, key in head:
            products = jnp.einsum("bqd,bkd->bqk", query, key, precision=HIGHEST)
            total = total + jax.nn.softmax(products * query.shape[-1] ** -0.5, axis=-1)
        return total, None

    batch, tokens = pairs[0][0].shape[:2]
    heads = [tuple(jnp.moveaxis(x, 2, 0) for x in pair) for pair in pairs]
    total, _ = jax.lax.scan(add, jnp.zeros((batch, tokens, tokens)), heads)
    return total
