"""A network small enough to evaluate by hand, and evaluation written out the slow way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from semivl_jax.evaluation.sliding_window import SlidingWindow
from semivl_jax.models.resize import avg_pool, bilinear
from semivl_jax.types import IMAGENET_MEAN, IMAGENET_STD

CROP, PATCH, CLASSES = 16, 4, 5
SIZES = [(16, 16), (23, 37), (40, 18), (9, 30), (16, 50), (5, 7)]


@dataclasses.dataclass
class Example:
    id: str
    image: np.ndarray
    label: np.ndarray


def window(mode="zegclip_sliding_window", **changes):
    """Windows for `apply`; the stride of 10 is read in some modes only."""
    options = {"crop": CROP, "stride": 10, "window_batch": 2, "patch_size": PATCH} | changes
    return SlidingWindow(mode=mode, **options)


def apply(variables, images):
    """Patch means, a linear map, a squash; zero padding to whole patches as the towers do it."""
    down, right = (-n % PATCH for n in images.shape[1:3])
    images = jnp.pad(images, ((0, 0), (0, down), (0, right), (0, 0)))
    means = avg_pool(images, (PATCH, PATCH))
    logits = jnp.tanh(jnp.einsum("bhwc,cn->bhwn", means, variables["w"], precision="highest"))
    return bilinear(3 * logits, (CROP, CROP), align_corners=False)


def make_variables(seed=0):
    return {"w": np.random.default_rng(seed).normal(size=(3, CLASSES)).astype(np.float32)}


def make_example(seed, size, label_size=None):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3))
    rows, cols = (np.arange(n) * m // n for n, m in zip(size, coarse.shape, strict=False))
    image = coarse[rows][:, cols].astype(np.uint8)
    label = rng.integers(0, CLASSES, label_size or size).astype(np.uint8)
    label[rng.random(label.shape) < 0.1] = 255
    return Example(f"image_{seed}", image, label)


def normalize(image):
    return ((image / 255 - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)


@jax.jit
def _forward(variables, window):
    """Logits of one window at its own size."""
    return bilinear(apply(variables, window[None]), window.shape[:2], align_corners=False)[0]


def slow_scores(variables, image, size, *, mode, stride=10):
    """Scores [*size, n] of a normalised image, window by window as docs/semivl.md 7 describes it."""
    h, w = image.shape[:2]

    def forward(window):
        return np.asarray(_forward(variables, window))

    if mode in ("original", "center_crop"):
        if mode == "center_crop":
            side = [min(n, CROP) for n in (h, w)]
            top, left = (h - side[0]) // 2, (w - side[1]) // 2
            return np.asarray(forward(image[top : top + side[0], left : left + side[1]]))
        return np.asarray(bilinear(jnp.asarray(forward(image))[None], size, align_corners=True)[0])
    step = stride if mode in ("zegclip_sliding_window", "padded_sliding_window") else CROP * 2 // 3
    if mode == "zegclip_sliding_window":
        total, visits = np.zeros((h, w, CLASSES)), np.zeros((h, w, 1))
        for i in range(max(h - CROP + step - 1, 0) // step + 1):
            for j in range(max(w - CROP + step - 1, 0) // step + 1):
                bottom, right = min(i * step + CROP, h), min(j * step + CROP, w)
                here = slice(max(bottom - CROP, 0), bottom), slice(max(right - CROP, 0), right)
                total[here] += forward(image[here])
                visits[here] += 1
        mean = jnp.asarray(total / visits, jnp.float32)
        return np.asarray(bilinear(mean[None], size, align_corners=True)[0])
    canvas = np.pad(image, ((0, CROP), (0, CROP), (0, 0)))
    total = np.zeros((h + CROP, w + CROP, CLASSES))
    shifts = mode == "shifted_sliding_window"
    tops, lefts = ((_shifted(n, step) if shifts else range(0, n, step)) for n in (h, w))
    for top in tops:
        for left in lefts:
            bottom, right = top + CROP, left + CROP
            if mode != "padded_sliding_window":
                bottom, right = min(bottom, h), min(right, w)
            window = canvas[top:bottom, left:right]
            raised = np.exp(forward(window))
            total[top:bottom, left:right] += raised / raised.sum(-1, keepdims=True)
    return total[:h, :w]


def _shifted(length, step):
    """Starts of windows of which the last one ends with the image."""
    starts = [0]
    while starts[-1] + CROP < length:
        starts.append(min(starts[-1] + step, length - CROP))
    return starts


def make_examples():
    """An odd number of examples, so that two processes have unequal shares."""
    return [make_example(i, (20 + i, 33)) for i in range(5)]
