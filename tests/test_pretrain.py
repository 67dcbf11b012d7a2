"""Contrastive pretraining of the demo's tower, and the file that comes with the project."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax import pretrain
from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.models.clip_guidance import guidance_labels
from semivl_jax.models.image_normalization import normalize
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.text import class_text
from semivl_jax.weights import store, towers
from tfds_builders.shapes import generator, words

CROP = 64
TINY = ("--steps=3", "--images=40", "--batch=8", "--width=16", "--depth=2", "--num_heads=2")


def test_contrast_leaves_other_true_texts_out():
    logits = jnp.array([[1.0, 2.0, 0.5], [0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])
    true = jnp.array([[True, True, False], [False, True, False], [False, False, True]])
    by_hand = []
    for i in range(3):
        over_texts = [j for j in range(3) if j == i or not true[i, j]]
        over_images = [j for j in range(3) if j == i or not true[j, i]]
        for row in (logits[i, np.array(over_texts)], logits[np.array(over_images), i]):
            by_hand.append(np.log(np.exp(np.asarray(row)).sum()) - float(logits[i, i]))
    np.testing.assert_allclose(pretrain.contrast(logits, true), np.mean(by_hand), rtol=1e-6)


def test_part_losses_by_hand():
    """Two patches: one of a part that names the first two concepts, one of a part that names nothing."""
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    logits, part = jnp.log(jnp.array(p))[None], jnp.array([[1, 0]])
    named = jnp.array([[[False] * 3, [True, True, False], [True] * 3]])
    found = jnp.array([[True, True, False]])
    patches, missing = pretrain.part_losses(logits, part, named, found)
    np.testing.assert_allclose(patches, -np.log(0.75), rtol=1e-6)
    np.testing.assert_allclose(missing, -(np.log(0.5) + np.log(0.25)) / 2, rtol=1e-6)


def test_close_ups_are_patches_of_their_own():
    settings = pretrain.Settings(steps=6, images=24, batch=8)
    scenes = pretrain.generate(settings, size=pretrain.SCENE, first=0, count=12)
    close_ups = pretrain.generate(settings, size=pretrain.CLOSE_UP, first=12, count=12)
    captions = {text for own in scenes.captions + close_ups.captions for text in own}
    vocabulary = pretrain.Vocabulary(captions)
    for batch in pretrain.batches(scenes, close_ups, vocabulary, settings):
        assert batch.true.shape == (8, 8) and np.diagonal(batch.true).all()
        assert (batch.ids.argmax(axis=1) > 0).all()
        for image, part in zip(batch.images, batch.part.reshape(-1, 8, 8), strict=True):
            owner = np.kron(part, np.ones((8, 8), int))[..., None] == 0
            shown = [np.where(owner, scene, 0) for scene in scenes.images]
            flipped = [np.where(owner, scene[:, ::-1], 0) for scene in scenes.images]
            rest = np.where(owner, image, 0)
            assert any((rest == scene).all() for scene in shown + flipped)
    assert {int(n) for batch in [batch] for n in np.unique(batch.part)} == {0, 1, 2}


def test_named_concepts_are_those_of_the_captions():
    named = words.named(
        ("a photo of a blue truck and a tiger", "a photo of a blue truck", "a photo of a tiger")
    )
    assert {c for c, said in zip(words.CONCEPTS, named, strict=True) if said} == {"truck", "tiger"}
    assert not words.named(("a photo of a red vehicle", "a photo of a tiger")).any()


def test_token_table_is_the_same_everywhere():
    table = towers.token_table(3, 11, 5)
    assert table.shape == (11, 5) and table.dtype == np.float32
    np.testing.assert_allclose(table[0, :3], (0.01089576, -0.03150301, -0.01592284), rtol=1e-6)
    assert abs(towers.token_table(0, 4000, 16).std() - 0.02) < 2e-4


def test_command_trains_and_writes_what_can_be_loaded(tmp_path):
    out = tmp_path / "tiny.safetensors"
    assert pretrain.main([f"--out={out}", *TINY]) == 0
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["log"][-1]["step"] == 3
    assert all(np.isfinite(value) for value in report["log"][-1].values())
    assert "--steps=3" in report["command"] and "--width=16" in report["command"]
    clip = towers.load(out, "")
    assert clip.image["width"] == 16 and clip.text["vocab_size"] == 49408
    unseen = class_text.TextTower.of(clip).embed(["a photo of a zebra crossing"])
    assert np.isfinite(unseen).all()


@pytest.fixture(scope="module")
def demo():
    return towers.load("demo", "")


def test_shipped_file_is_small_and_names_its_command(demo):
    assert towers.DEMO.stat().st_size < 5e6
    _, metadata = store.load_tree(towers.DEMO)
    assert metadata["command"].startswith("python -m semivl_jax.pretrain --out=demo_clip")
    report = json.loads(towers.DEMO.with_suffix(".json").read_text())
    assert report["command"] == metadata["command"]
    assert 20 <= demo.logit_scale <= 100


@pytest.fixture(scope="module")
def zero_shot(demo):
    """(labels, guidance label of each mode without a threshold, its confidence) of some scenes."""
    scenes = [generator.sample("train", index) for index in range(32)]
    images = np.stack([scene.image[:CROP, :CROP] for scene in scenes])
    grid = (CROP // demo.image["patch_size"],) * 2
    vision = VisionTransformer(**CLIP, **demo.image, grid=grid, out_indices=(demo.image["depth"],))
    params = towers.resized(demo, grid)
    dense = jax.jit(lambda p, x: vision.apply({"params": p}, normalize(x)).maps[-1])(params, images)
    info = DatasetInfo(
        name="shapes", classes=words.CLASSES, definitions=tuple(words.DEFINITIONS.values())
    )
    tower = class_text.TextTower.of(demo)
    labels = np.stack([scene.label[:CROP, :CROP] for scene in scenes])
    guided = {}
    for mode in ("name", "concept"):
        text = class_text.class_text(info, mode=mode, tower=tower, cache="")
        guided[mode] = guidance_labels(dense, text, size=(CROP, CROP), threshold=0.0)
    return labels, guided


def mean_iou(labels, predicted):
    counted, ious = labels != 255, []
    for value in range(len(words.CLASSES)):
        is_true, is_said = (labels == value) & counted, (predicted == value) & counted
        ious.append((is_true & is_said).sum() / max((is_true | is_said).sum(), 1))
    return 100 * np.mean(ious)


def test_shipped_tower_labels_pixels_from_text(zero_shot):
    """Zero-shot, on training scenes, which pretraining never saw: facts that fail if weights rot."""
    labels, guided = zero_shot
    predicted = np.asarray(guided["concept"].label)
    sure = (np.asarray(guided["concept"].confidence) >= 0.9) & (labels != 255)
    assert sure.sum() > 0.25 * (labels != 255).sum()
    assert (predicted == labels)[sure].mean() > 0.7
    assert mean_iou(labels, predicted) > 30


def test_definitions_beat_plain_names(zero_shot):
    labels, guided = zero_shot
    score = {mode: mean_iou(labels, np.asarray(g.label)) for mode, g in guided.items()}
    assert score["concept"] > score["name"] + 3


@pytest.mark.parametrize("pair", [("tiger", "leopard"), ("ball", "fruit"), ("parcel", "vehicle")])
def test_similar_classes_are_distinguished(zero_shot, pair):
    """Of the pixels of a pair that are labelled as one of the pair, most get the right one."""
    labels, guided = zero_shot
    predicted = np.asarray(guided["concept"].label)
    values = [words.CLASSES.index(name) for name in pair]
    counted = np.isin(labels, values) & np.isin(predicted, values)
    for value in values:
        mine = counted & (labels == value)
        assert mine.any() and (predicted == labels)[mine].mean() > 0.6, words.CLASSES[value]


def test_files_that_are_no_clip_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        towers.load("", "clip_vit_b16")
    with pytest.raises(ValueError, match="no such file"):
        towers.load(tmp_path / "missing.safetensors", "clip_vit_b16")
    other = tmp_path / "other.safetensors"
    store.save_tree(other, {"a": np.zeros(3, np.float32)}, {})
    with pytest.raises(ValueError, match=r"'vit_q' is no known tower.*clip_vit_b16"):
        towers.load("random", "vit_q")
    with pytest.raises(
        ValueError, match=r"other.safetensors is no weight file.*semivl_jax.convert"
    ):
        towers.load(other, "clip_vit_b16")


def test_a_damaged_file_is_refused(tmp_path):
    tree, metadata = store.load_tree(towers.DEMO)
    damaged = tmp_path / "damaged.safetensors"
    store.save_tree(damaged, tree, metadata | {"token_seed": "?"})
    with pytest.raises(ValueError, match="lacks a part of its towers, or it is damaged"):
        towers.load(damaged, "")
    del tree["image"]["cls"]
    store.save_tree(damaged, tree, metadata)
    with pytest.raises(ValueError, match="cls"):
        towers.load(damaged, "")
