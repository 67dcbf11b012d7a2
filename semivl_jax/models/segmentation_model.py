"""The whole model: image encoder, optional convolutional encoder, decoder, resizing.

In: images B×H×W×3, float, normalised with the ImageNet statistics, and the text of the classes. Out:
float32 logits. `encode` and `decode` can be called separately (`method="encode"`).
"""

from __future__ import annotations

import functools

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from semivl_jax.models.image_normalization import renormalize
from semivl_jax.models.resize import bilinear
from semivl_jax.types import ClassText, Features, Key, PyTree


class SegmentationModel(nn.Module):
    """Encoder and decoder with `Features` between them.

    `crop` is the side of the training crop. With `renormalize` the backbone's input has CLIP's statistics;
    that of the convolutional encoder always has those of ImageNet. With `frozen_batch_norm` the encoders'
    batch norms use their running statistics in training as well, which do not change.
    """

    backbone: nn.Module
    decoder: nn.Module
    crop: int
    conv_encoder: nn.Module | None = None
    renormalize: bool = False
    frozen_batch_norm: bool = False

    @property
    def via_square(self) -> bool:
        """Logits are resized to the square of the crop before the image's size (docs/semivl.md 3.10).

        Otherwise only to the image's size, with aligned corners, as published for DINOv2 and ResNet.
        """
        return self.backbone.via_square

    @property
    def align_corners(self) -> bool:
        """Of the resize of logits."""
        return not self.via_square

    @property
    def padding_patch(self) -> int | None:
        """The patch size if windows padded to whole patches by the host have the same logits, else None.

        Logits change if the image is renormalised or convolved before the encoder pads it, or if their size
        is that of the window.
        """
        plain = self.conv_encoder is None and not self.renormalize and self.via_square
        return self.backbone.padding_patch if plain else None

    def encode(self, image: Float[Array, "b h w 3"], *, train: bool = False) -> Features:
        """Image to features.

        `train` uses batch statistics and, with a "dropout" key, dropout and stochastic depth.
        """
        train = train and not self.frozen_batch_norm
        features = self.backbone(renormalize(image) if self.renormalize else image, train=train)
        if self.conv_encoder is not None:
            features = features.replace(conv=self.conv_encoder(image, train=train))
        return features

    def decode(
        self,
        features: Features,
        text: ClassText | None,
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> Float32[Array, "b _ _ n"]:
        """Features to logits of `size` = (rows, columns); None: of the crop's square."""
        logits = self.decoder(features, text, train=train)
        return bilinear(logits, size or (self.crop, self.crop), align_corners=self.align_corners)

    def decode_grid(
        self, features: Features, text: ClassText | None, *, train: bool = False
    ) -> Float32[Array, "b _ _ n"]:
        """Features to logits of the crop's square, or via the square of the decoder's grid.

        Resized to the square (bilinear, half-pixel centres) the latter equal those of `decode`.
        """
        if self.align_corners:
            return self.decode(features, text, train=train)
        return self.decoder(features, text, train=train)

    def __call__(
        self, image: Float[Array, "b h w 3"], text: ClassText | None, *, train: bool = False
    ) -> Float32[Array, "b h w n"]:
        """Image to logits of its size."""
        size = image.shape[1:3]
        features = self.encode(image, train=train)
        logits = self.decode(features, text, size=None if self.via_square else size, train=train)
        return bilinear(logits, size, align_corners=self.align_corners)


@functools.partial(jax.jit, static_argnames=("segmenter", "method"))
def applied(
    segmenter: SegmentationModel, variables: PyTree, *arguments: PyTree, method: str
) -> PyTree:
    """The output of a method of the segmenter, with running batch statistics; traced once for all callers."""
    return segmenter.apply(variables, *arguments, method=method)


@functools.partial(jax.jit, static_argnames=("segmenter", "method"))
def applied_in_training(
    segmenter: SegmentationModel,
    variables: PyTree,
    *arguments: PyTree,
    method: str,
    dropout: Key | None,
) -> tuple[PyTree, PyTree]:
    """(output in training, updated running statistics); without the key `dropout` nothing is dropped."""
    rngs = {} if dropout is None else {"dropout": dropout}
    output, changed = segmenter.apply(
        variables, *arguments, train=True, method=method, mutable=["batch_stats"], rngs=rngs
    )
    return output, changed.get("batch_stats", {})
