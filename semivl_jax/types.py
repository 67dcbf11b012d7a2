"""Types that the packages exchange, and the letters of their dimensions.

    b  images of a batch          h w  pixel rows, columns        s    side of a square crop
    n  classes                    y x  patch rows, columns        c d  channels
    k  text rows (concepts; = n where every class has one)

Images on the host are uint8 RGB in [0, 255]; inside the training step they are float32, normalised with the
ImageNet statistics. Labels are class indices, 255 is ignored. `ignore` maps are boolean, true where a
pixel is padding and must not count.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt8

IGNORE_INDEX = 255

# Channel statistics (R, G, B) of images in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

PyTree = Any
Key = jax.Array


@dataclasses.dataclass(frozen=True)
class Stream:
    """A stream of images that a method needs beside the labelled crops.

    name: key in `Batch.streams`.
    crops: crops of the same photo per step; more than one are independent draws of scale and place.
    source: "unlabelled" (the run's own unlabelled images), or the name of a further image source.
    labels: whether stored label maps come along.
    """

    name: str
    crops: int = 1
    source: str = "unlabelled"
    labels: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of its crops in `Batch.streams`: NAME, NAME.1, …"""
        return (self.name, *(f"{self.name}.{crop}" for crop in range(1, self.crops)))


@struct.dataclass
class LabelledBatch:
    """Labelled crops as the host sends them; the label is 255 where void or padding."""

    image: UInt8[Array, "b s s 3"]
    label: UInt8[Array, "b s s"]


@struct.dataclass
class ImageBatch:
    """Crops of a stream; `size` = (rows, columns) that are image, the rest is padding right and below."""

    image: UInt8[Array, "b s s 3"]
    size: Int32[Array, "b 2"]
    label: UInt8[Array, "b s s"] | None = None


@struct.dataclass
class Batch:
    """One training step's data: labelled crops, and the method's streams by `Stream.keys`."""

    labelled: LabelledBatch
    streams: dict[str, ImageBatch] = struct.field(default_factory=dict)


@struct.dataclass
class StreamViews:
    """Normalised views of the same crops: w weak, s1 and s2 strong; `label` where the stream has one."""

    w: Float[Array, "b h w 3"]
    s1: Float[Array, "b h w 3"]
    s2: Float[Array, "b h w 3"]
    ignore: Bool[Array, "b h w"]
    label: Int32[Array, "b h w"] | None = None


@struct.dataclass
class Views:
    """Normalised images before CutMix, and the CutMix boxes of s1 and s2 (true: the partner is seen)."""

    x: Float[Array, "b h w 3"]
    y: Int[Array, "b h w"]
    streams: dict[str, StreamViews] = struct.field(default_factory=dict)
    boxes: dict[str, Bool[Array, "b h w"]] = struct.field(default_factory=dict)


@struct.dataclass
class ClassText:
    """Text embeddings and the class that each row describes (several rows: several concepts).

    `logit_scale` and `logit_bias` turn cosines into probabilities: with a softmax over the classes, or, if
    there is a bias, with a sigmoid for each class.
    """

    embeddings: Float[Array, "k d"]
    class_of: Int32[Array, " k"]
    num_classes: int = struct.field(pytree_node=False)
    logit_scale: float = struct.field(pytree_node=False, default=100.0)
    logit_bias: float | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class Features:
    """What an encoder hands to a decoder.

    `maps` runs from shallow to deep and ends with the deepest map (for CLIP towers the dense embedding,
    unit length over channels); `conv` is the map of the convolutional encoder, if there is one; `pooled`
    is the embedding of the whole image (for CLIP towers unit length).
    """

    maps: tuple[Float[Array, "b _ _ _"], ...]
    conv: Float[Array, "b _ _ _"] | None = None
    pooled: Float[Array, "b d"] | None = None


@struct.dataclass
class PseudoLabels:
    """Hard labels and their confidence, the highest class probability."""

    label: Int32[Array, "b h w"]
    confidence: Float32[Array, "b h w"]
