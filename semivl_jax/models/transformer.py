"""Pre-LN transformer blocks of the image and text towers, with the value path of MaskCLIP.

In and out: tokens B×T×C of any value range. Parameters are float32; `dtype` is the precision of the
arithmetic, statistics of norms and softmax are float32. Names and shapes of parameters are those of
big_vision's encoder, so its checkpoints fit.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models.platforms import Recomputed, by_platform

_LOG = logging.getLogger(__name__)

Remat = Literal["none", "blocks", "dots"]
"""What the backward pass makes again: only the cheap maps inside of blocks, whole blocks from their inputs,
or all of a block but products with weights."""

HEAD_BY_HEAD_BYTES = 2**23
"""Attention weights of an image, all heads in float32, from which on a TPU computes the heads in turn."""


def rematerialized(module: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """The same module; of its parts `remat` says what is not kept for the backward pass."""
    if remat == "none":
        return module
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(module, policy=saved)


def attend(
    query: Float[Array, "b t h d"],
    key: Float[Array, "b t h d"],
    value: Float[Array, "b t h d"],
    *,
    is_causal: bool = False,
) -> Float[Array, "b t h d"]:
    """Scaled dot-product attention; the backward pass makes the t×t weights again instead of keeping them.

    cuDNN's fused kernel does that by itself and never makes them whole. It takes half precision, heads of a
    multiple of 8 channels up to 128 and, without mask and bias as here, any number of tokens: 1025 need no
    padding. Elsewhere XLA's products and softmax are used, on TPUs head by head where there are many tokens:
    the weights of one head stay in the chip's fast memory, those of all went to HBM and back several times.
    """
    attention = functools.partial(jax.nn.dot_product_attention, is_causal=is_causal)
    tokens, heads, channels = query.shape[1:]
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if half and channels % 8 == 0 and channels <= 128 and _fused_attention_runs():
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
def _fused_attention_runs() -> bool:
    """Whether this machine compiles cuDNN's attention and its gradient; found out by trying, once."""
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
    """Multi-head self-attention, and the same layer with each token attending to itself only."""

    num_heads: int
    causal: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], *, value_path: bool
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b t-1 c"] | None]:
        """Attention's output, and out(value(x)) of all tokens but the first if `value_path`."""
        batch, tokens, channels = x.shape
        heads = (self.num_heads, channels // self.num_heads)
        init = nn.initializers.xavier_uniform()
        # All tokens of the batch as rows of one matrix: a gradient that contracts batch and tokens as two
        # axes makes XLA transpose both of its factors on CPUs.
        rows = x.reshape(-1, channels)
        query, key, value = (
            nn.DenseGeneral(heads, kernel_init=init, dtype=self.dtype, name=name)(rows).reshape(
                batch, tokens, *heads
            )
            for name in ("query", "key", "value")
        )
        out = nn.DenseGeneral(
            channels, axis=(-2, -1), kernel_init=init, dtype=self.dtype, name="out"
        )

        def joined(mixed: Array) -> Array:
            return out(mixed.reshape(-1, *heads)).reshape(batch, -1, channels)

        mixed = attend(query, key, value, is_causal=self.causal)
        return joined(mixed), joined(value[:, 1:]) if value_path else None


class Mlp(nn.Module):
    """Two linear layers with GELU (exact, or `tanh_gelu`: flax's approximation) or CLIP's QuickGELU."""

    hidden: int
    quick_gelu: bool = False
    tanh_gelu: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """Apply to every token."""
        init = nn.initializers.xavier_uniform()
        channels = x.shape[-1]
        x = nn.Dense(self.hidden, kernel_init=init, dtype=self.dtype, name="Dense_0")(x)
        # Of the widest map of a block only one copy is kept for the backward pass.
        x = jax.checkpoint(self._gelu)(x)
        return nn.Dense(channels, kernel_init=init, dtype=self.dtype, name="Dense_1")(x)

    def _gelu(self, x: Array) -> Array:
        return (
            x * nn.sigmoid(1.702 * x) if self.quick_gelu else nn.gelu(x, approximate=self.tanh_gelu)
        )


def layer_norm(name: str | None, *, eps: float, dtype: DTypeLike) -> nn.LayerNorm:
    """LayerNorm over channels; the variance from differences, not from E[x²] − E[x]².

    The backward pass computes it again from its input.
    """
    make = nn.remat(nn.LayerNorm)
    return make(epsilon=eps, use_fast_variance=False, dtype=dtype, name=name)


def patch_embedding(width: int, patch_size: int, *, use_bias: bool, dtype: DTypeLike) -> nn.Conv:
    """One linear layer over every whole patch; rows and columns that fill none are dropped."""
    patch = (patch_size, patch_size)
    return nn.Conv(
        width,
        patch,
        strides=patch,
        padding="VALID",
        use_bias=use_bias,
        dtype=dtype,
        name="embedding",
    )


def with_class_token(
    token: Float[Array, "1 1 c"], patches: Float[Array, "b y x c"]
) -> Float[Array, "b 1+y*x c"]:
    """A map of patches as a sequence behind the class token, in the map's dtype."""
    batch, rows, cols, width = patches.shape
    first = jnp.broadcast_to(jnp.asarray(token, patches.dtype), (batch, 1, width))
    return jnp.concatenate([first, patches.reshape(batch, rows * cols, width)], axis=1)


def check_taps(out_indices: tuple[int, ...], *, last: int, meaning: str) -> None:
    """ValueError unless `out_indices` ascend within 0 … `last`, which the message calls by its `meaning`."""
    if not out_indices or any(tap not in range(last + 1) for tap in out_indices):
        raise ValueError(f"out_indices={out_indices}: name one or more of 0 … {meaning}={last}")
    if list(out_indices) != sorted(set(out_indices)):
        raise ValueError(f"out_indices={out_indices} must ascend without repetition")


def check_heads(num_heads: int, *, width: int) -> None:
    """ValueError where the channels cannot be shared among the heads."""
    if width % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide width={width}: choose a divisor")


class Block(nn.Module):
    """One pre-LN block.

    With `value_path` it also returns what it makes of the patch tokens when every token attends to
    itself alone (METHOD 1.5); the first token, the class token, is left out. `layer_scale` multiplies
    the output of attention and MLP with a trained factor per channel, fresh ones are `layer_scale`.
    `drop_rate` is the share of images that skip attention or MLP (stochastic depth); it acts only where
    the caller gives a "dropout" key.
    """

    num_heads: int
    mlp_dim: int
    value_path: bool = False
    causal: bool = False
    quick_gelu: bool = False
    tanh_gelu: bool = False
    layer_scale: float | None = None
    drop_rate: float = 0.0
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"]
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b t-1 c"] | None]:
        """(normal output, output of the value path or None)."""
        # Without the barrier XLA keeps the branches of all blocks and adds them up anew in every block, and
        # their gradients as well: a third of a second per step of ViT-B/16 on two CPU cores.
        x = jax.lax.optimization_barrier(x)
        scale_attention, scale_mlp = self._scale("LayerScale_0", x), self._scale("LayerScale_1", x)
        attention = Attention(
            self.num_heads, self.causal, self.dtype, name="MultiHeadDotProductAttention_0"
        )
        norm = layer_norm("LayerNorm_1", eps=self.eps, dtype=self.dtype)
        mlp = Mlp(self.mlp_dim, self.quick_gelu, self.tanh_gelu, self.dtype, name="MlpBlock_0")
        y = layer_norm("LayerNorm_0", eps=self.eps, dtype=self.dtype)(x)
        mixed, own = attention(y, value_path=self.value_path)
        mixed = x + self._drop(scale_attention(mixed))
        mixed = mixed + self._drop(scale_mlp(mlp(norm(mixed))))
        if own is not None:
            own = x[:, 1:] + scale_attention(own)
            own = own + scale_mlp(mlp(norm(own)))
        return mixed, own

    def _scale(self, name: str, x: Array) -> Callable[[Array], Array]:
        if self.layer_scale is None:
            return lambda branch: branch
        init = nn.initializers.constant(self.layer_scale)
        factor = jnp.asarray(self.param(name, init, (x.shape[-1],)), self.dtype)
        return lambda branch: branch * factor[None, None, :]

    def _drop(self, branch: Array) -> Array:
        if self.drop_rate == 0 or not self.has_rng("dropout"):
            return branch
        return nn.Dropout(self.drop_rate, broadcast_dims=(1, 2), deterministic=False)(branch)


@functools.cache
def shared_block(remat: Remat) -> type[Block]:
    """`Block`, traced and lowered once for all blocks of equal options on tokens of equal shape."""
    return nn.jit(rematerialized(Block, remat))


class Encoder(nn.Module):
    """A stack of blocks and its final norm.

    `value_paths` lists the blocks whose value path is wanted; the last block's one passes the final
    norm like its normal output, the others are raw. `remat` says what the backward
    pass makes again.
    """

    depth: int
    num_heads: int
    mlp_dim: int
    value_paths: tuple[int, ...] = ()
    causal: bool = False
    quick_gelu: bool = False
    tanh_gelu: bool = False
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"]
    ) -> tuple[Float[Array, "b t c"], dict[int, Float[Array, "b t-1 c"]]]:
        """(tokens after all blocks and the norm, value paths by block)."""
        make = shared_block(self.remat)
        values = {}
        for i in range(self.depth):
            block = make(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                value_path=i in self.value_paths,
                causal=self.causal,
                quick_gelu=self.quick_gelu,
                tanh_gelu=self.tanh_gelu,
                eps=self.eps,
                dtype=self.dtype,
                name=f"encoderblock_{i}",
            )
            x, value = block(x)
            if value is not None:
                values[i] = value
        norm = layer_norm("encoder_norm", eps=self.eps, dtype=self.dtype)
        last = self.depth - 1
        return norm(x), {i: norm(v) if i == last else v for i, v in values.items()}


