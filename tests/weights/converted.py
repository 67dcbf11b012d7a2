"""Weights that went through a file of the published format and the convert command's function."""

import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from semivl_jax import convert
from semivl_jax.weights import files, towers
from semivl_jax.weights.kinds import Options
from tests.weights import published


def through(folder: Path, state: dict, **options) -> Path:
    """The file that the command makes of a state dict saved as safetensors."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in state.items()}
    contiguous |= {name: np.asarray(array) for name, array in state.items() if not np.ndim(array)}
    save_file(contiguous, folder / "theirs.safetensors")
    out = folder / "ours.safetensors"
    convert.convert(folder / "theirs.safetensors", out, options=Options(**options))
    return out


def segmenter(state: dict, **options) -> files.Weights:
    """A published segmenter, saved as trained on several devices: every name begins with "module."."""
    with tempfile.TemporaryDirectory() as folder:
        wrapped = {f"module.{name}": array for name, array in state.items()}
        return files.load(through(Path(folder), wrapped, **options), expect=files.SEGMENTER)


def encoder(state: dict, **options) -> files.Weights:
    """An image encoder alone."""
    with tempfile.TemporaryDirectory() as folder:
        return files.load(through(Path(folder), state, **options), expect=files.BACKBONE)


def clip(openai: dict, **options) -> towers.Clip:
    """A CLIP under OpenAI's names, and the same under Hugging Face's, which must not differ."""
    with tempfile.TemporaryDirectory() as folder:
        ours = towers.load(through(Path(folder), openai, **options), "")
        theirs = published.huggingface(openai)
        other = towers.load(through(Path(folder), theirs, **options), "")
    assert_equal_trees(ours.image_params, other.image_params)
    assert_equal_trees(ours.text_params, other.text_params)
    assert (ours.image, ours.logit_scale) == (other.image, other.logit_scale)
    assert ours.text.items() <= other.text.items()
    return ours


def image_tower(semivl: dict, *, num_heads: int) -> towers.Clip:
    """A tower named as SemiVL names it, brought into OpenAI's layout first; its words are random."""
    out_dim = semivl["proj.weight"].shape[0]
    words = published.random_like(published.openai_text_shapes(64, 1, out_dim))
    return clip(published.openai_image(semivl) | words, image_heads=num_heads)


def text_tower(openai: dict, *, num_heads: int) -> towers.Clip:
    """A text tower under OpenAI's names; the image tower beside it is random."""
    out_dim = openai["text_projection"].shape[1]
    image = published.random_like(published.openai_image_shapes(64, 1, out_dim))
    return clip(openai | image, text_heads=num_heads)


def assert_equal_trees(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_equal_trees(value, other[name])
        else:
            np.testing.assert_array_equal(value, other[name], err_msg=name)
