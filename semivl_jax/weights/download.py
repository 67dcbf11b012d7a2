"""Download and conversion of CLIP's weights: `python -m semivl_jax.prepare weights`.

In: the network, or a downloaded file (`--from`). Out: `clip_vit_b16.safetensors` in the cache folder, for
`model.weights = "clip_vit_b16"`.

The SHA-256 of OpenAI's file is part of its address; the Hugging Face hub sends that of its files in a header.
With HF_HUB_OFFLINE=1 only existing files are used, also those in the hub's cache (HF_HUB_CACHE, HF_HOME).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any

from semivl_jax.data import download
from semivl_jax.data.download import RemoteFile
from semivl_jax.weights import convert, files, foreign_files, towers
from semivl_jax.weights.layout import Options

SOURCES = ("openai", "huggingface")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the first of them that a repository has
_TIMEOUT = 30.0  # seconds without an answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A CLIP that can be fetched.

    name        of the prepared file and for model.weights
    official    OpenAI's file
    repository  of the Hugging Face hub
    hub         address of the hub
    sizes       constructor arguments of the towers, "image" and "text"
    """

    name: str
    official: RemoteFile
    repository: str
    hub: str
    sizes: Mapping[str, Mapping[str, Any]]


_SHA = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"

CLIP_VIT_B16 = Published(
    name="clip_vit_b16",
    official=RemoteFile(
        name="ViT-B-16.pt",
        url=f"https://openaipublic.azureedge.net/clip/models/{_SHA}/ViT-B-16.pt",
        sha256=_SHA,
        page="https://github.com/openai/CLIP",
    ),
    repository="openai/clip-vit-base-patch16",
    hub=os.environ.get("HF_ENDPOINT", "https://huggingface.co"),
    sizes={
        "image": towers.IMAGE_SIZES["clip_vit_b16"],
        "text": towers.TEXT_SIZES["clip_vit_b16"],
    },
)


def prepare(
    published: Published, directory: Path, *, given: Path | None = None, source: str = ""
) -> Path:
    """The converted file, written if it does not exist.

    `given` is a downloaded file or folder; `source` one of SOURCES, empty: the first available. ValueError if
    the weights cannot be fetched, or are not those of this CLIP.
    """
    path = prepared_path(published, directory)
    if path.exists() and given is None:
        towers.load(path, published.name)  # raises if it is damaged
        return path
    found = given or _fetch(published, directory / "downloads", source)
    # What is fetched is OpenAI's; a file from elsewhere has to say it.
    options = Options(activation="" if given else "quick_gelu")
    weights = convert.convert(foreign_files.read(found), options)
    _check_sizes(weights, published, found)
    files.save(path, weights)
    print(convert.describe(weights, path), flush=True)
    return path


def prepared_path(published: Published, directory: Path) -> Path:
    """Path of the converted file."""
    return directory / f"{published.name}.safetensors"


def status(published: Published, directory: Path) -> bool:
    """Prints which files exist; returns whether the converted one does."""
    path = prepared_path(published, directory)
    if path.exists():
        towers.load(path, published.name)
        print(f"{published.name}: prepared in {path}")
        return True
    print(f"{published.name}: not prepared yet ({path})")
    _, text = download.status(published.official, directory / "downloads")
    print(f"  {published.official.name}: {text}")
    return False


def _check_sizes(weights: files.Weights, published: Published, found: Path) -> None:
    if weights.format != files.CLIP:
        raise ValueError(f"{found} is no CLIP but of the kind {weights.kind}; convert it by itself")
    for part, sizes in published.sizes.items():
        wrong = [
            f"{name} {weights.sizes[part].get(name)} instead of {value}"
            for name, value in sizes.items()
            if weights.sizes[part].get(name) != value
        ]
        if wrong:
            raise ValueError(
                f"{found} is not {published.name}: its {part} tower has {', '.join(wrong)}; convert it with "
                "python -m semivl_jax.convert and name that file in model.weights"
            )


def _fetch(published: Published, directory: Path, source: str) -> Path:
    problems = []
    for name in (source,) if source else SOURCES:
        fetch = _from_openai if name == "openai" else _from_hub
        try:
            return fetch(published, directory)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            print(f"{name}: not available", file=sys.stderr, flush=True)
    remedy = "or give a file that you downloaded elsewhere with --from=FILE"
    raise ValueError("; ".join([*problems, remedy]))


def _from_openai(published: Published, directory: Path) -> Path:
    _needs_torch(published.official.name)
    path = directory / published.official.name
    if _offline() and not path.exists():
        raise ValueError(f"HF_HUB_OFFLINE is set and {path} is not there")
    return download.fetch(published.official, directory)


def _from_hub(published: Published, directory: Path) -> Path:
    cached = _in_hubs_cache(published.repository)
    if cached is not None:
        return cached
    folder = directory / "huggingface"
    if _offline():
        if any((folder / name).exists() for name in _HUB_FILES):
            return folder
        raise ValueError(f"HF_HUB_OFFLINE is set and {published.repository} is not in a cache")
    address = f"{published.hub}/{published.repository}/resolve/main"
    for name in _HUB_FILES:
        facts = _hub_facts(f"{address}/{name}")
        if facts is None:
            continue
        if name.endswith(".bin"):
            _needs_torch(name)
        config = RemoteFile(name="config.json", url=f"{address}/config.json", page=published.hub)
        weights = RemoteFile(name=name, url=f"{address}/{name}", page=published.hub, **facts)
        for file in (config, weights):
            download.fetch(file, folder)
        return folder
    raise ValueError(f"{address} has neither {' nor '.join(_HUB_FILES)}")


def _hub_facts(address: str) -> dict[str, Any] | None:
    """Checksum and size of a large file of the hub; None if there is no such file."""
    request = urllib.request.Request(address, headers={"User-Agent": "semivl_jax"})
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=_TIMEOUT) as answer:
            headers: Message = answer.headers
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        if not 300 <= error.code < 400:
            raise ValueError(f"{address} answers {error.code} ({error.reason})") from error
        headers = error.headers
    except OSError as error:
        raise ValueError(f"{address} cannot be reached ({error})") from error
    checksum = (headers.get("X-Linked-Etag") or "").strip('"')
    if len(checksum) != 64:
        raise ValueError(f"{address} is stored without a checksum, so it cannot be verified")
    return {"sha256": checksum, "size": int(headers.get("X-Linked-Size") or 0)}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The hub sends checksum and size of a file in the headers of the redirect to its storage."""

    def redirect_request(self, *_: Any) -> None:
        """Redirects are not followed."""


def _in_hubs_cache(repository: str) -> Path | None:
    """The snapshot of a repository in the hub's cache."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    snapshots = cache / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = [
        folder
        for folder in sorted(snapshots.glob("*"))
        if (folder / "config.json").exists() and any((folder / n).exists() for n in _HUB_FILES)
    ]
    return found[-1] if found else None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _needs_torch(name: str) -> None:
    """ValueError, before a large download, if the file cannot be read without torch."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            f"reading {name} needs torch, once; pip install 'semivl_jax[torch]', or convert on another "
            "machine and give that file to model.weights"
        )
