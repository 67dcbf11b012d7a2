"""Published weights -> a file of this project, and such a file -> big_vision's layout.

In: a path, or a `foreign_files.Checkpoint`. Out: `files.Weights`, arrays in the dtype that they came in. The
format is detected, sizes are read from the shapes, names and arrays are translated by the tables of the
format's parts, and the result is compared with a model of these sizes, built as shapes only: names and
shapes must be exactly the model's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from semivl_jax.models.segmentation_model import SegmentationModel
from semivl_jax.types import ClassText, PyTree
from semivl_jax.weights import detect_format, files, foreign_files, npz
from semivl_jax.weights.detect_format import Format, Part
from semivl_jax.weights.foreign_files import Checkpoint
from semivl_jax.weights.layout import (
    DecoderLayout,
    Layout,
    Options,
    Sizes,
    Tensors,
    image,
    tupled,
    variables,
)
from semivl_jax.weights.rename import Rule, Rules, State, place, translate
from semivl_jax.weights.tree import flatten


def convert_file(
    src: Path, out: Path, *, format: str = "", entry: str = "", options: Options | None = None
) -> files.Weights:
    """Converts a file or folder to `out` (.safetensors; .npz exports), written atomically.

    Args:
      src: a file or folder that `foreign_files.read` reads; for an export a file of this project.
      format: name of the published format; "": detected.
      entry: the part of a training checkpoint that holds the weights; "": the usual ones.

    Raises:
      ValueError: the weights cannot be read, are of no known format, or do not fit their model.
    """
    if out.suffix == ".npz":
        weights = files.load(src, expect=(files.CLIP, files.SIGLIP, files.BACKBONE))
        npz.save(out, weights)
        return weights
    if out.suffix != ".safetensors":
        raise ValueError(f"--out={out} must end with .safetensors, or .npz to export")
    weights = convert(foreign_files.read(src, entry=entry), options, format=format)
    files.save(out, weights)
    return weights


def convert(
    checkpoint: Checkpoint, options: Options | None = None, *, format: str = ""
) -> files.Weights:
    """The weights of a checkpoint in our form.

    ValueError if the format is unknown, tensors are missing, unexpected or misshapen (all are listed), or the
    sizes make no model.
    """
    form, source = detect_format.detect_format(checkpoint, format), checkpoint.source
    state, options = checkpoint.state, options or Options()
    if form.prepare is not None:
        state, options = form.prepare(checkpoint, options)
    sizes = _sizes(form, state, options, source=source)
    translation = translate(state, rules(form, sizes), source=source)
    try:
        like = _shapes(form, sizes)
    except (ValueError, TypeError) as error:  # from any module
        raise ValueError(f"{source} has sizes that make no model ({error})") from error
    translation.check(like, source=source)
    tree = translation.tree if form.holds == files.CLIP else {"batch_stats": {}, **translation.tree}
    weights = files.Weights(format=form.holds, kind=form.name, sizes=sizes, tree=tree)
    return weights if form.finish is None else form.finish(weights, checkpoint, options)


def _sizes(form: Format, state: State, options: Options, *, source: str) -> Sizes:
    """Sizes by part, or those of the only part. ValueError if they cannot be read from the shapes."""
    found = {}
    for part in form.parts:
        tensors = Tensors(state, source, part.prefix)
        if tensors.any(part.only):
            found[part.key] = part.layout.sizes(tensors, options)
    if form.holds == files.SEGMENTER and not any(key.endswith("decoder") for key in found):
        raise ValueError(f"{source} has no decoder of a known kind; convert a whole segmenter")
    return found.get("", found)


def _parts(form: Format, sizes: Sizes) -> Iterator[tuple[Part, Sizes]]:
    """The parts that `sizes` names, with their own sizes."""
    for part in form.parts:
        if not part.key:
            yield part, sizes
        elif part.key in sizes:
            yield part, sizes[part.key]


def rules(form: Format, sizes: Sizes) -> Rules:
    """The rules of a format for weights of these sizes (of which only `num_heads` is used)."""
    collections = form.holds != files.CLIP
    return (
        *(Rule(pattern, None) for pattern in form.dropped),
        *place(form.arrays, collections=collections),
        *(
            rule
            for part, own in _parts(form, sizes)
            for rule in place(
                part.layout.rules,
                prefix=part.prefix,
                branch=part.branch,
                num_heads=own.get("num_heads", 0),
                collections=collections,
            )
        ),
    )


def _shapes(form: Format, sizes: Sizes) -> PyTree:
    """The tree that weights of these sizes have, as shapes."""
    parts = {part.branch: (part.layout, own) for part, own in _parts(form, sizes)}
    if form.holds == files.SEGMENTER:
        return _segmenter_shapes(parts)
    if form.holds == files.BACKBONE:
        layout, own = parts[""]
        return variables(layout.module(tupled(own), 1), image())
    towers = {branch: layout.params(own) for branch, (layout, own) in parts.items()}
    if form.holds == files.CLIP:
        return towers | {"logit_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    scalar = jax.ShapeDtypeStruct((1,), jnp.float32)
    return {"params": towers | {"t": scalar, "b": scalar}}


def _segmenter_shapes(parts: Mapping[str, tuple[Layout, Sizes]]) -> PyTree:
    (backbone, sizes), (decoder, decoder_sizes) = parts["backbone"], parts["decoder"]
    conv_encoder, conv_sizes = parts.get("conv_encoder", (None, {}))
    assert isinstance(decoder, DecoderLayout)
    conv_features = int(conv_encoder is not None)
    maps = decoder.maps(decoder_sizes, conv_features)
    model = SegmentationModel(
        backbone=backbone.module(tupled(sizes), maps),
        decoder=decoder.module(tupled(decoder_sizes), conv_features),
        conv_encoder=None if conv_encoder is None else conv_encoder.module(tupled(conv_sizes), 1),
        crop=64,
    )
    text = ClassText(jnp.zeros((2, sizes.get("out_dim", 1))), jnp.arange(2), 2)
    return variables(model, image(), text)


def describe(weights: files.Weights, path: Path) -> str:
    """Text for the user: detected format, sizes, and the configuration key for the file at `path`."""
    lines = [f"detected: {detect_format.by_name(weights.kind).title} ({weights.kind})"]
    for part, sizes in weights.sizes.items():
        if isinstance(sizes, dict):
            sizes = ", ".join(f"{name} {value}" for name, value in sizes.items())
        lines.append(f"  {part}: {sizes}")
    lines += [f"  {name.replace('_', ' ')}: {text}" for name, text in weights.notes.items()]
    lines += [
        f"  {part:<13}{count:>13,} parameters" for part, count in parameter_counts(weights).items()
    ]
    lines.append(f"written to {path}")
    if path.suffix == ".safetensors":
        conv_encoder = weights.kind == "resnet_v1c"
        key = "model.conv_encoder_weights" if conv_encoder else files.USES[weights.format]
        lines.append(f"use it with --config.{key}={path}")
    return "\n".join(lines)


def parameter_counts(weights: files.Weights) -> dict[str, int]:
    """Parameters of every part and in total, without running statistics."""
    tree = weights.tree if weights.format == files.CLIP else weights.tree["params"]
    parts = {
        name: sum(math.prod(leaf.shape) for leaf in flatten({name: part}).values())
        for name, part in tree.items()
    }
    return parts | {"total": sum(parts.values())}
