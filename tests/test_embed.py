"""Text embeddings on disk: what is written, how it is compared, and the cache."""

import numpy as np
import pytest

from semivl_jax import embed
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.text import cache as cache_lib
from semivl_jax.text import class_names, class_text
from semivl_jax.weights import store, towers
from tests import served
from tests.golden_files import Golden, assert_close, files
from tests.weights import converted


@pytest.fixture(autouse=True)
def small_tower(monkeypatch):
    monkeypatch.setattr(towers, "load", lambda *_: served.clip())


def run(*arguments):
    return embed.main([*arguments, "--weights", "w", "--text_cache="])


@pytest.mark.parametrize(
    ("dataset", "mode", "published"),
    [
        ("voc", "name", (21, "voc12_wbg_single")),
        ("voc", "concept", (98, "voc12_wbg_concept4_single")),
        ("voc", "concept_average", (21, "voc12_wbg_conceptavg4_single")),
        ("cityscapes", "name", (19, "cityscapes_single")),
        ("cityscapes", "concept", (54, "cityscapes_concept3_single")),
        ("cityscapes", "concept_average", (19, "cityscapes_conceptavg3_single")),
        ("coco", "name", (81, "coco_single")),
        ("ade20k", "name", (150, "ade_single")),
    ],
)
def test_the_eight_published_files_have_these_rows(dataset, mode, published):
    text = class_text.class_text(
        class_names.dataset_info(dataset),
        mode=mode,
        tower=class_text.TextTower.of(served.clip()),
        cache="",
    )
    assert text.embeddings.shape[0] == published[0], published[1]


def test_files_and_their_comparison(tmp_path, capsys):
    npy, tensors = tmp_path / "a" / "voc.npy", tmp_path / "voc.safetensors"
    assert run("--dataset", "cityscapes", "--out", str(npy), "--dtype", "float16") == 0
    rows = np.load(npy)
    assert rows.dtype == np.float16 and rows.shape == (19, 16)
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=2e-3)
    code = run("--dataset", "cityscapes", "--mode", "concept", "--out", str(tensors))
    tree, metadata = store.load_tree(tensors)
    assert code == 0 and tree["embeddings"].shape == (54, 16)
    assert np.bincount(tree["class_of"])[0] == 3 and metadata["mode"] == "concept"
    capsys.readouterr()
    same = ["--dataset", "cityscapes", "--out", str(tmp_path / "b.npy"), "--compare", str(npy)]
    assert run(*same) == 0
    said = capsys.readouterr().out
    assert "all rows alike" in said and "road" in said
    rows[7] = rows[7][::-1]
    np.save(npy, rows)
    assert run(*same) == 1
    said = capsys.readouterr().out
    assert "1 of 19 rows differ" in said and "traffic sign   differs" in said


def test_own_classes_with_definitions(tmp_path):
    (tmp_path / "classes.txt").write_text("road\nvehicle: car, bus\n")
    out = tmp_path / "own.npy"
    assert (
        run("--classes_file", str(tmp_path / "classes.txt"), "--definitions", "--out", str(out))
        == 0
    )
    tower = class_text.TextTower.of(served.clip())
    rows = tower.embed([f"a photo of a {name}" for name in ("road", "car", "bus")])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(out), rows, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "voc", "--out", "x.txt"], "end the name with .npy or .safetensors"),
        (["--classes_file", "none.txt", "--out", "x.npy"], "none.txt: no such file"),
        (
            ["--dataset", "voc", "--out", "x.npy", "--compare", "none.npy"],
            "none.npy cannot be read",
        ),
        (
            ["--dataset", "voc", "--out", "x.npy", "--compare", "y.npy"],
            "has the shape (2, 3), these",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("y.npy", np.ones((2, 3)))
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.golden
@pytest.mark.parametrize("name", files("text_tower_fullvocab*"))
def test_rows_of_the_published_tower(name, monkeypatch):
    """Sentences through tokeniser and tower, sixteen at a time, as published."""
    monkeypatch.undo()
    golden, strings = Golden(name), Golden("tokenizer").meta["strings"]
    heads = golden.meta["kwargs"]["transformer_heads"]
    clip = converted.text_tower(golden.weights(), num_heads=heads)
    wanted = golden["out/text_features"]
    rows = class_text.TextTower.of(clip).embed(strings[: len(wanted)])
    assert_close(rows, wanted, 1e-5)


INFO = DatasetInfo(name="toy", classes=("sky", "car"))


def test_embeddings_are_kept_by_what_they_were_made_from(tmp_path):
    seen = []

    def make(sentences):
        seen.append(list(sentences))
        return np.arange(2 * len(sentences), dtype=np.float32).reshape(-1, 2)

    first = cache_lib.cached(make, folder=tmp_path, tower="a")(["x", "y"])
    again = cache_lib.cached(make, folder=tmp_path, tower="a")(["x", "y"])
    np.testing.assert_array_equal(first, again)
    assert seen == [["x", "y"]]
    cache_lib.cached(make, folder=tmp_path, tower="b")(["x", "y"])
    cache_lib.cached(make, folder=tmp_path, tower="a")(["y", "x"])
    assert len(seen) == 3 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:50] + b"!" + b[51:]]
)
def test_a_damaged_entry_is_noticed_and_made_again(tmp_path, capsys, damage):
    def make(sentences):
        return np.ones((len(sentences), 4), np.float32)

    look_up = cache_lib.cached(make, folder=tmp_path, tower="a")
    look_up(["x"])
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    np.testing.assert_array_equal(look_up(["x"]), np.ones((1, 4)))
    assert f"{entry} is damaged" in capsys.readouterr().err
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_said_and_harmless(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    look_up = cache_lib.cached(lambda s: np.ones((len(s), 2)), folder=tmp_path / "file", tower="a")
    assert look_up(["x"]).shape == (1, 2)
    assert "text embeddings are not kept in" in capsys.readouterr().err


def test_the_tower_s_digest_tells_weights_and_sizes_apart():
    tower = class_text.TextTower.of(served.clip())
    same = class_text.TextTower.of(served.clip())
    assert tower.digest == same.digest
    params = {**tower.params, "pos_embedding": tower.params["pos_embedding"] + np.float32(1e-6)}
    assert class_text.TextTower(sizes=tower.sizes, params=params).digest != tower.digest
    other = class_text.TextTower(sizes={**tower.sizes, "num_heads": 1}, params=tower.params)
    assert other.digest != tower.digest
    text = class_text.class_text(INFO, mode="name", tower=tower, cache="")
    assert text.num_classes == 2
