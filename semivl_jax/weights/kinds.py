"""The kinds of checkpoints that can be converted, and which of them some weights are.

In: `checkpoints.Checkpoint`. Out: `files.Weights`. A kind is recognised from tensor names alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

from semivl_jax.weights import big_vision, clip, encoders, files, segmenters
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

    name      for --kind, and the `kind` of the file that it becomes
    title     for people
    marks     tensors that every checkpoint of the kind has …
    without   … and tensors that none has; together no other kind is like that
    test      instead of the two, where names vary: whether the names are of the kind
    read      state dict and `source` (what errors name) -> weights
    options   which of `Options` and whether the config.json ("config") `read` takes
    """

    name: str
    title: str
    marks: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    test: Callable[[Collection[str]], bool] | None = None
    read: Callable[..., files.Weights]
    options: tuple[str, ...] = ()

    def recognises(self, names: Collection[str]) -> bool:
        """Whether the names are those of this kind."""
        if self.test is not None:
            return self.test(names)
        return all(mark in names for mark in self.marks) and not any(
            mark in names for mark in self.without
        )

    def convert(self, checkpoint: Checkpoint, options: Options) -> files.Weights:
        """The weights. ValueError where names or shapes are not those of the kind."""
        told = dataclasses.asdict(options) | {"config": checkpoint.config}
        chosen = {name: told[name] for name in self.options}
        return self.read(checkpoint.state, source=checkpoint.source, **chosen)


_LAYER_SCALE = "blocks.0.ls1.gamma"

KINDS = (
    Kind(
        name="openai_clip",
        title="CLIP of OpenAI: image and text tower",
        marks=("visual.conv1.weight", "token_embedding.weight"),
        read=clip.from_openai,
        options=("image_heads", "text_heads", "as_trained"),
    ),
    Kind(
        name="huggingface_clip",
        title="CLIP in the layout of Hugging Face: image and text tower",
        marks=("visual_projection.weight", "text_projection.weight"),
        read=clip.from_huggingface,
        options=("config", "image_heads", "text_heads", "as_trained"),
    ),
    Kind(
        name="semivl",
        title="segmenter of SemiVL with CLIP's dense image tower",
        marks=("backbone.patch_embed.projection.weight", "backbone.layers.0.ln1.weight"),
        read=segmenters.from_semivl,
        options=("image_heads", "decoder_heads"),
    ),
    Kind(
        name="vit_baseline",
        title="segmenter of SemiVL's baseline with an ImageNet ViT",
        marks=("backbone.m.patch_embed.proj.weight", "decode_head.head.6.weight"),
        read=segmenters.from_vit_baseline,
        options=("image_heads",),
    ),
    Kind(
        name="zegclip",
        title="segmenter of SemiVL's baseline with ZegCLIP",
        marks=("backbone.prompt_embeddings", "decode_head.q_proj.weight"),
        read=segmenters.from_zegclip,
        options=("image_heads", "decoder_heads"),
    ),
    Kind(
        name="unimatch_deeplab",
        title="segmenter of UniMatch: DeepLabV3+ on a residual network",
        marks=("backbone.layer4.0.conv1.weight", "classifier.weight"),
        read=segmenters.from_unimatch,
    ),
    Kind(
        name="unimatch_v2",
        title="segmenter of UniMatch V2: DPT on DINOv2",
        marks=("backbone.patch_embed.proj.weight", "head.projects.0.weight"),
        read=segmenters.from_unimatch_v2,
        options=("image_heads",),
    ),
    Kind(
        name="resnet",
        title="residual network with ImageNet weights, stem of three convolutions",
        marks=("layer4.0.conv1.weight",),
        without=("stem.0.weight",),
        read=encoders.from_resnet,
    ),
    Kind(
        name="resnet_v1c",
        title="ResNet-V1c with ImageNet weights: stem and first stage",
        marks=("stem.0.weight", "layer1.0.conv1.weight"),
        read=encoders.from_resnet_v1c,
    ),
    Kind(
        name="imagenet_vit",
        title="ViT of timm with ImageNet weights",
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        without=(_LAYER_SCALE,),
        read=encoders.from_timm_vit,
        options=("image_heads",),
    ),
    Kind(
        name="dinov2",
        title="DINOv2",
        marks=("patch_embed.proj.weight", _LAYER_SCALE),
        read=encoders.from_dinov2,
        options=("image_heads",),
    ),
    Kind(
        name="big_vision_vit",
        title="ViT of big_vision, such as AugReg's",
        test=big_vision.is_vit,
        read=big_vision.from_vit,
    ),
    Kind(
        name="siglip",
        title="SigLIP of big_vision: image and text tower",
        test=big_vision.is_siglip,
        read=big_vision.from_siglip,
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
