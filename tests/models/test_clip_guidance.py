"""Zero-shot labels of the frozen tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.models.calibrated_clip import dense_tokens
from semivl_jax.models.clip_guidance import (
    Guidance,
    class_scores,
    guidance_labels,
    max_over_concepts,
    surgery_scores,
)
from semivl_jax.models.image_normalization import renormalize
from semivl_jax.models.label_refinement import (
    affinity,
    along_attention,
    along_colours,
    with_range_of,
)
from semivl_jax.models.layers import l2_normalize
from semivl_jax.models.resize import bilinear
from semivl_jax.models.vit import CLIP, VisionTransformer
from semivl_jax.types import IGNORE_INDEX, ClassText
from semivl_jax.weights import towers
from tests import golden_models
from tests.golden_files import Golden, assert_close, files, nhwc
from tests.golden_models import class_text
from tests.weights import converted, published


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


@pytest.fixture(scope="module")
def tiny():
    """A tower of two blocks, its parameters, and images whose sides are no multiples of its patch."""
    clip = towers.initialised("tiny")
    tower = VisionTransformer(**{**CLIP, **clip.image}, grid=(3, 4), out_indices=(2,))
    params = towers.resized(clip, tower.grid)
    image = np.random.default_rng(0).normal(size=(2, 20, 28, 3)).astype(np.float32)
    return tower, params, jnp.asarray(image)


def test_tokens_of_the_value_path_are_the_dense_embedding(tiny):
    tower, params, image = tiny
    found = jax.jit(lambda x: dense_tokens(tower, params, x, "value"))(image)
    features = jax.jit(lambda x: tower.apply({"params": params}, x))(image)
    assert found.grid == (3, 4)
    tokens = l2_normalize(found.tokens)
    assert_close(tokens[:, 1:].reshape(2, 3, 4, -1), features.maps[0], 1e-6, "patches")
    assert_close(tokens[:, 0], features.pooled, 1e-6, "class token")


@pytest.mark.parametrize("dense", ["value", "svc"])
@pytest.mark.parametrize("scores", ["cosine", "surgery"])
def test_labels_of_every_variant(tiny, dense, scores):
    tower, params, image = tiny
    rows = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    text = ClassText(l2_normalize(jnp.asarray(rows)), jnp.asarray([0, 1, 1, 2, 2]), 3)
    ignore = jnp.zeros((2, 20, 28), bool).at[:, 15:].set(True)
    found = {}
    for refine in ("none", "affinity", "par"):
        guidance = Guidance(tower=tower, dense=dense, scores=scores, refine=refine)
        make = functools.partial(guidance.labels, threshold=0.5, ignore=ignore)
        made = found[refine] = jax.jit(make)(params, text, image)
        assert 1 / 3 - 1e-5 <= made.confidence.min() <= made.confidence.max() <= 1 + 1e-5
        kept = np.asarray((made.confidence >= 0.5) & ~ignore)
        np.testing.assert_array_equal(made.label == IGNORE_INDEX, ~kept)
    for refine in ("affinity", "par"):
        assert (found[refine].confidence != found["none"].confidence).any()


def test_refined_maps_keep_the_range_of_each_class():
    before, after = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 4, 5)), jnp.float32)
    made = with_range_of(after, before)
    for end in (jnp.min, jnp.max):
        np.testing.assert_allclose(end(made, (1, 2)), end(before, (1, 2)), atol=1e-5)
    order = [np.argsort(maps.reshape(2, 12, 5), axis=1) for maps in (made, after)]
    np.testing.assert_array_equal(*order)


EXCEL = "methods/excel"


class Excel:
    """The tower, the texts and the calibrated tokens of the file of ExCEL."""

    def __init__(self):
        self.golden = Golden(EXCEL)
        self.item = item = self.golden.meta["items"]["vit"]
        images = {f"visual.{k}": a for k, a in self.golden.weights("visual/").items()}
        texts = published.random_like(published.openai_text_shapes(64, 1, item["out"]))
        clip = converted.clip(images | texts, image_heads=item["heads"])
        self.params = clip.image_params
        self.tower = VisionTransformer(
            **{**CLIP, **clip.image, "eps": item["ln_eps"], "quick_gelu": True},
            table_resizing="bilinear",
            grid=clip.grid,
            out_indices=(item["layers"],),
        )
        self.text = class_text(self.golden["in/text"])

    def image(self, case):
        return jnp.asarray(nhwc(self.golden[f"in/{case}/img"]))

    @functools.partial(jax.jit, static_argnums=0)
    def tokens(self, image):
        return dense_tokens(self.tower, self.params, image, "svc")

    def maps(self, tokens):
        """Scores of foreground texts from 0 to 1, where the class token counts for the range."""
        return min_max(np.asarray(surgery_scores(tokens, self.text)), 1)[:, 1:, : self.item["fg"]]


def min_max(scores, *axis):
    low, high = (limit(axis=axis, keepdims=True) for limit in (scores.min, scores.max))
    return (scores - low) / (high - low + 1e-7)


@pytest.fixture(scope="module")
def excel():
    return Excel()


@pytest.mark.golden
@pytest.mark.parametrize("case", Golden(EXCEL).meta["items"]["vit"]["inputs"])
def test_calibrated_tokens_and_their_scores(excel, case):
    golden, head = excel.golden, f"out/{case}"
    tokens = excel.tokens(excel.image(case)).tokens
    assert_close(tokens, golden[f"{head}/tokens_proj"], 1e-5, "tokens")
    scores = surgery_scores(tokens, excel.text)
    assert_close(scores, golden[f"{head}/scores"], 1e-5, "scores")
    assert_close(excel.maps(tokens), golden[f"{head}/maps_minmax"], 1e-5, "maps")
    cosine = class_scores(l2_normalize(tokens[:, None]), excel.text)[:, 0]
    assert_close(cosine, golden[f"{head}/cosine_channel_norm"], 1e-5, "cosine")
    if f"{head}/maps_flip_merged" in golden:
        flipped = excel.maps(excel.tokens(excel.image(case)[:, :, ::-1]).tokens)
        side = golden[f"in/{case}/img"].shape[-1] // excel.tower.patch_size
        back = flipped.reshape(-1, side, side, flipped.shape[-1])[:, :, ::-1].reshape(flipped.shape)
        merged = min_max(np.maximum(excel.maps(tokens), back), 1)
        assert_close(merged, golden[f"{head}/maps_flip_merged"], 1e-4, "merged with the flip")


@pytest.mark.golden
def test_labels_along_the_attention(excel):
    golden, case = excel.golden, excel.item["first"]
    item = golden.meta["items"]["affinity"]
    one = slice(item["image"], item["image"] + 1)
    found = excel.tokens(excel.image(case))
    attention = found.attention[one, 1:, 1:]
    assert_close(affinity(attention)[0], golden[f"out/{case}/trans_mat"], 1e-5, "affinity")
    maps = excel.maps(found.tokens)[one].reshape(1, *found.grid, -1)[..., item["tags"]]
    inside = np.zeros_like(maps)  # published: every class only in boxes around its high scores
    for index, tag in enumerate(item["tags"]):
        for x0, y0, x1, y1 in item["boxes_x0y0x1y1_exclusive_end"][str(tag)]:
            inside[0, y0:y1, x0:x1, index] = 1
    refined = along_attention(jnp.asarray(maps * inside), attention)
    assert_close(refined[0], np.moveaxis(golden[f"out/{case}/refined"], 0, -1), 1e-5, "refined")
    ranged = min_max(golden[f"out/{case}/refined"][None], 2, 3)
    expected = nhwc(golden[f"out/{case}/refined_resized"][None])
    resized = bilinear(jnp.asarray(nhwc(ranged)), expected.shape[1:3], align_corners=False)
    assert_close(resized, expected, 1e-5, "resized")


@pytest.mark.golden
def test_labels_along_the_colours():
    golden = Golden(EXCEL)
    item = golden.meta["items"]["par"]
    image, masks = (jnp.asarray(nhwc(golden[f"in/par/{name}"])) for name in ("img", "masks"))
    image = bilinear(image, tuple(item["img"]), align_corners=True)
    masks = bilinear(masks, tuple(item["img"]), align_corners=True)
    for count in item["iters"]:
        made = along_colours(
            image=image, maps=masks, iterations=count, dilations=tuple(item["dil"])
        )
        assert_close(made, nhwc(golden[f"out/par/iter{count}"]), 1e-5, f"{count} iterations")
    np.testing.assert_array_equal(made.argmax(-1), golden["out/par/argmax_last"])
