"""Pre-LN transformer blocks of the image and text towers, with the value path of MaskCLIP.

In and out: tokens B×T×C of any value range. Parameters are float32; `dtype` is the precision of the
arithmetic, statistics of norms and softmax are float32. Names and shapes of parameters are those of
big_vision's encoder, so its checkpoints fit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float


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
        channels = x.shape[-1]
        heads = (self.num_heads, channels // self.num_heads)
        init = nn.initializers.xavier_uniform()
        query, key, value = (
            nn.DenseGeneral(heads, kernel_init=init, dtype=self.dtype, name=name)(x)
            for name in ("query", "key", "value")
        )
        out = nn.DenseGeneral(
            channels, axis=(-2, -1), kernel_init=init, dtype=self.dtype, name="out"
        )
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        return out(mixed), out(value[:, 1:]) if value_path else None


class Mlp(nn.Module):
    """Two linear layers with GELU (exact) or CLIP's QuickGELU between them."""

    hidden: int
    quick_gelu: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """Apply to every token."""
        init = nn.initializers.xavier_uniform()
        channels = x.shape[-1]
        x = nn.Dense(self.hidden, kernel_init=init, dtype=self.dtype, name="Dense_0")(x)
        x = x * nn.sigmoid(1.702 * x) if self.quick_gelu else nn.gelu(x, approximate=False)
        return nn.Dense(channels, kernel_init=init, dtype=self.dtype, name="Dense_1")(x)


def layer_norm(name: str, *, eps: float, dtype: DTypeLike) -> nn.LayerNorm:
    """LayerNorm over channels; the variance from differences, not from E[x²] − E[x]²."""
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=dtype, name=name)


class Block(nn.Module):
    """One pre-LN block. With `value_path` it also returns what it makes of the patch tokens when
    every token attends to itself alone (METHOD 1.5); the first token, the class token, is left out.
    """

    num_heads: int
    mlp_dim: int
    value_path: bool = False
    causal: bool = False
    quick_gelu: bool = False
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"]
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b t-1 c"] | None]:
        """(normal output, output of the value path or None)."""
        attention = Attention(
            self.num_heads, self.causal, self.dtype, name="MultiHeadDotProductAttention_0"
        )
        norm = layer_norm("LayerNorm_1", eps=self.eps, dtype=self.dtype)
        mlp = Mlp(self.mlp_dim, self.quick_gelu, self.dtype, name="MlpBlock_0")
        y = layer_norm("LayerNorm_0", eps=self.eps, dtype=self.dtype)(x)
        mixed, own = attention(y, value_path=self.value_path)
        mixed = x + mixed
        mixed = mixed + mlp(norm(mixed))
        if own is not None:
            own = x[:, 1:] + own
            own = own + mlp(norm(own))
        return mixed, own


class Encoder(nn.Module):
    """A stack of blocks and its final norm.

    `value_paths` lists the blocks whose value path is wanted; the last block's one passes the final
    norm like its normal output, the others are raw. `remat` keeps only the blocks' inputs for the
    backward pass and computes the rest again.
    """

    depth: int
    num_heads: int
    mlp_dim: int
    value_paths: tuple[int, ...] = ()
    causal: bool = False
    quick_gelu: bool = False
    eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"]
    ) -> tuple[Float[Array, "b t c"], dict[int, Float[Array, "b t-1 c"]]]:
        """(tokens after all blocks and the norm, value paths by block)."""
        make = nn.remat(Block) if self.remat else Block
        values = {}
        for i in range(self.depth):
            block = make(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                value_path=i in self.value_paths,
                causal=self.causal,
                quick_gelu=self.quick_gelu,
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
