"""Pre-LN transformer: blocks, prompts and pooling of every image and text encoder here.

In and out: tokens B×T×C of any value range. Parameters are float32; `dtype` is the precision of the
arithmetic, statistics of norms and softmax are float32. Names and shapes of parameters are those of
big_vision's encoder, so its checkpoints fit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from semivl_jax.models.attention import Attention
from semivl_jax.models.layers import uniform
from semivl_jax.models.rope import Table

Remat = Literal["none", "blocks", "dots"]
"""What the backward pass rematerialises: norms, GELU and attention weights; whole blocks from their inputs;
or all of a block except products with weights."""


def rematerialized(module: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """The module with `nn.remat` as `remat` requires."""
    if remat == "none":
        return module
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(module, policy=saved)


def layer_norm(name: str | None, *, eps: float, dtype: DTypeLike) -> nn.LayerNorm:
    """Rematerialised LayerNorm; the variance is not computed as E[x²] − E[x]²."""
    make = nn.remat(nn.LayerNorm)
    return make(epsilon=eps, use_fast_variance=False, dtype=dtype, name=name)


class Mlp(nn.Module):
    """Two linear layers with GELU (exact, or `tanh_gelu`: flax's approximation) or CLIP's QuickGELU.

    With `swiglu` a third one, `gate`, whose SiLU multiplies the hidden channels.
    """

    hidden: int
    quick_gelu: bool = False
    tanh_gelu: bool = False
    dtype: DTypeLike = jnp.float32
    swiglu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """Apply to every token."""
        init = nn.initializers.xavier_uniform()
        channels = x.shape[-1]
        hidden = nn.Dense(self.hidden, kernel_init=init, dtype=self.dtype, name="Dense_0")(x)
        # Keeps one copy of the widest map for the backward pass.
        if self.swiglu:
            gate = nn.Dense(self.hidden, kernel_init=init, dtype=self.dtype, name="gate")(x)
            x = jax.checkpoint(lambda gate, hidden: nn.silu(gate) * hidden)(gate, hidden)
        else:
            x = jax.checkpoint(self._gelu)(hidden)
        return nn.Dense(channels, kernel_init=init, dtype=self.dtype, name="Dense_1")(x)

    def _gelu(self, x: Array) -> Array:
        if self.quick_gelu:
            return x * nn.sigmoid(1.702 * x)
        return nn.gelu(x, approximate=self.tanh_gelu)


class Block(nn.Module):
    """One pre-LN block.

    value_path    also return the output for the patch tokens when every token attends only to itself
                  (docs/semivl.md 1.5), without the class token
    swiglu        see `Mlp`
    key_bias      see `Attention`
    layer_scale   initial value of a trained factor per channel for attention and MLP
    drop_path     probability that an image skips attention or MLP (stochastic depth); needs a "dropout" key
    """

    num_heads: int
    mlp_dim: int
    value_path: bool = False
    causal: bool = False
    quick_gelu: bool = False
    tanh_gelu: bool = False
    layer_scale: float | None = None
    drop_path: float = 0.0
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    swiglu: bool = False
    key_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], rope: Table | None = None
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b t-1 c"] | None]:
        """(normal output, output of the value path or None); `rope` is for `Attention`."""
        # Without the barrier XLA keeps the branches of all blocks and adds them up again in every block, and
        # their gradients too.
        x = jax.lax.optimization_barrier(x)
        scale_attention, scale_mlp = self._scale("LayerScale_0", x), self._scale("LayerScale_1", x)
        attention = Attention(
            self.num_heads,
            self.causal,
            self.dtype,
            self.key_bias,
            name="MultiHeadDotProductAttention_0",
        )
        norm = layer_norm("LayerNorm_1", eps=self.eps, dtype=self.dtype)
        mlp = Mlp(
            self.mlp_dim,
            self.quick_gelu,
            self.tanh_gelu,
            self.dtype,
            self.swiglu,
            name="MlpBlock_0",
        )
        y = layer_norm("LayerNorm_0", eps=self.eps, dtype=self.dtype)(x)
        mixed, own = attention(y, value_path=self.value_path, rope=rope)
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
        if self.drop_path == 0 or not self.has_rng("dropout"):
            return branch
        return nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=False)(branch)


@functools.cache
def _shared_block(remat: Remat) -> type[Block]:
    """`Block`, traced once for all blocks of equal options and shapes."""
    return nn.jit(rematerialized(Block, remat))


class Prompts(nn.Module):
    """Deep visual prompts: trained tokens for the first block and for `depth` blocks after it.

    They pass one linear layer and dropout. The encoder applies `norm` to all tokens after the last block.
    """

    count: int
    depth: int
    width: int
    patch_size: int
    dropout: float
    dtype: DTypeLike

    def setup(self) -> None:
        """Declare parameters, initialised as in visual prompt tuning."""
        init = uniform((6 / (3 * self.patch_size**2 + self.width)) ** 0.5)
        self.first = self.param("embedding", init, (1, self.count, self.width))
        self.deep = self.param("deep_embedding", init, (self.depth, self.count, self.width))
        self.projection = nn.Dense(
            self.width,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            bias_init=uniform(self.width**-0.5),
            dtype=self.dtype,
        )
        self.drop = nn.Dropout(self.dropout)
        self.norm = layer_norm(None, eps=1e-6, dtype=self.dtype)

    def insert(
        self, x: Float[Array, "b t c"], block: int, *, patches: int, train: bool
    ) -> Float[Array, "b _ c"]:
        """Replaces the prompts of the block before, between class token and patches, by those of `block`.

        Dropout acts if `train` and there is a "dropout" key.
        """
        cls, last = x[:, :1], x[:, -patches:]
        if block > self.depth:
            return jnp.concatenate([cls, last], axis=1)
        rows = self.first[0] if block == 0 else self.deep[block - 1]
        rows = self.projection(jnp.asarray(rows, self.dtype))
        rows = jnp.broadcast_to(rows[None], (x.shape[0], *rows.shape))
        rows = self.drop(rows, deterministic=not (train and self.has_rng("dropout")))
        return jnp.concatenate([cls, rows, last], axis=1)


class MapHead(nn.Module):
    """Multi-head attention pooling: a trained probe attends to all tokens, then a residual MLP."""

    num_heads: int
    mlp_dim: int
    tanh_gelu: bool
    eps: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b c"]:
        """One vector per sequence."""
        batch, _, width = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        probe = jnp.broadcast_to(jnp.asarray(probe, x.dtype), (batch, 1, width))
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, name="MultiHeadDotProductAttention_0"
        )
        pooled = attention(probe, x)
        mlp = Mlp(self.mlp_dim, tanh_gelu=self.tanh_gelu, dtype=self.dtype, name="MlpBlock_0")
        norm = layer_norm("LayerNorm_0", eps=self.eps, dtype=self.dtype)
        return (pooled + mlp(norm(pooled)))[:, 0]


class Encoder(nn.Module):
    """A stack of blocks and its final norm.

    out_indices   blocks whose tokens are returned beside the last ones, in any order
    value_path    for those blocks, return the value path instead (without the class token)
    norm_maps     apply the final norm to them; a value path of the last block is always normed
    drop_path     rises linearly from 0 in the first block to this value in the last
    remat         see `Remat`

    The other options are those of `Block`.
    """

    depth: int
    num_heads: int
    mlp_dim: int
    out_indices: tuple[int, ...] = ()
    value_path: bool = False
    norm_maps: bool = True
    causal: bool = False
    quick_gelu: bool = False
    tanh_gelu: bool = False
    layer_scale: float | None = None
    drop_path: float = 0.0
    eps: float = 1e-6
    swiglu: bool = False
    key_bias: bool = True
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        *,
        prompts: Prompts | None = None,
        rope: Table | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "b _ c"], dict[int, Float[Array, "b _ c"]]]:
        """(normed tokens after all blocks, tokens after the blocks of `out_indices`).

        `rope` is for `Attention`. `train` enables stochastic depth and dropout of prompts, which need a
        "dropout" key.
        """
        make = _shared_block(self.remat)
        patches, last, maps = x.shape[1] - 1, self.depth - 1, {}
        for i in range(self.depth):
            if prompts is not None:
                x = prompts.insert(x, i, patches=patches, train=train)
            block = make(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                value_path=self.value_path and i in self.out_indices,
                causal=self.causal,
                quick_gelu=self.quick_gelu,
                tanh_gelu=self.tanh_gelu,
                layer_scale=self.layer_scale,
                drop_path=self.drop_path * i / max(last, 1) if train else 0.0,
                eps=self.eps,
                swiglu=self.swiglu,
                key_bias=self.key_bias,
                dtype=self.dtype,
                name=f"encoderblock_{i}",
            )
            x, own = block(x, rope)
            if i in self.out_indices:
                maps[i] = x if own is None else own
        norm = layer_norm("encoder_norm", eps=self.eps, dtype=self.dtype)
        normed = norm(x if prompts is None else prompts.norm(x))
        for i in maps:
            if self.norm_maps or (self.value_path and i == last):
                maps[i] = norm(maps[i])
        return normed, maps
