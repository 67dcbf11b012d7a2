"""Class names and definitions to text rows, against closed forms."""

import numpy as np
import pytest

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.text.embeddings import class_text
from semivl_jax.text.prompts import prompts

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


def embed(sentences):
    return np.array([VECTORS[sentence] for sentence in sentences])


def rows(mode):
    text = class_text(INFO, mode=mode, embed=embed)
    assert text.num_classes == 2
    assert text.embeddings.dtype == np.float32 and text.class_of.dtype == np.int32
    return np.asarray(text.embeddings), np.asarray(text.class_of).tolist()


def test_prompt_is_the_published_template():
    assert prompts(["tabby cat"]) == ["a photo of a tabby cat"]
    with pytest.raises(ValueError, match="empty"):
        prompts(["cat", " "])


def test_names():
    embeddings, class_of = rows("name")
    np.testing.assert_allclose(embeddings, [(-0.6, 0.8), (0, 1)], atol=1e-7)
    assert class_of == [0, 1]


def test_concepts_stay_apart():
    embeddings, class_of = rows("concept")
    expected = [(-0.6, 0.8), (0, -1), (0.6, 0.8), (1, 0), (1, 0)]
    np.testing.assert_allclose(embeddings, expected, atol=1e-7)
    assert class_of == [0, 0, 1, 1, 1]


def test_average_is_taken_before_normalising():
    embeddings, class_of = rows("concept_average")
    sky, vehicle = np.array([-1.5, 1.0]), np.array([5.0, 4 / 3])
    expected = [sky / np.linalg.norm(sky), vehicle / np.linalg.norm(vehicle)]
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    assert class_of == [0, 1]


def test_a_sentence_is_embedded_once():
    seen = []

    def remember(sentences):
        seen.extend(sentences)
        return embed(sentences)

    class_text(INFO, mode="concept", embed=remember)
    assert len(seen) == len(set(seen)) == 4


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"'average'.*concept_average"):
        class_text(INFO, mode="average", embed=embed)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda s: np.zeros((len(s), 3)), "length 0"),
        (lambda s: np.full((len(s), 3), np.nan), "non-finite"),
        (lambda s: np.ones((1, 3)), "shape"),
    ],
)
def test_a_broken_tower_is_noticed(broken, message):
    with pytest.raises(ValueError, match=message):
        class_text(INFO, mode="name", embed=broken)
