"""Models to and from the Hugging Face hub, with a model card. Needs the extra `hub`.

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


def is_address(source: object) -> bool:
    """Whether a model's source is on the hub."""
    return str(source).startswith(PREFIX)


def download(address: str | Path) -> Path:
    """The local copy of a model on the hub; what is there already is not fetched again.

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
    served = bundle.load(path)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in bundle.FILES:
            if (served.folder / name).exists():
                (folder / name).symlink_to((served.folder / name).resolve())
        (folder / "README.md").write_text(card(served, repository), encoding="utf8")
        api = hub.HfApi()
        try:
            page = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Model of semivl_jax"
            )
        except (hub.errors.HfHubHTTPError, OSError) as error:
            raise ValueError(f"{repository} cannot be pushed: {_short(error)}") from error
    return str(page)


def card(served: bundle.Served, repository: str) -> str:
    """The README of a model: metadata for the hub, how to use it, classes, scores, configuration."""
    config, info = served.config, served.info
    miou = [served.metrics[k] for k in ("eval/miou_ema", "eval/miou") if k in served.metrics][:1]
    head = {
        "license": "apache-2.0",
        "library_name": "semivl_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "jax", "semivl", "clip"],
    }
    if miou:
        metric = {"type": "mean_iou", "value": round(miou[0], 2), "name": "mIoU, percent"}
        task = {"type": "image-segmentation"}
        data = {"name": info.name, "type": info.name, "split": "validation"}
        result = {"task": task, "dataset": data, "metrics": [metric]}
        head["model-index"] = [{"name": repository.split("/")[1], "results": [result]}]
    words = [
        f"- {name}" + (f": {', '.join(d)}" if d != (name,) else "")
        for name, d in zip(info.classes, info.definitions, strict=True)
    ]
    scores = [f"| {name} | {value:.2f} |" for name, value in served.metrics.items()]
    other = (
        ""
        if served.tower is None
        else "\nOther classes, by name: `Segmenter.load(..., classes=[...])`.\n"
    )
    # JSON is YAML, and json.dumps quotes whatever stands in a name.
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    table = ["## Validation", "", "| | |", "| --- | --- |", *scores, ""] if scores else []
    return "\n".join(
        [
            "---",
            front,
            "---",
            "",
            f"# {repository}",
            "",
            "Semantic segmentation with SemiVL (semi-supervised, vision-language guided), trained with "
            f"semivl_jax on `{info.name}`.",
            "",
            "```python",
            "from semivl_jax import Segmenter",
            "",
            f'segmenter = Segmenter.load("{PREFIX}{repository}")',
            'segmenter("photo.jpg").overlay().save("overlay.png")',
            "```",
            other,
            "## Classes",
            "",
            *words,
            "",
            *table,
            "## Training configuration",
            "",
            "```json",
            config.to_json(indent=1),
            "```",
            "",
        ]
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
