"""The labelled lists with which results on VOC, COCO and Cityscapes were published.

The lists are fetched from the published repository, at one fixed commit, the first time a run asks for them;
number of lines and SHA-256 of each are pinned here. They are kept in `data.directory`/splits/DATASET. ADE20K
needs none: its published lists are what `draw_ids` of `data.splits` draws with seed 0 (docs/semivl.md 6).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath

from semivl_jax.data import download
from semivl_jax.data.download import RemoteFile

COMMIT = "13ee65d6f27e197e0b55d987b346fc880fc811ca"
ADDRESS = f"https://raw.githubusercontent.com/google-research/semivl/{COMMIT}/splits"

FOLDERS = {"voc": "pascal", "coco": "coco", "cityscapes": "cityscapes"}
"""What the published repository calls the data sets."""

_PINS = """
voc 92/labeled.txt 92 8a02aa6a1253178b105bd25b36f0a27daeedf6b3959f399aa47d24783f3a8306
voc 183/labeled.txt 183 de3f4680391cb15324402dae17ac0919933d0d9004c11a641c924f3f67147f9f
voc 366/labeled.txt 366 74f6bd1e459a8b46fc204529d70b603769f8a45aef4553df8a5c04b5698e77b7
voc 732/labeled.txt 732 02c8ec5b62e27364f5bc91eb95bccf54debaa721e9d31c50c07507aea258fd0f
voc 1464/labeled.txt 1464 b20486876df309c57c8230e957b2957fff5392ff5cb11f225e8453ed6c50ba3e
voc 1464/unlabeled.txt 9118 3ba331d08fee0751486a8be3f9f269f9efc09faa82a32a703bbb7deda4d66544
voc val.txt 1449 df002e3a730c57678f63aa3e46a4c827a4066f1dc1814e24d0e8b215075e0c6c
coco 1_512/labeled.txt 232 bd0ff85bf2d35b4641d08c2201257ad5b5f02f85ea0da457f44f0b97c4caeb37
coco 1_256/labeled.txt 463 4cdf41b9d3b3afc3734057a605015860501199ed3680370ccb2c677fc159b127
coco 1_128/labeled.txt 925 06067c0fb879b8e6ab8f4bdab3dfa641e8e4da2990200fa156daa33670329d79
coco 1_64/labeled.txt 1849 622b84ccbb5dcba32f4f5bb4ffaf1a9cf3e3f1f460b55dc02605fd099ebf1337
coco 1_32/labeled.txt 3697 781b5990914f7422ee9e1f6325a914f289e077621b77b9cd066c2d01d33a939e
cityscapes 1_30/labeled.txt 100 b11041fef70476fb5564af0ef006a8013622da9cf49c7faf4182f3e26eb32742
cityscapes 1_16/labeled.txt 186 64195914dce1231133c7dc611fece213bc3a87fe4e0b73fbd96add7dfa8a2f46
cityscapes 1_8/labeled.txt 372 97291dfc509a8c90ee94e1c5fd1f7668c21205b995f53b963ac133f0ed96ee8e
cityscapes 1_4/labeled.txt 744 8edd24ae817eed7b49d0a06c95b7bfaf769002c98387e4edeab5e221ab7791c3
cityscapes 1_2/labeled.txt 1488 90d8e29d4d182c3b3def3d1fac02e454868c4ca632f73696bb521aa05e937ee4
"""

VOC_PARTS = {"train": ("1464/labeled.txt", "1464/unlabeled.txt"), "validation": ("val.txt",)}
"""The lists that together are the images of VOC (the augmented set), by part."""


@dataclasses.dataclass(frozen=True)
class PublishedList:
    """Number of lines and SHA-256 of a list."""

    count: int
    sha256: str


LISTS: dict[tuple[str, str], PublishedList] = {
    (dataset, path): PublishedList(int(count), sha256)
    for dataset, path, count, sha256 in (line.split() for line in _PINS.strip().splitlines())
}
"""(data set, path in its folder) → the list."""


def lists_of(dataset: str) -> dict[str, PublishedList]:
    """The published labelled lists of a data set by the name of the split; none for other data sets.

    The same images with other masks (`coco_instances`) have the same lists.
    """
    return {
        path.removesuffix("/labeled.txt"): published
        for (owner, path), published in LISTS.items()
        if owner == _images_of(dataset) and path.endswith("/labeled.txt")
    }


def labelled_ids(dataset: str, split: str, directory: Path) -> tuple[str, ...] | None:
    """Ids of a published labelled list in its order, or None if there is none of this name.

    Args:
      dataset: as in `config.data.dataset`.
      split: its published name, such as "92" or "1_512".
      directory: `config.data.directory`; the list is kept below it.

    Raises:
      ValueError: the list cannot be fetched, or is not the published one.
    """
    if split not in lists_of(dataset):
        return None
    file = remote_list(dataset, f"{split}/labeled.txt")
    return read_ids(download.fetch(file, lists_directory(dataset, directory)))


def remote_list(dataset: str, path: str) -> RemoteFile:
    """Address and checksum of a list."""
    dataset = _images_of(dataset)
    return RemoteFile(
        name=path.replace("/", "-"),
        url=f"{ADDRESS}/{FOLDERS[dataset]}/{path}",
        sha256=LISTS[dataset, path].sha256,
        page=f"https://github.com/google-research/semivl/tree/{COMMIT[:7]}/splits",
    )


def lists_directory(dataset: str, directory: Path) -> Path:
    """Where the lists of a data set are kept."""
    return directory / "splits" / _images_of(dataset)


def read_ids(path: Path) -> tuple[str, ...]:
    """Ids of the lines `image-path mask-path` of a published list."""
    lines = path.read_text(encoding="utf8").splitlines()
    return tuple(image_id(line.split()[0]) for line in lines if line.strip())


def image_id(path: str) -> str:
    """File name of an image without its ending and what Cityscapes appends to it."""
    return PurePosixPath(path).stem.removesuffix("_leftImg8bit")


def _images_of(dataset: str) -> str:
    return dataset.removesuffix("_instances")
