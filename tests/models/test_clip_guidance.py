"""Zero-shot labels of the frozen tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.clip_guidance import class_scores, guidance_labels, max_over_concepts
from semivl_jax.models.image_normalization import renormalize
from semivl_jax.types import IGNORE_INDEX, ClassText
from tests import golden_models
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.golden_models import class_text
from tests.weights import converted


@pytest.mark.golden
@pytest.mark.parametrize("file", files("maskclip_guidance*"))
def test_scores_probabilities_and_labels_are_the_published_ones(file):
    golden = Golden(file)
    kwargs, weights = golden.meta["encoder_kwargs"], golden.weights("clip_encoder.")
    tower = golden_models.vision_tower(
        kwargs, table_of=kwargs["img_size"], out_dim=weights["proj.weight"].shape[0]
    )
    clip = converted.image_tower(weights, num_heads=tower.num_heads, grid=tower.grid)
    params = clip.image_params
    texts = {
        "class": class_text(golden["in/text_class"]),
        "concept": class_text(golden["in/text_concept"], golden.meta["class_to_concept_idx"]),
    }

    @functools.partial(jax.jit, static_argnames="threshold")
    def predict(image, text, threshold):
        dense = tower.apply({"params": params}, image).maps[-1]
        labels = guidance_labels(dense, text, size=image.shape[1:3], threshold=threshold)
        return class_scores(dense, text), labels

    assert golden.meta["items"]
    for item in golden.meta["items"]:
        image = jnp.asarray(nhwc(golden[f"in/{item['input']}/img"]))
        image = renormalize(image) if item["renorm"] else image
        key = f"out/{item['input']}/{item['variant']}_renorm{int(item['renorm'])}"
        text = texts[item["variant"]]
        threshold = item["conf_thresh"]
        scores, ours = predict(image, text, threshold)
        assert_close(scores, nhwc(golden[f"{key}/sim_low"]), 1e-5, f"{key} scores")
        assert_close(ours.confidence, golden[f"{key}/max_prob"], 1e-4, f"{key} confidence")
        expected = golden[f"{key}/label_{threshold}"]
        sure = np.abs(golden[f"{key}/max_prob"] - threshold) >= 1e-5
        np.testing.assert_array_equal(np.asarray(ours.label)[sure], expected[sure], err_msg=key)


@pytest.mark.parametrize("class_of", [[2, 0, 1], [1, 0, 2, 1, 1, 0]])
def test_the_best_concept_of_each_class_counts(class_of):
    scores = np.random.default_rng(0).normal(size=(2, 4, len(class_of))).astype(np.float32)
    text = ClassText(jnp.zeros((len(class_of), 5)), jnp.asarray(class_of), 3)
    ours = jax.jit(max_over_concepts)(jnp.asarray(scores), text)
    expected = [scores[..., np.asarray(class_of) == c].max(axis=-1) for c in range(3)]
    np.testing.assert_array_equal(ours, np.stack(expected, axis=-1))


def test_padding_and_low_confidence_become_ignore():
    dense = jnp.asarray([[[[1.0, 0.0], [0.0, 1.0]]]])
    text = class_text(np.eye(2, dtype=np.float32))
    ignore = jnp.asarray([[[True, False, False, False]]])
    out = guidance_labels(dense, text, size=(1, 4), threshold=0.9, ignore=ignore)
    np.testing.assert_array_equal(out.label, [[[IGNORE_INDEX, 0, 1, 1]]])
    none = guidance_labels(dense, text, size=(1, 4), threshold=1.1)
    assert np.all(none.label == IGNORE_INDEX)
