"""Texts enriched with sentences: published numbers, and what a file of sentences may hold."""

import json

import numpy as np
import pytest

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.text import class_text, enrichment
from tests.golden_files import Golden, assert_close

EXCEL = "methods/excel"
INFO = DatasetInfo(name="toy", classes=("sky", "cat", "dog"))


@pytest.mark.golden
@pytest.mark.parametrize(
    "case", [name for name in Golden(EXCEL).meta["items"] if name.startswith("tse/")]
)
def test_enriched_texts_are_the_published_ones(case):
    golden = Golden(EXCEL)
    foreground = golden.meta["items"][case]["fg"]
    text, bank = golden[f"in/{case}/text"], golden[f"in/{case}/bank"]
    for kept, name in ((enrichment.KEPT, "enriched"), (1.0, "enriched_no_drop")):
        ours = enrichment.enriched(text[:foreground], bank, kept=kept)
        assert_close(ours, golden[f"out/{case}/{name}"][:foreground], 1e-5, name)
        others = text[foreground:] / np.linalg.norm(text[foreground:], axis=1, keepdims=True)
        assert_close(others, golden[f"out/{case}/{name}"][foreground:], 1e-5, name)


def embed(sentences):
    """A row from the letters of the sentence."""
    letters = np.asarray([[s.count(c) for c in "abcdefghijklmnopqrstuvwxyz "] for s in sentences])
    return letters.astype(np.float32)


@pytest.mark.parametrize("clusters", [2, 99])
def test_classes_with_sentences_move_towards_them(clusters):
    text = class_text.embed_classes(INFO, mode="name", embed=embed)
    sentences = ((), ("Purrs a lot", "whiskers", "fur"), ("Barks", "fur"))
    made = enrichment.enrich(text, sentences, clusters=clusters, embed=embed)
    before, after = np.asarray(text.embeddings), np.asarray(made.embeddings)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-6)
    rows = embed([class_text.PROMPT.format(s) for s in ("purrs a lot", "whiskers", "fur", "barks")])
    mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
    for index in (1, 2):
        assert after[index] @ mean > before[index] @ mean + 0.01
    again = enrichment.enrich(text, sentences, clusters=clusters, embed=embed)
    np.testing.assert_array_equal(again.embeddings, after)


def test_one_cluster_adds_its_centre():
    bank = enrichment.bank(embed(["ab", "cc", "abc"]), 1)
    unit = embed(["ab", "cc", "abc"])
    mean = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(bank[:, 0], mean, atol=1e-6)
    row = embed(["b"])
    expected = row[0] + mean
    np.testing.assert_allclose(
        enrichment.enriched(row, bank)[0], expected / np.linalg.norm(expected), atol=1e-6
    )


def test_sentences_of_a_file_and_the_definitions(tmp_path):
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps({"dog": ["barks", "fur"]}))
    assert enrichment.read_sentences(str(path), INFO) == ((), (), ("barks", "fur"))
    assert enrichment.read_sentences("definitions", INFO) == (("sky",), ("cat",), ("dog",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("dog: barks", "is no JSON"),
        ("[]", "holds no sentences"),
        ('{"cow": ["moos"]}', "'cow', which is no class; the classes are sky, cat, dog"),
        ('{"dog": "barks"}', "'dog' has no list of sentences"),
        ('{"dog": ["barks", " "]}', "'dog' has no list of sentences"),
        ('{"dog": []}', "'dog' has no list of sentences"),
    ],
)
def test_files_that_hold_something_else(tmp_path, content, message):
    path = tmp_path / "sentences.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        enrichment.read_sentences(str(path), INFO)
