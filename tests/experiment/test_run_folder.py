"""Working directories and data in a bucket; tests/test_resume.py and test_distributed.py train there."""

import json
import os
import re
import threading
import time

import pytest

from configs.tiny import get_config
from semivl_jax import buckets, utils
from semivl_jax.config import validate
from semivl_jax.experiment import lock, run_folder
from semivl_jax.experiment.data import open_data
from tests import gcs
from tests.photos import make_folder


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(lock, "RENEWED", 0.2)
    monkeypatch.setattr(lock, "EXPIRES", 1.5)
    with gcs.emulator(monkeypatch) as url:
        yield url


def test_a_path_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with run_folder.opened("~/runs/a") as folder:
        assert folder.path == tmp_path / "runs" / "a"


def other_holder(**changes):
    holder = {"host": "other", "process": 1, "since": "2026-01-01T00:00:00+00:00", **changes}
    return json.dumps(holder).encode()


def test_files_go_to_the_bucket_and_come_back_on_another_machine(bucket, tmp_path, monkeypatch):
    url = f"{bucket}/runs/a"
    with run_folder.opened(url) as folder:
        for name in ("config.json", "evaluations/1.npz", "serving/SHA256SUMS", "serving/model"):
            utils.write_text(folder.path / name, name)
        os.utime(folder.path / "config.json", (1e9, 1e9))
        folder.save()
        files = buckets.Folder(url).files()
        assert files == {
            "config.json": 11, "evaluations/1.npz": 17, "serving/SHA256SUMS": 18, "serving/model": 13,
            "lock": files["lock"],
        }  # fmt: skip
        (folder.path / "evaluations" / "1.npz").unlink()
        with (folder.path / "metrics.jsonl").open("a") as file:
            file.write("{}\n")
        here = folder.path
    assert not here.exists()
    kept = {"config.json", "metrics.jsonl", "serving/SHA256SUMS", "serving/model"}
    assert buckets.Folder(url).files().keys() == kept
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    with run_folder.opened(url) as folder:
        assert (folder.path / "config.json").read_text() == "config.json"
        assert abs((folder.path / "metrics.jsonl").stat().st_mtime - time.time()) < 600
        assert not (folder.path / "serving").exists()
    assert buckets.Folder(url).files().keys() == kept


def test_errors_name_the_address_in_the_bucket(bucket):
    url = f"{bucket}/runs/a"
    with (
        pytest.raises(ValueError, match=f"^{url}/config.json is bad$"),
        run_folder.opened(url) as folder,
    ):
        raise ValueError(f"{folder.path / 'config.json'} is bad")


def test_an_abandoned_run_is_taken_over_and_its_late_holder_stops(bucket, capsys):
    url = f"{bucket}/runs/a"
    remote = buckets.Folder(url)
    remote.write("lock", other_holder())
    with run_folder.opened(url) as folder:
        output = capsys.readouterr().out
        assert f"{url} was in use by process 1 on other since 2026-01-01" in output
        assert "gave none; this process goes on in its place" in output
        utils.write_text(folder.path / "a", "a")
        folder.save()
    assert remote.files().keys() == {"a"}
    lost = pytest.raises(ValueError, match=f"{url} is now used by process 1 on other")
    with lost, run_folder.opened(url) as folder:
        remote.write("lock", other_holder())
        time.sleep(1)
        utils.write_text(folder.path / "a", "changed")
        folder.save()
    assert remote.read("a") == b"a" and remote.read("lock") == other_holder()


def test_a_run_in_use_is_refused(bucket):
    url, ended = f"{bucket}/runs/a", threading.Event()

    def renew():
        while not ended.wait(0.1):
            buckets.Folder(url).write("lock", other_holder(renewed=time.time()))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        time.sleep(0.5)
        in_use = pytest.raises(ValueError, match=f"^{url} is in use by process 1 on other since")
        with in_use, run_folder.opened(url):
            pass
    finally:
        ended.set()
        thread.join()
    assert buckets.Folder(url).files().keys() == {"lock"}


def test_a_bucket_that_cannot_be_used(bucket):
    fault = pytest.raises(
        utils.SystemFault, match=r"^gs://missing/run: .*check that the bucket exists"
    )
    with fault, run_folder.opened("gs://missing/run"):
        pass


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "directory",
            "s3://b/data",
            "data.directory = 's3://b/data' cannot be used: s3:// is none of",
        ),
        ("directory", "gs:///data", "data.directory = 'gs:///data' cannot be used"),
        ("folder", "gs://bucket/photos", "data.folder = .*name a path on this machine"),
        (
            "extra_sources",
            "ood=gs://bucket/photos",
            "data.extra_sources = 'ood=gs://bucket/photos'",
        ),
    ],
)
def test_schemes_that_are_not_supported(key, value, message):
    config = get_config("/photos")
    config.data[key] = value
    with pytest.raises(ValueError, match=message):
        validate(config)


def test_data_is_prepared_once_and_copied_once_for_each_machine(
    bucket, tmp_path, monkeypatch, capfd
):
    config = get_config(str(make_folder(tmp_path / "photos")))
    config.data.directory = f"{bucket}/data"
    seen = []
    for home in ("first", "first", "second"):
        monkeypatch.setenv("HOME", str(tmp_path / home))
        data = open_data(config)
        assert data.train.directory.is_relative_to(tmp_path / home)
        assert {path.name for path in data.train.directory.parent.iterdir()} == {"1.1.0", ".lock"}
        seen.append(data.train.decode(1, label=False)[0].tobytes())
        output = capfd.readouterr().out
        place = f"{bucket}/data/photos-.*/folder_semi/1.1.0"
        expected = {
            ("first", 1): ["preparing ", f"copying .* to {place} "],
            ("first", 2): [],
            ("second", 3): [f"copying {place} to "],
        }[home, len(seen)]
        lines = [line for line in output.splitlines() if line.startswith(("preparing", "copying"))]
        assert len(lines) == len(expected)
        for line, pattern in zip(lines, expected, strict=True):
            assert re.match(pattern, line)
    assert len(set(seen)) == 1
