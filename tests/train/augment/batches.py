"""Random crops for the tests of augmentation."""

import jax.numpy as jnp
import numpy as np

from semivl_jax.types import Batch, ImageBatch, LabelledBatch


def images(count: int = 4, size: int = 20, seed: int = 0):
    """Smooth random colours, uint8 [count, size, size, 3], with pure black, white and grey among them."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    image[:, 0, :4] = np.array([0, 255, 127, 128], np.uint8)[None, :, None]
    return image


def floats(count: int = 4, size: int = 20, seed: int = 0):
    return jnp.asarray(images(count, size, seed), jnp.float32)


def batch(count: int = 16, size: int = 12, *, partner: bool = True) -> Batch:
    def crops(seed: int) -> ImageBatch:
        valid = np.random.default_rng(seed).integers(size // 2, size + 1, (count, 2))
        return ImageBatch(jnp.asarray(images(count, size, seed)), jnp.asarray(valid, jnp.int32))

    labelled = images(count, size, 3)
    # The label is the red channel, so that an image and its label can be seen to move together.
    return Batch(
        labelled=LabelledBatch(jnp.asarray(labelled), jnp.asarray(labelled[..., 0])),
        streams={"unlabelled": crops(1)} | ({"unlabelled.1": crops(2)} if partner else {}),
    )
