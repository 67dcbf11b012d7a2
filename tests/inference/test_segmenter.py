"""The Python interface: three lines, any kind of image, other classes, CLIP alone."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from semivl_jax.evaluation.evaluator import Evaluator
from semivl_jax.inference import bundle, load
from semivl_jax.inference.segmenter import Segmenter, as_rgb, find_devices
from semivl_jax.text import class_names, class_text
from semivl_jax.weights import towers
from tests import golden_models, served
from tests.golden_files import Golden, nhwc
from tests.weights import converted


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served.make(tmp_path_factory.mktemp("run") / "serving").parent


@pytest.fixture(scope="module")
def segmenter(folder):
    return Segmenter.load(folder, cache="")


def photo(size=(40, 48), seed=0):
    """Blocks of colour, so that neighbouring pixels are alike as in a photo."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR))


def test_three_lines(folder, segmenter, tmp_path):
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    found = segmenter(tmp_path / "photo.png")
    assert found.names == served.INFO.classes
    assert found.labels.dtype == np.uint8 and found.labels.shape == (40, 48)
    assert found.scores.dtype == np.float32 and found.scores.shape == (40, 48, 3)
    np.testing.assert_array_equal(found.labels, found.scores.argmax(-1))
    overlay = found.overlay()
    assert overlay.mode == "RGB" and overlay.height > 40
    found.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), found.labels)
        palette = np.array(mask.getpalette()[: 3 * 3]).reshape(3, 3)
    np.testing.assert_array_equal(palette, served.INFO.palette)


def test_it_computes_the_same_as_the_evaluation_of_the_run(folder, segmenter):
    model = load.open_model(folder, cache="")
    evaluator = Evaluator(model.network, model.window, num_classes=3)
    images = [photo((40, 48)), photo((33, 90), 1)]
    expected = list(evaluator.predict(model.variables, images))
    for mine, found in zip(segmenter.segment(images), expected, strict=True):
        np.testing.assert_array_equal(mine.labels, found.labels)


def test_arrays_pillow_images_and_files_are_the_same(segmenter, tmp_path):
    image = photo()
    Image.fromarray(image).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    Image.fromarray(image).rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    kinds = [image, Image.fromarray(image), turned, tmp_path / "a.png", str(tmp_path / "a.png")]
    scores = [found.scores for found in segmenter.segment(kinds)]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (4, 120), (160, 5)])
def test_any_size(segmenter, size):
    found = segmenter(photo(size))
    assert found.labels.shape == size and np.isfinite(found.scores).all()
    assert found.overlay().width >= size[1]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "array of float64 and shape .* give uint8 RGB"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\) is no image"),
        (np.zeros((0, 4, 3), np.uint8), "is no image"),
        (np.zeros((1, 1, 3), np.uint8), "image of 1×1 pixels: the shorter side needs at least 4"),
        (Image.new("RGB", (2000, 1)), "image of 2000×1 pixels"),
        ("nowhere/photo.jpg", r"nowhere/photo\.jpg: No such file"),
    ],
)
def test_images_that_cannot_be_used(image, message):
    with pytest.raises(ValueError, match=message):
        as_rgb(image)


def test_other_classes_are_described_and_decoded(folder):
    names = ["sky", "box", "a very long name of a class not seen in training", "ground"]
    other = Segmenter.load(folder, classes=names, cache="")
    found = other(photo())
    assert found.names == tuple(names) and found.scores.shape == (40, 48, 4)
    # The same list in another order is the same segmentation: no class has a place of its own.
    turned = Segmenter.load(folder, classes=names[::-1], cache="")(photo())
    np.testing.assert_allclose(turned.scores, found.scores[..., ::-1], atol=2e-4)


def test_definitions_are_what_the_decoder_is_given(folder):
    """One row per concept, or their mean before it is normalised."""
    loaded = bundle.load(folder)
    sentences = [f"a photo of a {c}" for d in served.INFO.definitions for c in d]
    rows = loaded.tower.embed(sentences)
    info, text = load._class_text(loaded, None, "concept", "")
    assert info is loaded.info and np.asarray(text.class_of).tolist() == [0, 0, 1, 2, 2, 2]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(text.embeddings, unit, atol=1e-6)
    _, text = load._class_text(loaded, None, "concept_average", "")
    mean = np.stack([rows[:2].mean(0), rows[2], rows[3:].mean(0)])
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(text.embeddings, mean, atol=1e-6)


def test_known_classes_keep_their_definitions_and_given_ones_win(folder):
    asked = {"box": ["carton"], "disc": ["disc"], "ground": ["ground"]}
    read = class_names.read_classes(asked)
    described = load._with_known_definitions(read, served.INFO)
    assert described.definitions == (("carton",), ("disc",), ("ground", "floor"))


