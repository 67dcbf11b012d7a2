"""Maps of classes that follow the image: along CLIP's attention, or along the colours of the pixels.

In and out: float32 maps of any value range, one per class.

Source: ExCEL (arXiv 2503.20826), which takes the affinity from CLIP-ES (arXiv 2212.09506) and the refinement
of pixels (PAR) from AFA (arXiv 2203.02664).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

ROUNDS = 3
"""Of the normalisation of columns and rows."""
ITERATIONS = 20
DILATIONS = (1, 2, 4, 8, 12, 24)
COLOUR_SCALE, POSITION_WEIGHT = 0.3, 0.01

_NEIGHBOURS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))


def affinity(attention: Float[Array, "b p p"]) -> Float32[Array, "b p p"]:
    """How much every patch takes from the others: symmetric, rows sum to 1, two steps of a random walk."""
    for _ in range(ROUNDS):
        attention = attention / attention.sum(1, keepdims=True)
        attention = attention / attention.sum(2, keepdims=True)
    step = (attention + attention.swapaxes(1, 2)) / 2
    return jnp.matmul(step, step, precision=jax.lax.Precision.HIGHEST)


def along_attention(
    maps: Float[Array, "b y x n"], attention: Float[Array, "b y*x y*x"]
) -> Float32[Array, "b y x n"]:
    """Every patch takes the mean of the others, weighted by `affinity`."""
    shape = maps.shape
    patches = maps.reshape(shape[0], -1, shape[-1])
    mixed = jnp.matmul(affinity(attention), patches, precision=jax.lax.Precision.HIGHEST)
    return mixed.reshape(shape)


def with_range_of(
    maps: Float[Array, "b y x n"], before: Float[Array, "b y x n"]
) -> Float32[Array, "b y x n"]:
    """Maps stretched so that each has the lowest and the highest value that it had `before`."""

    def ends(of: Array) -> tuple[Array, Array]:
        return of.min((1, 2), keepdims=True), of.max((1, 2), keepdims=True)

    (low, high), (to_low, to_high) = ends(maps), ends(before)
    return to_low + (maps - low) / (high - low + 1e-7) * (to_high - to_low)


def along_colours(
    maps: Float[Array, "b h w n"],
    image: Float[Array, "b h w c"],
    *,
    iterations: int = ITERATIONS,
    dilations: tuple[int, ...] = DILATIONS,
) -> Float32[Array, "b h w n"]:
    """Every pixel repeatedly takes the mean of its neighbours, weighted by how alike their colours are.

    Neighbours are the eight around it at each of the distances `dilations`. Differences of colours count in
    standard deviations of the neighbours, channel by channel.
    """
    far = max(dilations)
    steps = [(d * y, d * x) for d in dilations for y, x in _NEIGHBOURS]
    starts = jnp.asarray(steps, jnp.int32) + far

    def neighbours_of(values: Array) -> Callable[[Array], Array]:
        padded = jnp.pad(values, ((0, 0), (far, far), (far, far), (0, 0)), mode="edge")
        return lambda at: jax.lax.dynamic_slice(padded, (0, at[0], at[1], 0), values.shape)

    colours = jax.lax.map(neighbours_of(image), starts)
    spread = jnp.std(colours, axis=0, ddof=1)
    unlike = (jnp.abs(colours - image[None]) / (spread[None] + 1e-8) / COLOUR_SCALE) ** 2
    weights = jax.nn.softmax(-unlike.mean(-1), axis=0)
    distance = np.hypot(*np.transpose(steps))
    distant = (distance / (distance.std(ddof=1) + 1e-8) / COLOUR_SCALE) ** 2
    near = POSITION_WEIGHT * jax.nn.softmax(-jnp.asarray(distant, jnp.float32))
    weights = weights + near[:, None, None, None]

    def iterate(now: Array, _: None) -> tuple[Array, None]:
        neighbour = neighbours_of(now)

        def add(total: Array, of: tuple[Array, Array]) -> tuple[Array, None]:
            weight, start = of
            return total + weight[..., None] * neighbour(start), None

        return jax.lax.scan(add, jnp.zeros_like(now), (weights, starts))[0], None

    return jax.lax.scan(iterate, maps.astype(jnp.float32), length=iterations)[0]
