"""The kinds of checkpoints that can be converted, and which of them some weights are.

In: `checkpoints.Checkpoint`. Out: `files.Weights`. A kind is recognised from tensor names alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

from semivl_jax.weights import clip, files, segmenters
from semivl_jax.weights.checkpoints import Checkpoint
from semivl_jax.weights.tree import listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the weights do not say, or what is to differ from it.

    …_heads      attention heads; None: as published
    as_trained   CLIP's image tower keeps the activation and LayerNorm epsilon that it was trained with;
                 otherwise it gets exact GELU and 1e-6, as SemiVL runs it (METHOD 1.4)
    """

    image_heads: int | None = None
    text_heads: int | None = None
    decoder_heads: int | None = None
    as_trained: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of checkpoint.

    name    for --kind
    title   for people
    marks   names that all checkpoints of the kind have and together no other
    read    converts; ValueError where names or shapes are not those of the kind
    """

    name: str
    title: str
    marks: tuple[str, ...]
    read: Callable[[Checkpoint, Options], files.Weights]

    def recognises(self, names: Collection[str]) -> bool:
        """Whether the names are those of this kind."""
        return all(mark in names for mark in self.marks)


def _openai_clip(checkpoint: Checkpoint, options: Options) -> files.Weights:
    return clip.from_openai(
        checkpoint.state,
        source=checkpoint.source,
        image_heads=options.image_heads,
        text_heads=options.text_heads,
        as_trained=options.as_trained,
    )


def _huggingface_clip(checkpoint: Checkpoint, options: Options) -> files.Weights:
    return clip.from_huggingface(
        checkpoint.state,
        checkpoint.config,
        source=checkpoint.source,
        image_heads=options.image_heads,
        text_heads=options.text_heads,
        as_trained=options.as_trained,
    )


def _semivl(checkpoint: Checkpoint, options: Options) -> files.Weights:
    return segmenters.from_semivl(
        checkpoint.state,
        source=checkpoint.source,
        image_heads=options.image_heads,
        decoder_heads=options.decoder_heads,
    )


def _unimatch_deeplab(checkpoint: Checkpoint, options: Options) -> files.Weights:
    del options
    return segmenters.from_unimatch(checkpoint.state, source=checkpoint.source)


KINDS = (
    Kind(
        name="openai_clip",
        title="OpenAI CLIP, image and text tower",
        marks=("visual.conv1.weight", "token_embedding.weight"),
        read=_openai_clip,
    ),
    Kind(
        name="huggingface_clip",
        title="CLIP in the layout of Hugging Face, image and text tower",
        marks=("visual_projection.weight", "text_projection.weight"),
        read=_huggingface_clip,
    ),
    Kind(
        name="semivl",
        title="SemiVL segmenter with CLIP's image tower",
        marks=("backbone.patch_embed.projection.weight", "backbone.layers.0.ln1.weight"),
        read=_semivl,
    ),
    Kind(
        name="unimatch_deeplab",
        title="UniMatch segmenter: DeepLabV3+ on a residual network",
        marks=("backbone.conv1.0.weight", "classifier.weight"),
        read=_unimatch_deeplab,
    ),
)


def recognise(checkpoint: Checkpoint, name: str = "") -> Kind:
    """The kind of the weights, or the one of that name. ValueError where it is unknown or ambiguous."""
    if name:
        found = [kind for kind in KINDS if kind.name == name]
        if not found:
            raise ValueError(f"--kind={name} is unknown; choose one of {', '.join(names())}")
        return found[0]
    if checkpoint.metadata.get("format", "").startswith("semivl_jax"):
        raise ValueError(
            f"{checkpoint.source} is a file of semivl_jax already ({checkpoint.metadata['format']}); it "
            "needs no conversion"
        )
    found = [kind for kind in KINDS if kind.recognises(checkpoint.state)]
    if len(found) == 1:
        return found[0]
    what = "fits several kinds" if found else "is of no kind that can be converted"
    raise ValueError(
        f"{checkpoint.source} {what} (its first tensors: {listed(sorted(checkpoint.state)[:6])}); if it is "
        f"one of {', '.join(kind.name for kind in found) or ', '.join(names())}, say so with --kind"
    )


def names() -> tuple[str, ...]:
    """Names for --kind."""
    return tuple(kind.name for kind in KINDS)
