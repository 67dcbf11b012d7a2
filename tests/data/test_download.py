"""Downloads: resumed, verified, renamed when complete."""

import errno
import hashlib
import pathlib

import pytest

from semivl_jax.data import download
from semivl_jax.data.download import RemoteFile
from tests.data.file_server import serve

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def two_attempts(monkeypatch):
    monkeypatch.setattr(download, "_ATTEMPTS", 2)
    monkeypatch.setattr(download, "_WAIT", 0.0)


@pytest.fixture
def server():
    with serve() as running:
        running.files["a.zip"] = DATA
        yield running


def remote(server, **facts):
    return RemoteFile(name="a.zip", url=server.url("a.zip"), **facts)


def left(directory):
    return sorted(p.name for p in directory.iterdir() if p.name != ".lock")


def test_downloads_once(server, tmp_path):
    file = remote(server, sha256=SHA, size=len(DATA))
    assert download.status(file, tmp_path)[0] is False
    for _ in range(2):
        path = download.fetch(file, tmp_path)
        assert path.read_bytes() == DATA
    assert len(server.requests) == 1
    assert left(tmp_path) == ["a.zip", "a.zip.sha256"]
    assert download.status(file, tmp_path) == (True, "there, 10.2kB")


def test_goes_on_where_it_broke_off(server, tmp_path):
    server.break_after = [1000, 3000]
    path = download.fetch(remote(server, sha256=SHA), tmp_path)
    assert path.read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == ["", "bytes=1000-", "bytes=4000-"]


def test_goes_on_behind_a_redirection(server, tmp_path):
    """Release files of GitHub lie on another server."""
    server.elsewhere["latest/a.zip"] = "a.zip"
    server.break_after = [1000]
    file = RemoteFile(name="a.zip", url=server.url("latest/a.zip"), sha256=SHA)
    assert download.fetch(file, tmp_path).read_bytes() == DATA
    assert server.requests[-2:] == [("latest/a.zip", "bytes=1000-"), ("a.zip", "bytes=1000-")]


def test_goes_on_in_another_process(server, tmp_path, monkeypatch):
    """What a killed process leaves is used, and never taken for the file."""
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    server.break_after = [1000]
    file = remote(server, sha256=SHA)
    with pytest.raises(ValueError, match=r"a\.zip cannot be downloaded .*1.00kB are here"):
        download.fetch(file, tmp_path)
    assert left(tmp_path) == ["a.zip.part", "a.zip.part.tag"]
    assert download.status(file, tmp_path) == (False, "1.00kB downloaded")
    assert download.fetch(file, tmp_path).read_bytes() == DATA
    assert server.requests[-1][1] == "bytes=1000-"


def test_starts_over_when_the_file_changed_or_ranges_are_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    for directory in (tmp_path / "changed", tmp_path / "ranges"):
        server.files["a.zip"], server.break_after, server.ranges = DATA[::-1], [1000], True
        with pytest.raises(ValueError, match="cannot be downloaded"):
            download.fetch(remote(server), directory)
        server.files["a.zip"], server.ranges = DATA, directory.name == "changed"
        assert download.fetch(remote(server), directory).read_bytes() == DATA


def test_complete_part_is_accepted_and_a_too_long_one_dropped(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(DATA)  # killed just before the renaming
    assert download.fetch(remote(server, sha256=SHA), tmp_path).exists()
    (tmp_path / "a.zip").unlink()
    (tmp_path / "a.zip.part").write_bytes(DATA + b"more")
    path = download.fetch(remote(server, sha256=SHA), tmp_path)
    assert path.read_bytes() == DATA


def test_wrong_checksum_or_size_leaves_nothing(server, tmp_path):
    for facts in ({"sha256": "0" * 64}, {"size": 5}):
        with pytest.raises(ValueError, match=r"not the expected file: 10240 bytes .* was removed"):
            download.fetch(remote(server, **facts), tmp_path)
        assert left(tmp_path) == []


def test_the_first_checksum_is_kept(server, tmp_path):
    path = download.fetch(remote(server), tmp_path)
    path.unlink()
    server.files["a.zip"] = DATA + b"changed"
    with pytest.raises(ValueError, match=f"instead of any number of bytes with {SHA}"):
        download.fetch(remote(server), tmp_path)
    assert left(tmp_path) == ["a.zip.sha256"]


def test_file_put_there_by_hand_is_verified_and_not_deleted(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"SHA-256 .* instead of .*; delete it and start again"):
        download.fetch(remote(server, sha256=SHA), tmp_path)
    with pytest.raises(ValueError, match="14 bytes instead of 10240"):
        download.fetch(remote(server, size=len(DATA)), tmp_path)
    assert left(tmp_path) == ["a.zip"]
    (tmp_path / "a.zip").write_bytes(DATA)
    download.fetch(remote(server, sha256=SHA), tmp_path)
    assert server.requests == []
    (tmp_path / "a.zip").write_bytes(DATA + b"edited later")
    with pytest.raises(ValueError, match="SHA-256"):
        download.fetch(remote(server), tmp_path)


def test_transient_errors_are_retried_and_others_not(server, tmp_path):
    server.errors = [503]
    assert download.fetch(remote(server), tmp_path).exists()
    gone = RemoteFile(name="b.zip", url=server.url("b.zip"), page="https://example.org/b")
    with pytest.raises(ValueError, match=r"answers 404 .* from https://example\.org/b and put it"):
        download.fetch(gone, tmp_path)
    assert [path for path, _ in server.requests].count("b.zip") == 1


def test_no_network(tmp_path):
    file = RemoteFile(name="a.zip", url="http://127.0.0.1:9/a.zip")
    with pytest.raises(ValueError, match=r"cannot be downloaded .* when the network is back"):
        download.fetch(file, tmp_path)
    assert left(tmp_path) == []


def test_full_disk_leaves_nothing(server, tmp_path, monkeypatch):
    class Usage:
        free = 100

    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: Usage)
        with pytest.raises(ValueError, match=r"100B free, but 10\.2kB of a\.zip"):
            download.fetch(remote(server), tmp_path)
    assert left(tmp_path) == []

    def full(*_args, **_kwargs):
        pathlib.Path(tmp_path / "a.zip.part").write_bytes(DATA[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_copy", full)
    with pytest.raises(ValueError, match=r"is full: a\.zip does not fit"):
        download.fetch(remote(server), tmp_path)
    assert left(tmp_path) == []
