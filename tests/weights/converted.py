"""Weights saved in a published format, converted by the command's function, and loaded."""

import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from semivl_jax.weights import convert, detect_format, files, towers
from semivl_jax.weights.layout import Options
from semivl_jax.weights.rename import translate
from tests.weights import published


def through(folder: Path, state: dict, **options) -> Path:
    """The file that the command writes for a state dict saved as safetensors.

    A CLIP was trained with QuickGELU unless its state or `options` say something else.
    """
    options = {"activation": "quick_gelu"} | options
    save_file({name: np.array(array, order="C") for name, array in state.items()}, folder / "in")
    out = folder / "ours.safetensors"
    convert.convert_file(folder / "in", out, options=Options(**options))
    return out


def load(state: dict, *, expect: str, **options) -> files.Weights:
    with tempfile.TemporaryDirectory() as folder:
        return files.load(through(Path(folder), state, **options), expect=expect)


def segmenter(state: dict, **options) -> files.Weights:
    """A whole model."""
    return load(state, expect=files.SEGMENTER, **options)


def encoder(state: dict, **options) -> files.Weights:
    """An image encoder alone."""
    return load(state, expect=files.BACKBONE, **options)


def clip(state: dict, **options) -> towers.Clip:
    """A CLIP under OpenAI's or Hugging Face's names."""
    with tempfile.TemporaryDirectory() as folder:
        return towers.load(through(Path(folder), state, **options), "")


def image_tower(semivl: dict, *, num_heads: int, grid: tuple[int, int] | None = None):
    """A tower under SemiVL's names, as part of a CLIP of OpenAI; the text tower is random."""
    out_dim = semivl["proj.weight"].shape[0]
    text = published.random_like(published.openai_text_shapes(64, 1, out_dim))
    return clip(published.openai_image(semivl) | text, image_heads=num_heads, grid=grid)


def text_tower(openai: dict, *, num_heads: int) -> towers.Clip:
    """A text tower under OpenAI's names; the image tower beside it is random."""
    out_dim = openai["text_projection"].shape[1]
    image = published.random_like(published.openai_image_shapes(64, 1, out_dim))
    return clip(openai | image, text_heads=num_heads)


def some(state: dict, format: str, sizes: dict) -> dict:
    """Some arrays of a model (gradients, single parts), translated by the rules of its format."""
    rules = convert.rules(detect_format.by_name(format), sizes)
    return {"params": {}, "batch_stats": {}} | translate(state, rules, source="golden file").tree


def assert_equal_trees(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_equal_trees(value, other[name])
        else:
            np.testing.assert_array_equal(value, other[name], err_msg=name)
