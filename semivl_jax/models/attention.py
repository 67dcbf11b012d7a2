"""Self-attention of transformer blocks.

In and out: tokens B×T×C of any value range. Parameters are float32; `dtype` is the precision of the
arithmetic, the softmax is float32. Names and shapes of parameters are Linen's and big_vision's.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models import rope as rope_lib
from semivl_jax.models.platforms import Recomputed, by_platform

_LOG = logging.getLogger(__name__)

Initializer = Callable[..., Array]

HEAD_BY_HEAD_BYTES = 2**23
"""Size of an image's attention weights (all heads, float32) from which a TPU computes head by head."""


def attend(
    query: Float[Array, "b t h d"],
    key: Float[Array, "b t h d"],
    value: Float[Array, "b t h d"],
    *,
    is_causal: bool = False,
) -> Float[Array, "b t h d"]:
    """Scaled dot-product attention whose t×t weights are recomputed in the backward pass.

    In half precision with heads of a multiple of 8 channels up to 128 GPUs use cuDNN's fused kernel.
    Otherwise XLA's products and softmax are used: on TPUs with many tokens head by head, so that the
    weights stay in the chip's fast memory.
    """
    attention = functools.partial(jax.nn.dot_product_attention, is_causal=is_causal)
    tokens, heads, channels = query.shape[1:]
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if half and channels % 8 == 0 and channels <= 128 and fused_attention_runs():
        return attention(query, key, value, implementation="cudnn")
    if 4 * heads * tokens**2 < HEAD_BY_HEAD_BYTES:
        return jax.checkpoint(attention)(query, key, value)
    by_head = Recomputed(functools.partial(_head_by_head, attention))
    return by_platform("tpu", by_head, Recomputed(attention), query, key, value)


def _head_by_head(attention: Callable[..., Array], *args: Float[Array, "b t h d"]) -> Array:
    """`attention` of all heads, one after another."""
    heads = tuple(jnp.moveaxis(x, 2, 0)[:, :, :, None] for x in args)
    mixed = jax.lax.map(jax.checkpoint(lambda head: attention(*head)), heads)
    return jnp.moveaxis(mixed[:, :, :, 0], 0, 2)


@functools.cache
def fused_attention_runs() -> bool:
    """Whether this machine compiles cuDNN's attention and its gradient; tried once."""
    if jax.default_backend() != "gpu":
        return False
    tokens = jax.ShapeDtypeStruct((1, 5, 1, 64), jnp.bfloat16)

    def total(x: Array) -> Array:
        mixed = jax.nn.dot_product_attention(x, x, x, implementation="cudnn")
        return mixed.astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(total)).lower(tokens).compile()
    except (RuntimeError, NotImplementedError, ValueError) as error:  # none, or old hardware
        _LOG.warning("cuDNN's attention does not run here, XLA's is used: %s", error)
        return False
    return True


class Attention(nn.Module):
    """Multi-head self-attention with biases.

    key_bias   keys have a bias; without it the result differs by rounding only
    qkv_init   initialiser of the kernels of query, key and value
    out_init   initialiser of the output's kernel
    """

    num_heads: int
    causal: bool = False
    dtype: DTypeLike = jnp.float32
    key_bias: bool = True
    qkv_init: Initializer = nn.initializers.xavier_uniform()
    out_init: Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        *,
        value_path: bool = False,
        rope: rope_lib.Table | None = None,
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b t-1 c"] | None]:
        """(attention's output, with `value_path` out(value(x)) of all tokens but the first).

        `rope` rotates queries and keys of patches.
        """
        batch, tokens, channels = x.shape
        check_heads(self.num_heads, width=channels)
        heads = (self.num_heads, channels // self.num_heads)
        # As one matrix: contracting batch and tokens as two axes makes XLA transpose both factors on CPUs.
        rows = x.reshape(-1, channels)
        query, key, value = (
            nn.DenseGeneral(
                heads, kernel_init=self.qkv_init, use_bias=bias, dtype=self.dtype, name=name
            )(rows).reshape(batch, tokens, *heads)
            for name, bias in (("query", True), ("key", self.key_bias), ("value", True))
        )
        if rope is not None:
            query, key = (rope_lib.rotate(x, rope) for x in (query, key))
        out = nn.DenseGeneral(
            channels, axis=(-2, -1), kernel_init=self.out_init, dtype=self.dtype, name="out"
        )

        def project(mixed: Array) -> Array:
            return out(mixed.reshape(-1, *heads)).reshape(batch, -1, channels)

        mixed = attend(query, key, value, is_causal=self.causal)
        return project(mixed), project(value[:, 1:]) if value_path else None


def check_heads(num_heads: int, *, width: int) -> None:
    """ValueError where the heads do not divide the channels."""
    if width % num_heads:
        raise ValueError(
            f"num_heads={num_heads} does not divide {width} channels: choose a divisor"
        )
