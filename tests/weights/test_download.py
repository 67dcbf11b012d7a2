"""`prepare weights` as a user runs it, against a server that has small files of exactly that format."""

import hashlib
import importlib.util
import json

import pytest
from safetensors.numpy import save as to_bytes

from semivl_jax import prepare
from semivl_jax.data.download import RemoteFile
from semivl_jax.weights import download, towers
from semivl_jax.weights.download import CLIP_VIT_B16, Published
from tests.data.file_server import serve
from tests.weights import file_formats, published

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

BLOCKS = {"width": 64, "num_heads": 1, "out_dim": 8}
SIZES = {
    "image": {**BLOCKS, "patch_size": 4, "depth": 2, "mlp_dim": 256},
    "text": {**BLOCKS, "vocab_size": 40, "depth": 1},
}


@pytest.fixture
def server():
    with serve() as running:
        yield running


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """No cache of the hub, no settings for it, and no waiting for a server."""
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("semivl_jax.data.download._ATTEMPTS", 1)


@pytest.fixture
def run(server, clean, tmp_path, capsys, monkeypatch):
    def call(*arguments):
        where = sha(server.files.get("ViT-B-16.pt", b""))
        official = RemoteFile(name="ViT-B-16.pt", url=server.url("ViT-B-16.pt"), sha256=where)
        clip = Published(
            name="clip_vit_b16",
            official=official,
            repository="openai/clip",
            hub=server.address,
            sizes=SIZES,
        )
        argv = ["weights", f"--weights_dir={tmp_path / 'weights'}", *arguments]
        monkeypatch.setattr(download, "CLIP_VIT_B16", clip)
        return prepare.main(argv), "".join(capsys.readouterr())

    return call


def sha(data):
    return hashlib.sha256(data).hexdigest()


def offer_official(server, folder):
    file_formats.save_script(published.tiny_openai(), folder / "script.pt")
    server.files["ViT-B-16.pt"] = (folder / "script.pt").read_bytes()


def offer_hub(server, checksum=None):
    data = to_bytes(published.huggingface(published.tiny_openai()))
    start = "openai/clip/resolve/main"
    server.files["cdn/model"] = data
    server.files[f"{start}/config.json"] = json.dumps({"vision_config": {}}).encode()
    server.elsewhere[f"{start}/model.safetensors"] = "cdn/model"
    facts = {"X-Linked-Etag": f'"{checksum or sha(data)}"', "X-Linked-Size": str(len(data))}
    server.facts[f"{start}/model.safetensors"] = facts


def test_the_official_file_is_fetched_converted_and_not_again(run, server, tmp_path):
    offer_official(server, tmp_path)
    code, text = run("--check")
    assert code == 1 and "clip_vit_b16: not prepared yet" in text and server.requests == []
    assert "ViT-B-16.pt: missing; will be downloaded from http" in text
    server.break_after = [5000]
    code, text = run()
    assert code == 2  # broken off
    code, text = run()
    out = tmp_path / "weights" / "clip_vit_b16.safetensors"
    assert code == 0 and "detected: CLIP of OpenAI" in text
    assert text.endswith(f"clip_vit_b16: --config.model.weights={out}\n")
    assert [wanted for path, wanted in server.requests if path == "ViT-B-16.pt"] == [
        "",
        "bytes=5000-",
    ]
    asked = len(server.requests)
    assert run()[0] == 0 and run("--check")[0] == 0 and len(server.requests) == asked
    assert towers.load(out, "").image.items() >= SIZES["image"].items()
    out.write_bytes(out.read_bytes()[:-9])
    assert run()[0] == 2 and run("--check")[0] == 2


def test_the_hub_is_the_alternative(run, server, tmp_path):
    offer_hub(server)
    code, text = run()
    assert code == 0, text
    assert "openai: not available" in text and "detected: CLIP in the layout of Hugging" in text
    # OpenAI's file is asked for only where torch is there to read it.
    torch_is_here = importlib.util.find_spec("torch") is not None
    assert (("ViT-B-16.pt", "") in server.requests) == torch_is_here
    folder = tmp_path / "weights" / "downloads" / "huggingface"
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors"}


def test_the_hub_alone_and_its_checksum(run, server):
    offer_hub(server, checksum="0" * 64)
    code, text = run("--source=huggingface")
    assert code == 2 and "is not the expected file" in text
    assert all(path != "ViT-B-16.pt" for path, _ in server.requests)
    server.facts.clear()
    code, text = run("--source=huggingface")
    assert code == 2 and "stored without a checksum" in text
    server.elsewhere.clear()
    code, text = run("--source=huggingface")
    assert code == 2 and "has neither model.safetensors nor pytorch_model.bin" in text
    assert "--from=FILE" in text


def test_offline_only_what_is_here(run, server, tmp_path, monkeypatch):
    offer_hub(server)
    offer_official(server, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, text = run()
    assert code == 2 and "HF_HUB_OFFLINE is set and" in text and server.requests == []
    snapshot = tmp_path / "hf" / "hub" / "models--openai--clip" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(server.files["cdn/model"])
    (snapshot / "config.json").write_text("{}")
    code, text = run()
    assert code == 0 and server.requests == [] and "detected: CLIP in the layout" in text


def test_a_file_from_elsewhere(run, server, tmp_path):
    given = tmp_path / "given.safetensors"
    given.write_bytes(to_bytes(published.tiny_openai() | published.OPENAI_FACTS))
    code, text = run(f"--from={given}")
    assert code == 0 and "--config.model.weights=" in text and server.requests == []
    small = published.openai_image_shapes(64, 1, 8) | published.openai_text_shapes(64, 1, 8)
    given.write_bytes(to_bytes(published.random_like(small) | published.OPENAI_FACTS))
    code, text = run(f"--from={given}")
    assert code == 2 and "is not clip_vit_b16: its image tower has depth 1 instead of 2" in text
    code, text = run(f"--from={tmp_path / 'gone'}")
    assert code == 2 and "no such file" in text


def test_without_torch_nothing_is_downloaded(run, server, tmp_path, monkeypatch):
    server.files["ViT-B-16.pt"] = b"x"
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    code, text = run("--source=openai")
    assert code == 2 and "reading ViT-B-16.pt needs torch" in text and server.requests == []


def test_the_prepared_file_has_a_short_name(tmp_path, monkeypatch, run, server):
    monkeypatch.setattr(towers, "PREPARED", tmp_path / "weights")
    with pytest.raises(ValueError, match=r"is not prepared yet .*semivl_jax\.prepare weights"):
        towers.load("clip_vit_b16", "clip_vit_b16")
    given = tmp_path / "given.safetensors"
    given.write_bytes(to_bytes(published.tiny_openai() | published.OPENAI_FACTS))
    code, text = run(f"--from={given}")
    assert code == 0 and text.endswith("--config.model.weights=clip_vit_b16\n")
    assert towers.load("clip_vit_b16", "").image["width"] == 64


def test_the_published_address_carries_its_checksum():
    file = CLIP_VIT_B16.official
    assert file.url.split("/")[-2] == file.sha256 and len(file.sha256) == 64
    assert CLIP_VIT_B16.sizes["image"]["width"] == 768
