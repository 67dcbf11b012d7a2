"""CutMix: one random rectangle per image, or none, or several; and pasting a partner into them.

In: a key, the number of images and the side of the square crop. Out: rectangles int32 [b, 4] as
(left, top, width, height), all 0 for none, or masks bool [b, s, s], true inside; mixed images and maps.

Source: docs/semivl.md 6 and 9.19; CutMix (Yun et al., ICCV 2019); several boxes: MGD (arXiv 2208.10169).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped

from semivl_jax.types import Key

PROBABILITY = 0.5
AREA = (0.02, 0.4)  # share of the crop
RATIO = (0.3, 1 / 0.3)  # height : width
XOR_AREA = (0.25, 0.5)  # of the boxes of `xor_masks` together

# The published loop samples until a box fits. A fixed number avoids a device loop that waits for the
# slowest image: even of the largest area one draw in 17 fits, so that none of 256 does only once in
# eight million such boxes.
_DRAWS = 256


def cutmix_boxes(key: Key, count: int, *, size: int) -> Bool[Array, "b s s"]:
    """Masks of independent boxes, true where the partner is seen; half of them are empty."""
    return box_masks(draw_rectangles(key, count, size=size), size=size)


def draw_rectangles(key: Key, count: int, *, size: int) -> Int32[Array, "b 4"]:
    """(left, top, width, height) of each box in pixels; zeros where an image gets none.

    The area is drawn once. Ratio and corner, an integer position anywhere in the crop, are drawn again
    until the box lies inside: large areas therefore lean towards squares.

    Errors: ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"CutMix in a crop of {size} pixels: the side must be at least 1")
    # One call for all numbers: entry [i, j] depends on the key, i and j, not on the batch's size.
    draws = jax.random.uniform(key, (count, 2 + 3 * _DRAWS))
    return jax.vmap(lambda row: _rectangle(row, size))(draws)


def box_masks(rectangles: Int32[Array, "b 4"], *, size: int) -> Bool[Array, "b s s"]:
    """True inside the rectangles."""
    left, top, width, height = (rectangles[:, i, None] for i in range(4))
    place = jnp.arange(size)[None, :]
    columns = (place >= left) & (place < left + width)
    rows = (place >= top) & (place < top + height)
    return rows[:, :, None] & columns[:, None, :]


def xor_masks(key: Key, count: int, *, size: int, boxes: int = 3) -> Bool[Array, "b s s"]:
    """Masks of several boxes, of which every one inverts what lies below it.

    The area of each is a share of the crop from `XOR_AREA` divided by the number of boxes; all lie inside.
    """
    draws = jax.random.uniform(key, (count, boxes, 4))
    low, high = XOR_AREA
    area = low + draws[..., 0] * (high - low)
    return xor_masks_of(area, draws[..., 1], draws[..., 2:], size=(size, size))


def xor_masks_of(
    area: Float[Array, "b k"],
    aspect: Float[Array, "b k"],
    position: Float[Array, "b k 2"],
    *,
    size: tuple[int, int],
) -> Bool[Array, "b {size[0]} {size[1]}"]:
    """The masks of such draws: areas before the division, two of U(0, 1) for aspect and place."""
    height, scale = jnp.exp(aspect * jnp.log(area)), area.shape[1] ** -0.5
    inside = []
    for axis, side in enumerate((height, area / height)):
        length = jnp.round(side * (scale * size[axis]))
        start = jnp.round((size[axis] - length) * position[..., axis])
        place = jnp.arange(size[axis])[None, None, :]
        inside.append((place >= start[..., None]) & (place < (start + length)[..., None]))
    covered = inside[0][..., :, None] & inside[1][..., None, :]
    return jnp.sum(covered, axis=1) % 2 == 1


def _rectangle(draws: Float32[Array, " d"], size: int) -> Int32[Array, "4"]:
    """One rectangle from numbers of U(0, 1): whether, area, then ratio, left and top of every try."""
    area = (AREA[0] + draws[1] * (AREA[1] - AREA[0])) * (size * size)
    ratio, left, top = draws[2:].reshape(3, _DRAWS)
    ratio = RATIO[0] + ratio * (RATIO[1] - RATIO[0])
    # The last candidate is a square, which any allowed area leaves room for (√0.4 < 1), so that there
    # always is one that fits.
    ratio = jnp.append(ratio, 1.0)
    width = jnp.floor(jnp.sqrt(area / ratio)).astype(jnp.int32)
    height = jnp.floor(jnp.sqrt(area * ratio)).astype(jnp.int32)
    left, top = (jnp.floor(draw * size).astype(jnp.int32) for draw in (left, top))
    left = jnp.append(left, left[0] % (size - width[-1]))
    top = jnp.append(top, top[0] % (size - height[-1]))

    fits = (left + width <= size) & (top + height <= size)
    chosen = jnp.argmax(fits)  # the first that fits
    rectangle = jnp.stack([left[chosen], top[chosen], width[chosen], height[chosen]])
    return jnp.where(draws[0] < PROBABILITY, rectangle, 0)


def mix(
    box: Bool[Array, "b h w"],
    here: Shaped[Array, "b h w *c"],
    partner: Shaped[Array, "b h w *c"],
) -> Shaped[Array, "b h w *c"]:
    """`partner` inside the box, `here` outside; for images and for maps.

    Errors: ValueError where the two differ in dtype (the result would silently take the wider one).
    """
    if here.dtype != partner.dtype:
        raise ValueError(
            f"CutMix of {here.dtype} with {partner.dtype}: give both arrays the same dtype"
        )
    return jnp.where(box.reshape(box.shape + (1,) * (here.ndim - 3)), partner, here)
