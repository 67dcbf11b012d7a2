"""Models to and from the Hugging Face Hub, with a model card. Needs the extra `hub`.

In: the folder `serving` of a run, or an address `hf://USER/REPO` or `hf://USER/REPO@REVISION`. Out: a
repository on the hub that holds the folder's files and a README.md, or a local copy of such a folder.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from semivl_jax.inference import bundle

PREFIX = "hf://"
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def download(address: str | Path) -> Path:
    """The local copy of a model on the hub; files that are there already are not fetched again.

    Raises:
      ValueError: not an address, no such repository, no network, or the extra is not installed.
    """
    name = str(address).removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{address} is no model on the hub; write {PREFIX}USER/REPO[@REVISION]")
    repository, _, revision = name.partition("@")
    hub = _library()
    try:
        folder = hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(bundle.FILES)
        )
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{address} cannot be fetched: {_short(error)}") from error
    return Path(folder)


def push(path: str | Path, repository: str, *, private: bool = False) -> str:
    """Puts a model and its card on the hub, and returns the address of the page.

    Raises:
      ValueError: no model there, not a name, no login, no network, or the extra is not installed.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"--push_to_hub={repository} is no repository; write USER/REPO")
    hub = _library()
    model = bundle.load(path)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in bundle.FILES:
            if (model.folder / name).exists():
                (folder / name).symlink_to((model.folder / name).resolve())
        (folder / "README.md").write_text(card(model, repository), encoding="utf8")
        api = hub.HfApi()
        try:
            page = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Model of semivl_jax"
            )
        except (hub.errors.HfHubHTTPError, OSError) as error:
            raise ValueError(f"{repository} cannot be pushed: {_short(error)}") from error
    return str(page)


_CARD = """---
{front}
---

# {repository}

Semantic segmentation with SemiVL (semi-supervised, vision-language guided), trained with semivl_jax on \
`{data}`.

```python
from semivl_jax import Segmenter

segmenter = Segmenter.load("{prefix}{repository}")
segmenter("photo.jpg").overlay().save("overlay.png")
```
{other_classes}
## Classes

{classes}
{scores}
## Training configuration

```json
{config}
```
"""


def card(model: bundle.Bundle, repository: str) -> str:
    """The README of a model: metadata for the hub, how to use it, classes, scores, configuration."""
    info, metrics = model.info, model.metrics
    front = {
        "license": "apache-2.0",
        "library_name": "semivl_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "jax", "semivl", "clip"],
    }
    miou = metrics.get("eval/miou_ema", metrics.get("eval/miou"))
    if miou is not None:
        metric = {"type": "mean_iou", "value": round(miou, 2), "name": "mIoU, percent"}
        data = {"name": info.name, "type": info.name, "split": "validation"}
        task = {"type": "image-segmentation"}
        result = {"task": task, "dataset": data, "metrics": [metric]}
        front["model-index"] = [{"name": repository.split("/")[1], "results": [result]}]
    classes = (
        f"- {name}" + (f": {', '.join(concepts)}" if concepts != (name,) else "")
        for name, concepts in zip(info.classes, info.definitions, strict=True)
    )
    rows = [f"| {name} | {value:.2f} |" for name, value in metrics.items()]
    table = ["", "## Validation", "", "| | |", "| --- | --- |", *rows, ""] if rows else []
    other = "\nOther classes, by name: `Segmenter.load(..., classes=[...])`.\n"
    return _CARD.format(
        # JSON is YAML, and json.dumps quotes what has to be quoted in a name.
        front="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        prefix=PREFIX,
        repository=repository,
        data=info.name,
        other_classes="" if model.tower is None else other,
        classes="\n".join(classes),
        scores="\n".join(table),
        config=(model.folder / "config.json").read_text(encoding="utf8"),
    )


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(
            "models on the hub need huggingface_hub; install the extra: pip install 'semivl_jax[hub]'"
        ) from error
    return huggingface_hub


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
