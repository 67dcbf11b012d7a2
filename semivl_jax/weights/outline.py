"""CLIP towers as shapes alone, for tracing a step before any weights are there.

In: the name of a tower. Out: `Clip` whose image parameters are `jax.ShapeDtypeStruct`; there are no text
parameters and nothing can be embedded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from semivl_jax.models.pos_embed import Grid
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.types import PyTree
from semivl_jax.weights.towers import IMAGE_SIZES, TEXT_SIZES, Clip


def clip_outline(tower: str) -> Clip:
    """Sizes of a tower; ValueError for an unknown name."""
    if tower not in IMAGE_SIZES:
        raise ValueError(
            f"model.tower = {tower!r} is no known tower; use one of {', '.join(IMAGE_SIZES)}"
        )
    image = IMAGE_SIZES[tower]
    return Clip(
        image=image,
        image_params=image_shapes(image, (14, 14)),
        text=TEXT_SIZES[tower],
        text_params={},
        logit_scale=100.0,
    )


def image_shapes(image: dict[str, int], grid: Grid) -> PyTree:
    """Shapes of the image tower's parameters with a position table for this grid."""
    vision = VisionTransformer(**CLIP, **image, grid=grid, out_indices=(image["depth"],))
    pixels = jnp.zeros((1, *(side * vision.patch_size for side in grid), 3))
    return jax.eval_shape(vision.init, jax.random.key(0), pixels)["params"]
