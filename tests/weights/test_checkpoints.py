"""Files of torch, NumPy and Hugging Face: read alike, and refused with a sentence where they must be."""

import json
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from semivl_jax.weights import checkpoints, conversion
from semivl_jax.weights.layouts import Options
from tests.weights import published, torch_formats

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Payload:
    """Something that a pickle of weights has no business to hold."""


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(scope="module")
def state():
    return published.tiny_openai(np.float16)


@pytest.mark.parametrize("name", ["zip", "legacy", "script", "npz", "safetensors"])
def test_every_format_gives_the_same_arrays(tmp_path, state, name):
    path = tmp_path / "weights"  # no ending says what it is
    if name == "script":
        torch_formats.save_script(state, path)
    elif name == "npz":
        with path.open("wb") as stream:
            np.savez(stream, **state)
    elif name == "safetensors":
        save_file(state, path)
    else:
        torch_formats.save(state, path, _use_new_zipfile_serialization=name == "zip")
    assert_same_state(checkpoints.read(path).state, state)


def test_a_training_programs_checkpoint(tmp_path, state):
    """What SemiVL and UniMatch save: the best score is a NumPy number, every name has "module."."""
    torch = torch_formats.torch()
    model = torch_formats.tensors({f"module.{name}": array for name, array in state.items()})
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
    assert_same_state(checkpoints.read(path).state, state)
    average = checkpoints.read(path, entry="model_ema").state
    assert_same_state(average, {name: 2 * array for name, array in state.items()})
    with pytest.raises(
        ValueError, match=r"best\.pth has no entry 'ema' with weights; it has 'model'"
    ):
        checkpoints.read(path, entry="ema")


def test_bfloat16_is_read_everywhere(tmp_path):
    torch = torch_formats.torch()
    from safetensors.torch import save_file as save_torch

    tensor = torch.tensor([1.5, -2.25], dtype=torch.bfloat16)
    torch.save({"a": tensor}, tmp_path / "a.pt")
    save_torch({"a": tensor}, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        assert checkpoints.read(path).state["a"].astype(np.float32).tolist() == [1.5, -2.25]


def test_python_objects_are_refused(tmp_path):
    torch = torch_formats.torch()
    torch.save({"model": Payload()}, tmp_path / "object.pth")
    with pytest.raises(
        ValueError, match=r"object\.pth holds Python objects .* could run any program"
    ):
        checkpoints.read(tmp_path / "object.pth")
    np.savez(tmp_path / "object.npz", a=np.array([Payload()], object))
    with pytest.raises(ValueError, match=r"object\.npz holds Python objects"):
        checkpoints.read(tmp_path / "object.npz")
    torch.save({"model": {"a": torch.ones(1), "b": "text"}}, tmp_path / "mixed.pth")
    with pytest.raises(ValueError, match=r"mixed\.pth holds 'b' beside its weights"):
        checkpoints.read(tmp_path / "mixed.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no table of named weights"):
        checkpoints.read(tmp_path / "list.pth")


def test_without_torch_there_is_a_remedy(tmp_path, state, monkeypatch):
    torch_formats.save(state, tmp_path / "clip.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"clip\.pt was written by torch, .* pip install"):
        checkpoints.read(tmp_path / "clip.pt")


def test_what_is_no_weight_file(tmp_path):
    contents = {
        "page.html": (b"<!doctype html>", "of no known format"),
        "empty": (b"", "of no known format"),
        "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        "cut.zip": (b"PK\x03\x04 and no more", r"cut\.zip cannot be read"),
    }
    for name, (content, sentence) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=sentence) as error:
            checkpoints.read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", b"x")
    with pytest.raises(ValueError, match="neither of NumPy"):
        checkpoints.read(tmp_path / "photos.zip")
    with pytest.raises(ValueError, match="gone: no such file"):
        checkpoints.read(tmp_path / "gone")


def hugging_face(folder, state, config):
    folder.mkdir(exist_ok=True)
    save_file(published.huggingface(state), folder / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return folder


def test_a_folder_of_hugging_face_says_heads_and_activations(tmp_path, state):
    config = {
        "vision_config": {"num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
        "text_config": {"num_attention_heads": 2, "hidden_act": "gelu"},
    }
    folder = hugging_face(tmp_path / "clip", state, config)
    out, options = tmp_path / "ours.safetensors", Options(as_trained=True)
    for src in (folder, folder / "model.safetensors"):
        sizes = conversion.convert_file(src, out, options=options).sizes
        assert (sizes["image"]["num_heads"], sizes["text"]["num_heads"]) == (4, 2)
        assert (sizes["image"]["quick_gelu"], sizes["image"]["eps"]) == (False, 1e-3)
        assert (sizes["text"]["quick_gelu"], sizes["text"]["eps"]) == (False, 1e-5)
    plain = conversion.convert_file(folder, out).sizes["image"]
    assert "eps" not in plain and "quick_gelu" not in plain


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", r"config\.json is not valid JSON"),
        ("[1]", "holds no table of settings"),
        ({"vision_config": 3}, "no settings under vision_config"),
        ({"text_config": {"hidden_act": "relu"}}, r"text_config\.hidden_act = 'relu'"),
        ({"text_config": {"num_attention_heads": "two"}}, "which are no numbers"),
        ({"text_config": {"num_attention_heads": 3}}, "3 heads do not divide the width 64"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path, state, config, sentence):
    folder = hugging_face(tmp_path / "clip", state, config)
    with pytest.raises(ValueError, match=sentence):
        conversion.convert_file(folder, tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        checkpoints.read(tmp_path)