def test_a_decoder_of_fixed_classes_refuses_others(tmp_path):
    served.make(tmp_path, model__decoder="deeplab", model__out_indices=(0, 2))
    assert Segmenter.load(tmp_path, cache="")(photo()).scores.shape == (40, 48, 3)
    for options in ({"classes": ["a"]}, {"definitions": "concept"}):
        with pytest.raises(ValueError, match=r"'deeplab', which knows the classes of its training"):
            Segmenter.load(tmp_path, **options)


def test_a_folder_of_an_early_version_has_no_text_tower(tmp_path):
    served.make(tmp_path)
    (tmp_path / "text_tower.safetensors").unlink()
    (tmp_path / "SHA256SUMS").unlink()
    assert Segmenter.load(tmp_path, cache="").names == served.INFO.classes
    with pytest.raises(ValueError, match=r"has no text_tower\.safetensors, without which no other"):
        Segmenter.load(tmp_path, classes=["a", "b"])


def test_weights_that_do_not_fit_the_configuration(tmp_path):
    served.make(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"mlp_dim": 32', '"mlp_dim": 48'))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit the model\. of another"):
        Segmenter.load(tmp_path, cache="")


def test_unknown_device():
    with pytest.raises(ValueError, match=r"no device of the kind 'tpu', JAX finds cpu here"):
        find_devices("tpu")


def test_importing_the_package_stays_light():
    script = (
        "import sys, semivl_jax; assert 'jax' not in sys.modules;"
        "from semivl_jax import Segmenter, Segmentation; assert 'jax' in sys.modules;"
        "assert Segmenter.__module__ == 'semivl_jax.inference.segmenter'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.golden
def test_zero_shot_is_the_published_guidance(monkeypatch):
    """CLIP alone through `clip:`, on one window that is the whole image: probabilities and labels."""
    golden = Golden("maskclip_guidance")
    meta = golden.meta
    concepts = meta["class_to_concept_idx"]
    classes = {name: [str(row) for row in rows] for name, rows in concepts.items()}
    texts = {
        "class": golden_models.class_text(golden["in/text_class"]),
        "concept": golden_models.class_text(golden["in/text_concept"], concepts),
    }
    clip = _golden_clip(golden)
    monkeypatch.setattr(towers, "load", lambda *_: clip)
    compared = 0
    for item in meta["items"]:
        images = nhwc(golden[f"in/{item['input']}/img"])
        rows, columns = images.shape[1:3]
        if item["renorm"] or rows != columns:
            continue  # windows are square, and CLIP is fed with the statistics of the run
        monkeypatch.setattr(class_text, "class_text", lambda *_, i=item, **__: texts[i["variant"]])
        model = load.open_model("clip:golden", classes=classes, window=rows)
        logits = np.asarray(jax.jit(model.network)(model.variables, jnp.asarray(images)))
        key = f"out/{item['input']}/{item['variant']}_renorm0"
        published = golden[f"{key}/max_prob"]
        np.testing.assert_allclose(jax.nn.softmax(logits).max(-1), published, atol=1e-5)
        label = golden[f"{key}/label_{item['conf_thresh']}"]
        best = np.sort(logits, axis=-1)
        sure = (label != 255) & (best[..., -1] - best[..., -2] > 1e-3)
        np.testing.assert_array_equal(logits.argmax(-1)[sure], label[sure], err_msg=key)
        compared += sure.sum()
    if not compared:
        pytest.skip("the file has no square image")


def _golden_clip(golden):
    kwargs = golden.meta["encoder_kwargs"]
    state = golden.weights("clip_encoder.")
    tower = golden_models.vision_tower(
        kwargs, table_of=kwargs["img_size"][0], out_dim=state["proj.weight"].shape[0]
    )
    params = converted.image_tower(state, num_heads=kwargs["num_heads"]).image_params
    names = ("patch_size", "width", "depth", "num_heads", "mlp_dim", "out_dim")
    sizes = {name: getattr(tower, name) for name in names}
    return towers.Clip(image=sizes, image_params=params, text={}, text_params={}, logit_scale=100.0)


def test_zero_shot_needs_classes_and_an_existing_file(tmp_path):
    with pytest.raises(ValueError, match="clip:demo knows no classes of its own"):
        Segmenter.load("clip:demo")
    with pytest.raises(ValueError, match="no such file; check the path of the weights"):
        Segmenter.load(f"clip:{tmp_path}/none.safetensors", classes="a,b")
    with pytest.raises(ValueError, match="a window is for clip:"):
        Segmenter.load(tmp_path, window=64)


def test_zero_shot_with_the_demo_clip():
    found = Segmenter.load("clip:demo", classes="background, tiger", cache="")(photo((90, 120)))
    assert found.labels.shape == (90, 120) and found.names == ("background", "tiger")
