"""The notebook runs completely, with `configs/tiny.py` instead of the demo."""

import json
import re

import nbclient
import nbformat
import pytest

from tests.command import ROOT, environment
from tests.photos import make_folder

PATH = ROOT / "notebooks" / "semivl_demo.ipynb"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_runs_and_shows_images(tmp_path, monkeypatch):
    folder, workdir = make_folder(tmp_path / "photos"), tmp_path / "runs" / "demo"
    flags = (
        f"--config.data.directory={tmp_path}/data --config.compilation_cache= --config.steps=2 "
        "--config.evaluation.every_steps=2"
    )
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEMIVL_NOTEBOOK_CONFIG", f"configs/tiny.py:{folder}")
    monkeypatch.setenv("SEMIVL_NOTEBOOK_WORKDIR", str(workdir))
    monkeypatch.setenv("SEMIVL_NOTEBOOK_FLAGS", flags)
    book = nbformat.read(PATH, as_version=4)
    nbclient.NotebookClient(
        book, timeout=280, resources={"metadata": {"path": str(PATH.parent)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) == 3  # a panel, an overlay, an overlay with other classes
    printed = "".join(output.get("text", "") for output in outputs)
    assert "finished after 2 steps" in printed and "classes: ground, disc, box" in printed
    assert (workdir / "report.html").exists()
    # Outputs stay small enough for a stored notebook.
    assert sum(len(json.dumps(output)) for output in outputs) < 3_000_000


def test_badge_links_to_the_repository_that_is_cloned():
    cells = [cell.source for cell in nbformat.read(PATH, as_version=4).cells]
    repository = re.search(
        r'^REPOSITORY = "https://github.com/(.*)"$', "\n".join(cells), re.MULTILINE
    )[1]
    badge = re.search(r"\]\(https://colab.research.google.com/github/(.*?)\)", cells[0])[1]
    assert badge == f"{repository}/blob/main/{PATH.relative_to(ROOT)}"
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert "OWNER" not in page.read_text(encoding="utf8"), page


def test_is_stored_without_outputs():
    book = nbformat.read(PATH, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)
    assert "colab.research.google.com" in book.cells[0].source
