"""SigLIP 2 of transformers with random weights: our towers and tokens, through its files, are the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.models import clip_guidance
from semivl_jax.models.layers import l2_normalize
from semivl_jax.text import class_text, siglip_tokenizer
from semivl_jax.types import IMAGENET_MEAN, IMAGENET_STD, ClassText
from semivl_jax.weights import convert, towers
from semivl_jax.weights.foreign_files import Checkpoint
from semivl_jax.weights.layout import Options
from tests.golden_files import assert_close
from tests.models import hugging_face
from tests.weights import siglip_folder

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(transformers' model, file of ours)."""
    folder = tmp_path_factory.mktemp("siglip")
    theirs = siglip_folder.make(folder)
    out = folder / "ours.safetensors"
    weights = convert.convert_file(folder, out)
    assert weights.kind == "huggingface_siglip"
    return theirs, out


def test_towers_and_dense_embedding(model):
    torch, _ = hugging_face.libraries()
    theirs, path = model
    clip = towers.load(path, "")
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    unit = (pixels + 1) / 2
    image = ((unit - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).astype(np.float32)
    tower = towers.image_tower(clip.image, clip.grid)
    features = jax.jit(tower.apply)({"params": clip.image_params}, image)
    sentences = ["a photo of a disc", "a photo of a large wooden box"]
    ids = siglip_tokenizer.tokenize(sentences, clip.tokenizer, context_length=12, vocab_size=999)
    with torch.no_grad():
        given = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        out = theirs(input_ids=torch.from_numpy(ids.astype(np.int64)), pixel_values=given)
        tokens = out.vision_model_output.last_hidden_state
        alone = theirs.vision_model.head(tokens.reshape(-1, 1, tokens.shape[-1])).numpy()
    assert_close(features.pooled, out.image_embeds.numpy(), TOLERANCE, "image")
    dense = l2_normalize(jnp.asarray(alone)).reshape(features.maps[-1].shape)
    assert_close(features.maps[-1], dense, TOLERANCE, "dense embedding")
    texts = l2_normalize(jnp.asarray(class_text.TextTower.of(clip).embed(sentences)))
    assert_close(texts, out.text_embeds.numpy(), TOLERANCE, "text")
    logits = clip.logit_scale * features.pooled @ texts.T + clip.logit_bias
    assert_close(logits, out.logits_per_image.numpy(), TOLERANCE, "logits")
    shapes = towers.image_shapes(clip.image, (3, 5))
    assert shapes["pos_embedding"].shape == towers.resized(clip, (3, 5))["pos_embedding"].shape


def test_tokens_are_those_of_transformers(model):
    _, transformers = hugging_face.libraries()
    content = json.loads((model[1].parent / "tokenizer.json").read_text())
    merges = [tuple(merge) for merge in content["model"]["merges"]]
    theirs = transformers.Siglip2Tokenizer(vocab=content["model"]["vocab"], merges=merges)
    texts = ["a photo of a Disc", "TREE  béton 7", "box " * 40, ""]
    found = siglip_tokenizer.tokenize(
        texts, json.dumps(content).encode(), context_length=12, vocab_size=999
    )
    end, pad = content["model"]["vocab"]["<eos>"], content["model"]["vocab"]["<pad>"]
    for row, text in zip(found, texts, strict=True):
        ids = [*theirs(text, add_special_tokens=False)["input_ids"][:11], end]
        assert row.tolist() == ids + [pad] * (12 - len(ids)), text


def test_probabilities_are_sigmoids_with_the_trained_scale_and_bias(model):
    clip = towers.load(model[1], "")
    info = DatasetInfo(name="toy", classes=("disc", "box"), definitions=(("disc",), ("box",)))
    tower = class_text.TextTower.of(clip)
    text = class_text.class_text(info, mode="name", tower=tower, cache="")
    assert (text.logit_scale, text.logit_bias) == (clip.logit_scale, clip.logit_bias)
    dense = text.embeddings[None, :, None]  # an image of two patches, each like one class
    found = clip_guidance.guidance_labels(dense, text, size=(2, 1), threshold=0.0)
    assert found.label.ravel().tolist() == [0, 1]
    expected = 1 / (1 + np.exp(-clip.logit_scale - clip.logit_bias))
    np.testing.assert_allclose(found.confidence.ravel(), expected, rtol=1e-5)
    softmax = ClassText(text.embeddings, text.class_of, 2)
    other = clip_guidance.guidance_labels(dense, softmax, size=(2, 1), threshold=0.0)
    assert abs(other.confidence - found.confidence).min() > 1e-3


def test_a_file_without_tokenizer_names_no_class(model, tmp_path):
    path = model[1]
    (tmp_path / "model.safetensors").write_bytes((path.parent / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_bytes((path.parent / "config.json").read_bytes())
    convert.convert_file(tmp_path, tmp_path / "ours.safetensors")
    tower = class_text.TextTower.of(towers.load(tmp_path / "ours.safetensors", ""))
    with pytest.raises(ValueError, match=r"hold no tokenizer.* --tokenizer=tokenizer\.json"):
        tower.embed(["disc"])
    given = (path.parent / "tokenizer.json").read_bytes()
    convert.convert_file(tmp_path, tmp_path / "b.safetensors", options=Options(tokenizer=given))
    assert towers.load(tmp_path / "b.safetensors", "").tokenizer == given
    for content, sentence in {
        b"{}": "the tokenizer cannot be read",
        given.replace(b"<eos>", b"<end>"): "has no token <eos>, so it is not SigLIP 2's",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            siglip_tokenizer.tokenize(["a"], content, context_length=4, vocab_size=999)
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the text tower 5"):
        siglip_tokenizer.tokenize(["a"], given, context_length=4, vocab_size=5)


PUBLISHED = {  # name: width, layers, heads, MLP, patch, side of the grid
    "siglip2_b16": (768, 12, 12, 3072, 16, 14),
    "siglip2_l16": (1024, 24, 16, 4096, 16, 16),
    "siglip2_so400m14": (1152, 27, 16, 4304, 14, 16),
    "siglip2_so400m16": (1152, 27, 16, 4304, 16, 16),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_convert(name):
    torch, transformers = hugging_face.libraries()
    width, layers, heads, hidden, patch, side = PUBLISHED[name]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": hidden,
             "num_attention_heads": heads}  # fmt: skip
    facts = transformers.SiglipConfig(
        vision_config={**sizes, "image_size": side * patch, "patch_size": patch},
        text_config={**sizes, "vocab_size": 256_000, "projection_size": width},
    )
    with torch.device("meta"):
        theirs = transformers.SiglipModel(facts)
    state = {
        name: np.broadcast_to(np.float16(0.01), tuple(tensor.shape))
        for name, tensor in theirs.state_dict().items()
    }
    weights = convert.convert(Checkpoint(source="published", state=state))
    total = sum(parameter.numel() for parameter in theirs.parameters())
    assert convert.parameter_counts(weights)["total"] == total
    image = {key: value for key, value in weights.sizes["img"].items() if key != "grid"}
    assert image == towers.IMAGE_SIZES[name]
    assert weights.sizes["txt"] == towers.TEXT_SIZES[name]


def test_images_of_any_aspect_are_refused():
    state = {
        "vision_model.head.probe": np.zeros((1, 1, 8)),
        "text_model.head.weight": np.zeros((8, 8)),
        "vision_model.embeddings.patch_embedding.weight": np.zeros((8, 192)),
    }
    with pytest.raises(ValueError, match="file is a NaFlex SigLIP 2, for images of any aspect"):
        convert.convert(Checkpoint(source="file", state=state))
