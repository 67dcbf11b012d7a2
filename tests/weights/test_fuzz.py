"""Damaged weight files are a ValueError that names the file.

A flipped byte may hit a weight's value, which no format but zip archives notices; then the file loads.
"""

import numpy as np
import pytest

from semivl_jax.weights import convert, foreign_files, towers
from semivl_jax.weights.layout import Options
from tests.weights import file_formats, published

EACH = 40
OPENAI = Options(activation="quick_gelu")
EDGE = 3000
"""Bytes at both ends where formats keep their tables."""


def whole(name, folder):
    state = published.random_like(
        published.openai_image_shapes(64, 1, 4, grid=(1, 1))
        | published.openai_text_shapes(64, 1, 4),
        dtype=np.float16,
    )
    path = folder / f"whole.{name}"
    file_formats.write(state, path, name)
    return path.read_bytes()


def damaged(data, rng, number):
    """Every third file is cut off; of the flips, most hit the tables at the ends."""
    if number % 3 == 0:
        return data[: rng.integers(0, len(data))]
    place = rng.integers(0, len(data))
    if number % 3 == 1:
        place = rng.integers(0, EDGE) * rng.choice([1, -1])
    changed = bytearray(data)
    changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", file_formats.FORMATS)
def test_damaged_files_are_named(tmp_path, name):
    data, rng = whole(name, tmp_path), np.random.default_rng(file_formats.FORMATS.index(name))
    path = tmp_path / f"damaged.{name}"
    refused = 0
    for number in range(EACH):
        path.write_bytes(damaged(data, rng, number))
        try:
            convert.convert(foreign_files.read(path), OPENAI)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error), (number, str(error))
            assert len(str(error)) < 3000
    assert refused > EACH / 3


def test_damaged_files_of_our_own_are_named(tmp_path):
    (tmp_path / "theirs.safetensors").write_bytes(whole("safetensors", tmp_path))
    ours = tmp_path / "ours.safetensors"
    convert.convert_file(tmp_path / "theirs.safetensors", ours, options=OPENAI)
    data, rng = ours.read_bytes(), np.random.default_rng(7)
    path = tmp_path / "damaged.safetensors"
    refused = 0
    for number in range(EACH):
        path.write_bytes(damaged(data, rng, number))
        try:
            towers.load(path, "clip_vit_b16")
        except ValueError as error:
            refused += 1
            assert str(path) in str(error), (number, str(error))
    assert refused > EACH / 3
