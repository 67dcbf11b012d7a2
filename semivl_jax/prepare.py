"""Downloads, verifies and converts what a training needs, before it needs it.

    python -m semivl_jax.prepare voc
    python -m semivl_jax.prepare cityscapes --manual_dir=~/Downloads
    python -m semivl_jax.prepare all --check
    python -m semivl_jax.prepare weights
    python -m semivl_jax.prepare weights --from=ViT-B-16.pt
    python -m semivl_jax.prepare weights efficientnet_lite0

The same command again goes on where it stopped, and does nothing where everything is there. Training does
the same by itself for the data set it uses. Exit codes: 0 everything is there, 1 --check found something
missing, 2 an error, described in one sentence, 130 stopped by Ctrl-C.

`python -m semivl_jax.prepare folder SRC --out=DIR` converts photos that another tool annotated, and
`python -m semivl_jax.prepare ood FOLDER --model MODEL` labels further images; `--help` after `folder` or
`ood` explains them.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from semivl_jax import buckets, utils
from semivl_jax.data import download, published_splits
from semivl_jax.data.foreign import command
from semivl_jax.inference import label_folder
from tfds_builders import builders, common
from tfds_builders.published import PublishedBuilder

_ALL = tuple(name for name in builders.PUBLISHED if name != "coco_instances")  # one COCO is enough


def main(argv: Sequence[str]) -> int:
    """Prepares what the arguments name and returns the exit code."""
    if argv[:1] == ["folder"]:
        return command.main(argv[1:])
    if argv[:1] == ["ood"]:
        return label_folder.main(argv[1:])
    options = parser().parse_args(argv)
    stopped = "stopped; the same command goes on from here"
    if options.target != "weights" and options.name != "clip_vit_b16":
        parser().error(f"{options.name} are weights; write weights {options.name}")
    if options.target == "weights":
        return utils.run_command(lambda: _weights(options), stopped=stopped)
    codes = []
    for dataset in _ALL if options.target == "all" else (options.target,):
        prepare = functools.partial(_data_set, dataset, options)
        codes.append(utils.run_command(prepare, stopped=stopped))
        if codes[-1] == 130:
            break
    return max(codes)


def _data_set(dataset: str, options: argparse.Namespace) -> int:
    buckets.check_scheme(options.data_dir, "--data_dir", bucket=True)
    bucket = options.data_dir if buckets.is_bucket(options.data_dir) else ""
    directory = utils.user_path((bucket and utils.DATA_DIRECTORY) or options.data_dir)
    make = builders.PUBLISHED[dataset]
    build = make(data_dir=directory, manual_dir=options.manual_dir)
    lists = [
        published_splits.remote_list(dataset, f"{split}/labeled.txt")
        for split in published_splits.lists_of(dataset)
    ]
    lists_directory = published_splits.lists_directory(dataset, directory)
    if options.check:
        here = [file for file in lists if download.status(file, lists_directory)[0]]
        prepared = _check(dataset, build)
        if lists:
            print(f"  published lists: {len(here)} of {len(lists)} there")
        return int(not prepared or len(here) < len(lists))
    remote = common.address(bucket, build, directory) if bucket else ""
    place = common.prepare(build, remote=remote)
    for file in lists:
        download.fetch(file, lists_directory)
    note = f" and {len(lists)} published lists" if lists else ""
    note += f", and in {remote}" if remote else ""
    print(f"{dataset}: prepared in {place}{note}", flush=True)
    return 0


def _check(dataset: str, build: PublishedBuilder) -> bool:
    """Prints what is there and what is missing; returns whether the data set is prepared."""
    place = Path(build.data_path)
    prepared, state = False, f"not prepared yet ({place})"
    if place.exists():
        try:
            common.check_complete(place, sizes=build.SIZES)
            prepared, state = True, f"prepared in {place}"
        except ValueError as error:
            state = str(error)
    print(f"{dataset}: {state}")
    if not prepared:
        for name, _, about in build.status():
            print(f"  {name}: {about}")
    return prepared


def _weights(options: argparse.Namespace) -> int:
    # Only this target needs the models, which take a second to import.
    from semivl_jax.weights import download, packaged, towers

    published, directory = download.CLIP_VIT_B16, utils.user_path(options.weights_dir)
    given = utils.user_path(options.given) if options.given else None
    if options.name in packaged.PACKAGES:
        if options.check:
            return 0 if packaged.status(options.name, directory) else 1
        path = packaged.prepare(options.name, directory, given=given)
        prepared = directory == utils.user_path(utils.WEIGHTS_DIRECTORY)
        name = options.name if prepared else path
        print(f"{options.name}: --config.model.backbone_weights={name}", flush=True)
        return 0
    if options.check:
        return 0 if download.status(published, directory) else 1
    path = download.prepare(published, directory, given=given, source=options.source)
    short = directory == towers.PREPARED.expanduser()
    name = published.name if short else path
    print(f"{published.name}: --config.model.weights={name}", flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.prepare", __doc__)
    add = made.add_argument
    add("target", choices=(*builders.PUBLISHED, "all", "weights"),
        help="a data set, all of them (but coco_instances), or weights")  # fmt: skip
    add("name", nargs="?", default="clip_vit_b16", choices=("clip_vit_b16", "efficientnet_lite0"),
        help="which weights; default: %(default)s")  # fmt: skip
    add("--data_dir", default=utils.DATA_DIRECTORY,
        help="folder of the prepared data sets, or gs://BUCKET/FOLDER; default: %(default)s")  # fmt: skip
    add("--manual_dir", default="", help="folder with archives that you downloaded yourself")
    add("--check", action="store_true", help="only list what is there and what is missing")
    add = made.add_argument_group("weights").add_argument
    add("--from", dest="given", default="", help="a file or folder that you downloaded yourself")
    add("--source", choices=("openai", "huggingface"), default="",
        help="where CLIP is downloaded from; default: openai, and where that fails, huggingface")  # fmt: skip
    add("--weights_dir", default=utils.WEIGHTS_DIRECTORY,
        help="folder of the converted weights; default: %(default)s")  # fmt: skip
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
