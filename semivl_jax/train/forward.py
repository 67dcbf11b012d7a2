"""Forward passes inside a training step.

`forward` applies the student in training mode. `Networks` gives a method what it makes labels from:
predictions of student and teacher, labels of the frozen CLIP, its own networks. In: variables and normalised
images [b, h, w, 3]. Out: float logits [b, y, x, n] of the images' size or of a grid that is resized to it
bilinearly, and running statistics.

Source: docs/semivl.md 4.2 to 4.4, 9.5 to 9.7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int32

from semivl_jax.models import image_normalization
from semivl_jax.models import segmentation_model as segmenter_lib
from semivl_jax.models.clip_guidance import Guidance
from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.train.pseudo_labels import pseudo_labels
from semivl_jax.train.state import Frozen
from semivl_jax.types import ClassText, Features, Key, PseudoLabels, PyTree

DropoutPasses = Literal["none", "first", "all"]
Perturb = Callable[[dict[str, Features]], dict[str, Features]]


@struct.dataclass
class Outputs:
    """Of the student, by view: grid logits and the features from which they were decoded."""

    logits: dict[str, Array]
    features: dict[str, Features]


def forward(
    model: SegmentationModel,
    text: ClassText | None,
    variables: PyTree,
    passes: Sequence[Mapping[str, Float[Array, "b h w 3"]]],
    *,
    perturb: Perturb = lambda features: features,
    names: Collection[str],
    dropout: Key | None = None,
    dropout_passes: DropoutPasses = "none",
) -> tuple[Outputs, PyTree]:
    """Outputs of the views in `names`, and the running statistics afterwards.

    Args:
      model: the student.
      text: describes the classes to its decoder.
      variables: its parameters and running statistics.
      passes: images by view, pass by pass in the published order. Each pass has its own batch statistics and
        dropout; without either they are computed as one batch.
      perturb: changes the features of a pass, or adds perturbed copies under new names.
      names: views whose logits are used. Others are decoded only where a decoder's batch statistics are taken
        over them as well.
      dropout: key for the layers' dropout; None: none.
      dropout_passes: passes with dropout.
    """
    params, stats = variables["params"], variables["batch_stats"]
    if not stats and dropout_passes == "none":
        passes = [{name: image for images in passes for name, image in images.items()}]
    keys = _dropout_keys(dropout, dropout_passes, len(passes))
    decoder_statistics = bool(stats.get("decoder"))

    def apply(*arguments: Any, method: str, key: Key | None) -> Any:
        nonlocal stats
        output, changed = segmenter_lib.applied_in_training(
            model, {"params": params, "batch_stats": stats}, *arguments, method=method, dropout=key
        )
        stats = {**stats, **changed}
        return output

    encoded = []
    for images, key in zip(passes, keys, strict=True):
        features = apply(_interleave(list(images.values())), method="encode", key=key)
        by_view = perturb(_deinterleave(features, list(images)))
        if not decoder_statistics:
            by_view = {name: value for name, value in by_view.items() if name in names}
        encoded.append((by_view, key))
    if not decoder_statistics and all(key is None for key in keys):
        # A decoder that treats every image by itself takes all passes at once.
        encoded = [({name: f for by_view, _ in encoded for name, f in by_view.items()}, None)]
    outputs = Outputs(logits={}, features={})
    for by_view, key in encoded:
        if by_view:
            joined = jax.tree.map(lambda *leaves: _interleave(leaves), *by_view.values())
            logits = apply(joined, text, method="decode_grid", key=key)
            outputs.logits.update(_deinterleave(logits, list(by_view)))
            outputs.features.update(by_view)
    return outputs, stats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Predictions without gradient, for a method's labels.

    model: the student's network.
    frozen: class text, parameters of the frozen CLIP, and of the method's own networks.
    student, teacher: variables; the teacher's are the EMA, or the student's where there is none.
    guidance_model: how the frozen CLIP labels images, if the method is guided.
    method_modules: the method's own networks (`Method.networks`); their variables are
      `frozen.method_variables`.
    dropout: key for the student's dropout in this step.
    """

    model: SegmentationModel
    frozen: Frozen
    student: PyTree
    teacher: PyTree
    guidance_model: Guidance | None = None
    method_modules: Any = ()
    dropout: Key | None = None

    def logits(self, variables: PyTree, image: Float[Array, "b h w 3"]) -> Float[Array, "b y x n"]:
        """The decoder's grid of logits, in evaluation mode."""
        features = segmenter_lib.applied(self.model, variables, image, method="encode")
        return segmenter_lib.applied(
            self.model, variables, features, self.frozen.text, method="decode_grid"
        )

    def predict(self, variables: PyTree, image: Float[Array, "b h w 3"]) -> PseudoLabels:
        """Most probable classes and their probability, in evaluation mode."""
        return pseudo_labels(self.logits(variables, image), size=image.shape[1:3])

    def predict_in_training(
        self,
        images: Mapping[str, Float[Array, "b h w 3"]],
        *,
        name: str,
        perturb: Perturb,
        dropout_passes: DropoutPasses,
    ) -> PseudoLabels:
        """The student's prediction of view `name` with batch statistics and dropout of its first pass.

        `images` are those of the pass (docs/semivl.md 9.7).
        """
        image = images[name]
        if not self.student["batch_stats"] and dropout_passes == "none":
            return self.predict(self.student, image)
        outputs, _ = forward(
            self.model,
            self.frozen.text,
            self.student,
            [images],
            perturb=perturb,
            names=[name],
            dropout=self.dropout,
            dropout_passes=dropout_passes,
        )
        return pseudo_labels(outputs.logits[name], size=image.shape[1:3])

    def guidance(
        self,
        image: Float[Array, "b h w 3"],
        ignore: Bool[Array, "b h w"],
        *,
        threshold: float,
    ) -> Int32[Array, "b h w"]:
        """Labels of the frozen CLIP; 255 below the confidence `threshold` and where `ignore` is true."""
        if self.model.renormalize:
            image = image_normalization.renormalize(image)
        params = jax.tree.map(lambda x: x.astype(jnp.float32), self.frozen.guidance_params)
        labels = self.guidance_model.labels(
            params, self.frozen.guidance_text, image, threshold=threshold, ignore=ignore
        )
        return labels.label


def _dropout_keys(key: Key | None, dropout_passes: DropoutPasses, count: int) -> list[Key | None]:
    if key is None or dropout_passes == "none":
        return [None] * count
    keys = list(jax.random.split(key, max(2, count)))[:count]
    return keys if dropout_passes == "all" else [keys[0], *[None] * (count - 1)]


def _interleave(groups: Sequence[Array]) -> Array:
    """All views of an image next to each other (x0, w0, x1, w1, …), so that images stay on their devices."""
    whole = jnp.stack(groups, axis=1)
    return whole.reshape(-1, *whole.shape[2:])


def _deinterleave(tree: PyTree, names: Sequence[str]) -> dict[str, Any]:
    count = len(names)
    return {
        name: jax.tree.map(lambda leaf, i=i: leaf[i::count], tree) for i, name in enumerate(names)
    }
