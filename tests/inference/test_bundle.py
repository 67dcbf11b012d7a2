"""The folder that prediction reads: whole, replaced as a whole, and readable without the run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semivl_jax.data.dataset_info import DatasetInfo
from semivl_jax.experiment import init_weights
from semivl_jax.inference import bundle
from semivl_jax.models import build
from semivl_jax.text import class_text
from semivl_jax.types import ClassText
from semivl_jax.weights import checksums, store
from tests import served

INFO = DatasetInfo(name="toy", classes=("ground", "disc"), definitions=(("floor",), ("disc", "ø")))
TEXT = ClassText(jnp.eye(3), jnp.array([0, 1, 1]), 2)


def variables(value):
    return {"params": {"decoder": {"kernel": jnp.full((2, 3), value)}}, "batch_stats": {}}


def save(folder, value, tower=None):
    bundle.save(
        folder,
        variables(value),
        text=TEXT,
        tower=tower or class_text.TextTower.of(served.clip()),
        clip_sizes=served.clip().image,
        info=INFO,
        config=served.config(),
        metrics={"eval/miou": 1.5},
    )


def test_everything_comes_back(tmp_path):
    save(tmp_path / "serving", 1.5)
    for path in (tmp_path, tmp_path / "serving"):
        back = bundle.load(path)
        assert sorted(p.name for p in back.folder.iterdir()) == sorted(bundle.FILES)
        kernel = back.variables["params"]["decoder"]["kernel"]
        np.testing.assert_array_equal(kernel, np.full((2, 3), 1.5))
        np.testing.assert_array_equal(back.text.embeddings, TEXT.embeddings)
        np.testing.assert_array_equal(back.text.class_of, TEXT.class_of)
        assert back.info.to_json() == INFO.to_json()
        for section in ("model", "vlg_decoder", "evaluation", "data"):
            stored = json.loads((back.folder / "config.json").read_text())[section]
            assert stored == json.loads(served.config()[section].to_json())
        assert back.config.data.crop == 32 and back.config.evaluation.window_batch == 2
        assert back.clip_sizes == served.clip().image
        assert back.metrics == {"eval/miou": 1.5}
        expected = class_text.TextTower.of(served.clip()).embed(["a photo of a disc"])
        # float16 keeps 11 bits of every weight.
        np.testing.assert_allclose(
            back.tower.embed(["a photo of a disc"]),
            expected,
            atol=2e-3 * abs(expected).max(),
        )


def test_the_next_best_replaces_the_folder_and_remains_of_a_kill_go(tmp_path):
    folder = tmp_path / "serving"
    save(folder, 1.0)
    for remains in (".serving.semivl_jax.new", ".serving.semivl_jax.old"):
        (tmp_path / remains).mkdir()
        (tmp_path / remains / "half").write_text("")
    save(folder, 2.0)
    tree, _ = store.load_tree(folder / "model.safetensors")
    assert tree["params"]["decoder"]["kernel"][0, 0] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["serving"]


def test_the_text_tower_is_written_once_and_again_if_it_is_another(tmp_path):
    folder = tmp_path / "serving"
    save(folder, 1.0)
    first = (folder / "text_tower.safetensors").stat()
    save(folder, 2.0)
    again = (folder / "text_tower.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    tower = class_text.TextTower.of(served.clip())
    other = {**tower.params, "pos_embedding": tower.params["pos_embedding"] + 1}
    save(folder, 3.0, class_text.TextTower(sizes=tower.sizes, params=other))
    written = bundle.load(folder).tower.params["pos_embedding"]
    np.testing.assert_allclose(written, other["pos_embedding"], atol=1e-3)
    (folder / "text_tower.safetensors").write_bytes(b"half")
    save(folder, 4.0)
    assert bundle.load(folder).tower is not None


def test_a_save_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = tmp_path / "serving"
    save(folder, 1.0)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "save_tree", full)
    with pytest.raises(OSError, match="no space left"):
        save(folder, 2.0)
    monkeypatch.undo()
    tree, _ = store.load_tree(folder / "model.safetensors")
    assert tree["params"]["decoder"]["kernel"][0, 0] == 1.0


def test_configurations_of_other_versions(tmp_path):
    """Old names are translated, keys of training ignored; an unknown key of the model is an error."""
    save(tmp_path, 1.0)
    (tmp_path / checksums.FILE).unlink()
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    stored["model"]["taps"] = [0, 2]
    del stored["model"]["out_indices"], stored["model"]["renormalize"]
    stored["dpt_decoder"]["tap_channels"] = [4, 6, 8, 10]
    del stored["dpt_decoder"]["out_channels"]
    stored["model"]["weights"] = stored["model"]["guidance_dtype"] = None
    stored["evaluation"]["held_back"] = 5
    stored["method"] = {"semi_supervised": True, "partner": "batch"}
    stored["data"]["later"] = stored["later"] = 1
    del stored["optim"], stored["text"]["decoder"]
    path.write_text(json.dumps(stored))
    config = bundle.load(tmp_path).config
    assert config.model.out_indices == (0, 2) and config.model.renormalize is False
    assert config.dpt_decoder.out_channels == (4, 6, 8, 10)
    assert config.data.crop == 32 and config.text.decoder == "name"
    for section, key in (("model", "wings"), ("vlg_decoder", "wings")):
        changed = {**stored, section: {**stored[section], key: 2}}
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"config\.json has a key .*wings.* use the version"):
            bundle.load(tmp_path)


def _old_model(folder):
    tree, _ = store.load_tree(folder / "model.safetensors")
    store.save_tree(folder / "model.safetensors", tree, {"format": "semivl_jax segmenter"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "model.safetensors").unlink(),
            "holds no model; name the working directory",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\x01" * 9),
            "not a readable safetensors",
        ),
        (_old_model, "does not state the sizes of its image tower: an early version"),
        (lambda f: (f / "classes.json").write_text("{"), r"classes\.json cannot be read"),
        (lambda f: (f / "classes.json").write_text("{}"), r"classes\.json lacks a field"),
        (lambda f: (f / "config.json").unlink(), r"config\.json cannot be read"),
        (lambda f: (f / "text.safetensors").unlink(), r"text\.safetensors: no such file"),
        (
            lambda f: shutil.copy(f / "text.safetensors", f / "text_tower.safetensors"),
            "is no text tower of semivl_jax",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_named_also_without_checksums(tmp_path, damage, message):
    folder = tmp_path / "serving"
    save(folder, 1.0)
    (folder / checksums.FILE).unlink()
    damage(folder)
    with pytest.raises(ValueError, match=message):
        bundle.load(folder)


def test_a_flipped_byte_is_named(tmp_path):
    """Wherever it is; also for training that starts from the folder."""
    folder = tmp_path / "serving"
    save(folder, 1.0)
    for name in bundle.FILES:
        whole = (folder / name).read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            flipped = bytearray(whole)
            flipped[position] ^= 1
            (folder / name).write_bytes(flipped)
            with pytest.raises(ValueError, match=rf"{name} (is damaged|cannot be read)"):
                bundle.load(folder)
        if name == "model.safetensors":
            config = served.config(
                model__checkpoint=str(folder), model__decoder="deeplab", model__out_indices=(1, 2)
            )
            network = build.segmenter(config, num_classes=2, clip_sizes=served.clip().image)
            with pytest.raises(ValueError, match=rf"{name} is damaged.* copy the folder once more"):
                init_weights.variables(config, network, None, clip=None)
        (folder / name).write_bytes(whole)
    bundle.load(folder)


def test_a_damaged_text_tower_is_not_linked_into_the_next_folder(tmp_path):
    folder = tmp_path / "serving"
    save(folder, 1.0)
    path = folder / "text_tower.safetensors"
    whole, (tree, _) = path.read_bytes(), store.load_tree(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    save(folder, 2.0)
    jax.tree.map(np.testing.assert_array_equal, store.load_tree(path)[0], tree)


def test_a_run_before_its_first_evaluation(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="a run without a model yet"):
        bundle.load(tmp_path)


def test_a_model_without_text_writes_no_text_files(tmp_path):
    bundle.save(
        tmp_path / "serving",
        variables(1.0),
        text=None,
        tower=None,
        clip_sizes={},
        info=INFO,
        config=served.config(model__backbone="resnet50", model__decoder="deeplab"),
        metrics={},
    )
    back = bundle.load(tmp_path)
    assert back.text is None and back.tower is None and back.clip_sizes == {}
    assert not list(back.folder.glob("text*"))
