"""CLIP's tokeniser."""

import numpy as np
import pytest

from semivl_jax.text.tokenizer import encode, tokenize
from tests.golden_files import Golden


@pytest.mark.golden
def test_ids_are_the_published_ones():
    golden = Golden("tokenizer")
    strings, length = golden.meta["strings"], golden.meta["context_length"]
    assert [encode(text) for text in strings] == golden.meta["raw_ids"]
    ids = tokenize(strings, context_length=length, truncate=golden.meta["truncate"])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, golden["out/ids"])


@pytest.mark.golden
def test_exactly_the_long_sentences_are_refused_when_nothing_may_be_cut():
    golden = Golden("tokenizer")
    length = golden.meta["context_length"]
    for i, text in enumerate(golden.meta["strings"]):
        if i in golden.meta["raises_without_truncate"]:
            with pytest.raises(ValueError, match=f"the text tower reads {length}: shorten"):
                tokenize([text], context_length=length, truncate=False)
        else:
            np.testing.assert_array_equal(
                tokenize([text], context_length=length, truncate=False)[0], golden["out/ids"][i]
            )


def test_markers_count_as_such_unless_punctuation_runs_into_them():
    start, end = 49406, 49407
    assert encode("<|endoftext|><|startoftext|>") == [end, start]
    assert encode("a<|endoftext|>b") == [*encode("a"), end, *encode("b")]
    assert end not in encode("!<|endoftext|>")


def test_no_sentences_give_no_rows():
    assert tokenize([], context_length=5).shape == (0, 5)
