"""The drawn data set: its pictures, its label maps, its words, and its preparation."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tfds_builders.shapes import generator, words
from tfds_builders.shapes.objects import DRAW
from tfds_builders.shapes.textures import TEXTURE


@pytest.fixture(scope="module")
def scenes():
    return [generator.sample("train", index) for index in range(150)]


def visible(scene):
    return set(np.unique(scene.label)) - {generator.VOID}


def test_a_picture_is_a_function_of_seed_part_and_index(scenes):
    again = generator.sample("train", 7)
    np.testing.assert_array_equal(again.image, scenes[7].image)
    np.testing.assert_array_equal(again.label, scenes[7].label)
    assert again.captions == scenes[7].captions
    other = generator.sample("train", 7, seed=1)
    assert other.image.shape != again.image.shape or (other.image != again.image).any()


def test_pretraining_pictures_repeat_too():
    image, captions = generator.pretrain_sample(3, size=48)
    again, same = generator.pretrain_sample(3, size=48)
    assert image.shape == (48, 48, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, again)
    assert captions == same and len(captions) >= 1


def test_parts_draw_from_different_streams():
    """No state of one part's stream occurs in another's: their first numbers all differ."""
    firsts = {
        (part, seed): [generator.generator(part, i, seed=seed).integers(2**63) for i in range(400)]
        for part in ("train", "validation", "pretrain")
        for seed in (0, 1)
    }
    drawn = [number for numbers in firsts.values() for number in numbers]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("call", [generator.sample, lambda p, i: generator.generator(p, i, seed=0)])
def test_an_unknown_part_is_refused(call):
    with pytest.raises(ValueError, match="'test'"):
        call("test", 0)


def test_scenes_only_of_labelled_parts():
    with pytest.raises(ValueError, match="pretrain"):
        generator.sample("pretrain", 0)


def test_images_and_labels_are_what_they_say(scenes):
    for scene in scenes:
        assert scene.image.dtype == scene.label.dtype == np.uint8
        assert scene.image.shape == (*scene.label.shape, 3) == (generator.SIDE, generator.SIDE, 3)
        assert visible(scene) <= set(range(len(words.CLASSES)))
        assert scene.image.std() > 8


def test_every_class_is_common(scenes):
    counts = np.bincount([c for s in scenes for c in visible(s)], minlength=len(words.CLASSES))
    share = counts / len(scenes)
    assert share[0] == 1 and share[1:].min() > 0.15 and share[1:].max() < 0.6
    pixels = np.bincount(np.concatenate([s.label.ravel() for s in scenes]), minlength=256)[
        : len(words.CLASSES)
    ]
    assert (pixels[1:] / pixels.sum()).min() > 0.01


def test_several_objects_overlap(scenes):
    """Where two objects meet without scenery between, one hides a part of the other."""
    touching = 0
    for scene in scenes:
        label = scene.label.astype(int)
        left, line, right = label[:, :-2], label[:, 1:-1], label[:, 2:]
        objects = (left > 0) & (left < 255) & (right > 0) & (right < 255)
        touching += bool((objects & (line == 255) & (left != right)).any())
    assert touching > len(scenes) / 4
    assert np.mean([len(visible(s)) - 1 for s in scenes]) > 2


def test_void_is_a_thin_line(scenes):
    """At most one pixel wide: what differs from its neighbours is next to two regions."""
    for scene in scenes:
        void = scene.label == generator.VOID
        assert 0.005 < void.mean() < 0.15
        inside = void[1:-1, 1:-1] & void[:-2, 1:-1] & void[2:, 1:-1]
        inside &= void[1:-1, :-2] & void[1:-1, 2:]
        assert inside.sum() < 0.05 * void.sum()


def test_captions_name_what_is_seen(scenes):
    for scene in scenes:
        whole, *single = scene.captions
        assert all(caption.startswith("a photo of a ") for caption in scene.captions)
        for label in visible(scene) - {0}:
            name = words.CLASSES[label]
            said = (name, *words.DEFINITIONS[name])
            assert any(word in whole for word in said), (whole, name)
            assert any(word in caption for word in said for caption in single)


def test_captions_prefer_concepts_to_plain_names(scenes):
    """What makes definitions worth having: the plain name is rare."""
    text = " . ".join(caption for scene in scenes for caption in scene.captions)
    plain = text.count(" vehicle")
    concepts = sum(text.count(f" {concept}") for concept in words.DEFINITIONS["vehicle"])
    assert 0 < plain < 0.2 * concepts


def test_captions_read_well():
    assert words.caption(["tiger"]) == "a photo of a tiger"
    assert words.caption(["tiger", "bus"], "brick wall") == (
        "a photo of a tiger and a bus on a brick wall"
    )
    assert words.caption(["tiger", "bus", "daisy"]) == "a photo of a tiger, a bus and a daisy"


def test_every_concept_can_be_drawn():
    assert set(DRAW) == set(words.CONCEPTS) - set(words.SCENERY) and set(TEXTURE) == set(
        words.SCENERY
    )
    assert len(words.PALETTE) == len(words.CLASSES) == len(set(words.PALETTE))
    assert len(set(words.CONCEPTS)) == len(words.CONCEPTS)


PREPARE = """
import sys
from tfds_builders.common import prepare
from tfds_builders.shapes.shapes_dataset_builder import Builder
print(prepare(Builder(data_dir=sys.argv[1], train=5, validation=2)))
assert "tensorflow" not in sys.modules
"""


def test_builder_prepares_without_tensorflow(tmp_path):
    env = os.environ | {"TFDS_DISABLE_PROGRESS_BAR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(tmp_path)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(done.stdout.splitlines()[-1])
    facts = builder.info.metadata
    assert list(facts["classes"]) == list(words.CLASSES)
    assert [tuple(d) for d in facts["definitions"]] == list(words.DEFINITIONS.values())
    assert [tuple(c) for c in facts["palette"]] == list(words.PALETTE)
    assert {part: len(ids) for part, ids in facts["ids"].items()} == {"train": 5, "validation": 2}
    records = builder.as_data_source(
        split="train",
        decoders={"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()},
    )
    drawn = generator.sample("train", 4)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(records[4]["image"]))), drawn.image
    )
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(records[4]["label"]))), drawn.label
    )
    assert [c.decode() for c in records[4]["captions"]] == list(drawn.captions)


def test_builder_refuses_an_empty_part(tmp_path):
    from tfds_builders.shapes.shapes_dataset_builder import Builder

    with pytest.raises(ValueError, match="validation = 0"):
        Builder(data_dir=str(tmp_path), validation=0)
