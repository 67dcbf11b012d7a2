"""Files of torch, NumPy and Hugging Face are read alike; unusable ones are errors."""

import json
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from semivl_jax.weights import convert, foreign_files
from semivl_jax.weights.layout import Options
from tests.weights import file_formats, published

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Payload:
    """An object that a pickle of weights must not contain."""


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(scope="module")
def state():
    return published.tiny_openai(np.float16)


def assert_refused(path, sentence, **options):
    with pytest.raises(ValueError, match=sentence) as error:
        foreign_files.read(path, **options)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("file_format", file_formats.FORMATS)
def test_every_format_gives_the_same_arrays(tmp_path, state, file_format):
    path = tmp_path / "weights"  # without suffix
    file_formats.write(state, path, file_format)
    assert_same_state(foreign_files.read(path).state, state)


def test_a_training_programs_checkpoint(tmp_path, state):
    """What SemiVL and UniMatch save: the best score is a NumPy number, every name has "module."."""
    torch = file_formats.torch()
    model = file_formats.tensors({f"module.{name}": array for name, array in state.items()})
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    content = {
        "model": model,
        "model_ema": {name: 2 * tensor for name, tensor in model.items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "previous_best": np.float64(71.2),
        "best": np.mean(np.ones(2, np.float32)),
    }
    torch.save(content, tmp_path / "best.pth")
    path = tmp_path / "best.pth"
    assert_same_state(foreign_files.read(path).state, state)
    average = foreign_files.read(path, entry="model_ema").state
    assert_same_state(average, {name: 2 * array for name, array in state.items()})
    assert_refused(path, "has no entry 'ema' with weights; it has 'model'", entry="ema")


def test_bfloat16_is_read_everywhere(tmp_path):
    torch = file_formats.torch()
    from safetensors.torch import save_file as save_torch

    tensor = torch.tensor([1.5, -2.25], dtype=torch.bfloat16)
    torch.save({"a": tensor}, tmp_path / "a.pt")
    save_torch({"a": tensor}, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        assert foreign_files.read(path).state["a"].astype(np.float32).tolist() == [1.5, -2.25]


def test_python_objects_are_refused(tmp_path):
    torch = file_formats.torch()
    np.savez(tmp_path / "object.npz", a=np.array([Payload()], object))
    assert_refused(tmp_path / "object.npz", "holds Python objects")
    for content, sentence in (
        ({"model": Payload()}, "holds Python objects .* could run any program"),
        ({"model": {"a": torch.ones(1), "b": "text"}}, "holds 'b' beside its weights"),
        ([torch.ones(1)], "holds no table of named weights"),
    ):
        torch.save(content, tmp_path / "a.pth")
        assert_refused(tmp_path / "a.pth", sentence)


def test_without_torch_there_is_a_remedy(tmp_path, state, monkeypatch):
    file_formats.write(state, tmp_path / "clip.pt", "zip")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_refused(tmp_path / "clip.pt", "was written by torch, .* pip install")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<!doctype html>", "of no known format"),
        (b"", "of no known format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"PK\x03\x04 and no more", "cannot be read"),
        (None, "no such file"),
    ],
    ids=["page", "empty", "pointer", "cut", "missing"],
)
def test_what_is_no_weight_file(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    assert_refused(tmp_path / "file", sentence)


def test_an_archive_of_other_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", b"x")
    assert_refused(tmp_path / "photos.zip", "neither of NumPy")


def hugging_face(folder, state, config):
    folder.mkdir(exist_ok=True)
    save_file(published.huggingface(state), folder / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return folder


def test_heads_and_activations_come_from_the_config_of_hugging_face(tmp_path, state):
    config = {
        "vision_config": {"num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
        "text_config": {"num_attention_heads": 2, "hidden_act": "gelu"},
    }
    folder = hugging_face(tmp_path / "clip", state, config)
    out, options = tmp_path / "ours.safetensors", Options(as_trained=True)
    for src in (folder, folder / "model.safetensors"):
        sizes = convert.convert_file(src, out, options=options).sizes
        assert (sizes["image"]["num_heads"], sizes["text"]["num_heads"]) == (4, 2)
        assert (sizes["image"]["quick_gelu"], sizes["image"]["eps"]) == (False, 1e-3)
        assert (sizes["text"]["quick_gelu"], sizes["text"]["eps"]) == (False, 1e-5)
    plain = convert.convert_file(folder, out).sizes["image"]
    assert "eps" not in plain and "quick_gelu" not in plain


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", r"config\.json is not valid JSON"),
        ("[1]", "holds no JSON object"),
        ({"vision_config": 3}, "no settings under vision_config"),
        ({"text_config": {"hidden_act": "relu"}}, r"text_config\.hidden_act = 'relu'"),
        ({"text_config": {"num_attention_heads": "two"}}, "which are no numbers"),
        ({"text_config": {"num_attention_heads": 3}}, "3 heads do not divide the width 64"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path, state, config, sentence):
    folder = hugging_face(tmp_path / "clip", state, config)
    with pytest.raises(ValueError, match=sentence):
        convert.convert_file(folder, tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        foreign_files.read(tmp_path)
