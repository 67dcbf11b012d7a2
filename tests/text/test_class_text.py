"""Class names and definitions to text embeddings: closed forms, the published tower, the cache."""

import numpy as np
import pytest

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.text import class_names, class_text
from tests import served
from tests.golden_files import Golden, assert_close, files
from tests.weights import converted

VECTORS = {
    "a photo of a vehicle": (0.0, 5.0),
    "a photo of a sky": (-3.0, 4.0),
    "a photo of a car": (3.0, 4.0),
    "a photo of a bus": (6.0, 0.0),
    "a photo of a cloud": (0.0, -2.0),
}
INFO = DatasetInfo(
    name="toy", classes=("sky", "vehicle"), definitions=(("sky", "cloud"), ("car", "bus", "bus"))
)
SKY, VEHICLE = np.array([-1.5, 1.0]), np.array([5.0, 4 / 3])  # means of the concepts


@pytest.mark.parametrize(
    ("mode", "rows", "class_of"),
    [
        ("name", [(-0.6, 0.8), (0, 1)], [0, 1]),
        ("concept", [(-0.6, 0.8), (0, -1), (0.6, 0.8), (1, 0), (1, 0)], [0, 0, 1, 1, 1]),
        (
            "concept_average",
            [SKY / np.linalg.norm(SKY), VEHICLE / np.linalg.norm(VEHICLE)],
            [0, 1],
        ),
    ],
)
def test_rows_of_each_mode(mode, rows, class_of):
    seen = []

    def embed(sentences):
        seen.extend(sentences)
        return np.array([VECTORS[sentence] for sentence in sentences])

    text = class_text.embed_classes(INFO, mode=mode, embed=embed)
    assert text.num_classes == 2 and text.class_of.tolist() == class_of
    assert text.embeddings.dtype == np.float32 and text.class_of.dtype == np.int32
    np.testing.assert_allclose(text.embeddings, rows, atol=1e-6)
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("mode", "embed", "message"),
    [
        ("average", np.zeros, r"'average'.*concept_average"),
        ("name", lambda s: np.zeros((len(s), 3)), "length 0"),
        ("name", lambda s: np.full((len(s), 3), np.nan), "non-finite"),
        ("name", lambda s: np.ones((1, 3)), "shape"),
    ],
)
def test_unknown_mode_and_broken_tower(mode, embed, message):
    with pytest.raises(ValueError, match=message):
        class_text.embed_classes(INFO, mode=mode, embed=embed)


@pytest.mark.parametrize(
    ("dataset", "mode", "rows"),
    [
        ("voc", "name", 21),
        ("voc", "concept", 98),
        ("voc", "concept_average", 21),
        ("cityscapes", "name", 19),
        ("cityscapes", "concept", 54),
        ("cityscapes", "concept_average", 19),
        ("coco", "name", 81),
        ("ade20k", "name", 150),
    ],
)
def test_rows_of_the_eight_published_files(dataset, mode, rows):
    text = class_text.embed_classes(
        class_names.dataset_info(dataset), mode=mode, embed=lambda s: np.ones((len(s), 2))
    )
    assert text.embeddings.shape[0] == rows


@pytest.mark.golden
@pytest.mark.parametrize("name", files("text_tower_fullvocab*"))
def test_tokenizer_and_tower_together(name):
    golden, strings = Golden(name), Golden("tokenizer").meta["strings"]
    heads = golden.meta["kwargs"]["transformer_heads"]
    clip = converted.text_tower(golden.weights(), num_heads=heads)
    wanted = golden["out/text_features"]
    rows = class_text.TextTower.of(clip).embed(strings[: len(wanted)])
    assert_close(rows, wanted, 1e-5)


def test_the_digest_of_a_tower_depends_on_weights_and_sizes():
    tower = class_text.TextTower.of(served.clip())
    assert tower.digest == class_text.TextTower.of(served.clip()).digest
    params = {**tower.params, "pos_embedding": tower.params["pos_embedding"] + np.float32(1e-6)}
    assert class_text.TextTower(sizes=tower.sizes, params=params).digest != tower.digest
    other = class_text.TextTower(sizes={**tower.sizes, "num_heads": 1}, params=tower.params)
    assert other.digest != tower.digest


def ones(sentences):
    return np.ones((len(sentences), 4), np.float32)


def test_the_cache_is_keyed_by_tower_and_sentences(tmp_path):
    seen = []

    def embed(sentences):
        seen.append(list(sentences))
        return np.arange(2 * len(sentences), dtype=np.float32).reshape(-1, 2)

    first = class_text.cached(embed, folder=tmp_path, tower="a")(["x", "y"])
    again = class_text.cached(embed, folder=tmp_path, tower="a")(["x", "y"])
    np.testing.assert_array_equal(first, again)
    assert seen == [["x", "y"]]
    class_text.cached(embed, folder=tmp_path, tower="b")(["x", "y"])
    class_text.cached(embed, folder=tmp_path, tower="a")(["y", "x"])
    assert len(seen) == 3 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:50] + b"!" + b[51:]]
)
def test_a_damaged_cache_file_is_replaced(tmp_path, capsys, damage):
    look_up = class_text.cached(ones, folder=tmp_path, tower="a")
    look_up(["x"])
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    np.testing.assert_array_equal(look_up(["x"]), np.ones((1, 4)))
    assert f"{entry} is damaged" in capsys.readouterr().err
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "text"
    look_up = class_text.cached(ones, folder=folder, tower="a")
    assert look_up(["x"]).shape == look_up(["y"]).shape == (1, 4)
    warning = f"{folder} cannot be written (Not a directory), so text embeddings are computed in"
    assert capsys.readouterr().err.count(warning) == 1
