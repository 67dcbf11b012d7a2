"""Models on the hub, through huggingface_hub and a server on this machine."""

import os
import subprocess
import sys

import pytest

from semivl_jax.inference import bundle, hub
from tests import served
from tests.command import ROOT
from tests.inference import hub_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served.make(tmp_path_factory.mktemp("run") / "serving")


def python(script, server, home):
    """Another process: the library reads its endpoint when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_TOKEN": "hf_x",
                   "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "JAX_PLATFORMS": "cpu",
                   "no_proxy": "127.0.0.1"}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_model_is_uploaded_and_downloaded(folder, tmp_path):
    pytest.importorskip("huggingface_hub")
    with hub_server.serving() as server:
        done = python(
            "from semivl_jax import export\n"
            "from semivl_jax.inference import bundle, hub\n"
            f"assert export.main(['--model', {str(folder)!r}, '--push_to_hub', 'me/photos']) == 0\n"
            "back = bundle.load(hub.download('hf://me/photos'))\n"
            "print(back.folder, back.info.classes, back.tower is not None)\n"
            "try: hub.download('hf://me/nothing')\n"
            "except ValueError as error: print(error)\n",
            server,
            tmp_path,
        )
        assert done.returncode == 0, done.stderr
        pushed = server.files["me/photos"]
    assert sorted(pushed) == sorted([*bundle.FILES, "README.md"])
    for name in bundle.FILES:
        assert pushed[name] == (folder / name).read_bytes()
    page, loaded, missing = done.stdout.splitlines()
    assert page.startswith("on the hub: ") and page.endswith("/me/photos")
    assert "('ground', 'disc', 'box') True" in loaded
    assert missing.startswith("hf://me/nothing cannot be fetched:")


def test_the_card_describes_the_model(folder):
    library = pytest.importorskip("huggingface_hub")
    card = hub.card(bundle.load(folder), "me/photos")
    text = card.split("---\n", 2)[2]
    data = library.ModelCard(card).data
    assert data.pipeline_tag == "image-segmentation" and data.license == "apache-2.0"
    result = data.eval_results[0]
    assert (result.metric_type, result.metric_value) == ("mean_iou", 34.25)
    assert result.dataset_name == "toy"
    assert 'Segmenter.load("hf://me/photos")' in text and "classes=[...]" in text
    assert "- box: box, crate, parcel" in text and "| eval/iou/ground | 50.00 |" in text
    assert '"dataset": "shapes"' in text


@pytest.mark.parametrize("address", ["hf://me", "hf://me/a/b", "hf://", "hf://me/pho tos"])
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="is no model on the hub; write hf://USER/REPO"):
        hub.download(address)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"install the extra: pip install 'semivl_jax\[hub\]'"):
        hub.download("hf://me/photos")