class TappedEncoder(nn.Module):
    """A stack of blocks that returns the tokens after some of them, all through the final norm.

    `drop_rate` rises linearly from 0 in the first block to this value in the last. Other options as for
    `Block` and `Encoder`.
    """

    depth: int
    num_heads: int
    mlp_dim: int
    out_indices: tuple[int, ...]
    tanh_gelu: bool = False
    layer_scale: float | None = None
    drop_rate: float = 0.0
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], *, train: bool
    ) -> tuple[Float[Array, "b t c"], tuple[Float[Array, "b t c"], ...]]:
        """(tokens after all blocks, tokens after the tapped ones); `train` lets blocks be skipped."""
        make = shared_block(self.remat)
        tapped = []
        for i in range(self.depth):
            x, _ = make(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                tanh_gelu=self.tanh_gelu,
                layer_scale=self.layer_scale,
                drop_rate=self.drop_rate * i / max(self.depth - 1, 1) if train else 0.0,
                eps=self.eps,
                dtype=self.dtype,
                name=f"encoderblock_{i}",
            )(x)
            if i in self.out_indices:
                tapped.append(x)
        norm = layer_norm("encoder_norm", eps=self.eps, dtype=self.dtype)
        return norm(x), tuple(norm(tokens) for tokens in tapped)
