"""Do unlabelled images help on real photos? Labelled only, semi-supervised methods, and all labels.

    python -m benchmarks.real_photos --data=camvid=/data/camvid,facade=/data/facade [--jobs=2]
        [--methods=supervised,fixmatch,unimatch --splits=1_16,1_8 --seeds=0,1,2]
        [--steps=2000 --side=240 --crop=129]
        [--test=camvid=/data/camvid_test] [--picture=camvid.jpg]

--data names folders of the layout of docs/own_data.md. The first split is trained with all seeds, the others
with the first seed, and all labels (the ceiling) with the first seed. A split is the list
`splits/1_16_labeled.txt` of the folder where there is one, else drawn with data.split_seed = 0, so it is the
same for all seeds: these change initialisation, order and augmentation. All runs have the same model,
augmentation and number of steps, on crops of --crop pixels of photos whose shorter side is --side pixels.
The learning rate of labelled-only training is the best of --rates, found with the first seed and split of
each folder; the other methods keep that of the configuration.

The score is the validation mIoU (%) of the best evaluation along the run, and beside it of the last one; of
the EMA where there is one. --test scores the best model of every finished run on photos of another folder
with the same classes, which were never used for choosing: those in its images/test, else in images/val.
--picture draws validation photos, truth, and the predictions of the labelled-only model and of the best
method.

Finished runs are not repeated, interrupted ones go on. After every run the tables are printed and written to
`OUT/real_photos.md`, and every score to `OUT/real_photos.json`. Exit codes: 0 done, 1 runs failed, 2 an error
in the command, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks import runs as runs_lib
from benchmarks import trained_models, workload
from benchmarks.gain_table import LABELLED_ONLY, summary, table
from semivl_jax import sweep, utils
from semivl_jax.config import drop_other_fields
from semivl_jax.experiment import data as data_lib
from semivl_jax.reporting import read
from semivl_jax.train import methods

EVALUATIONS = 8
"""Evaluations along a run."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Photos of one folder and the labels that are used: `seeds` of every method, `labelled` photos."""

    data: str
    config: str
    split: str
    labelled: int
    seeds: tuple[int, ...]

    @property
    def share(self) -> str:
        """How many labels: "23 (1/16)"."""
        return f"{self.labelled} ({self.split.replace('_', '/')})"


@dataclasses.dataclass(frozen=True)
class Row:
    """One method in one setting: a run per seed. `rate` is a learning rate of its own."""

    setting: Setting
    method: str
    runs: tuple[sweep.Run, ...]
    rate: float | None = None

    def finished(self) -> dict[int, sweep.Run]:
        """Runs that have a score, by seed."""
        by_seed = zip(self.setting.seeds, self.runs, strict=True)
        return {seed: one for seed, one in by_seed if one.result() is not None}


class Plan:
    """The runs of a command.

    Args:
      options: of the command line.
      settings: one after another; of each folder the first one chooses the learning rate.
      configs: configuration of each folder.

    Raises:
      ValueError: an unknown method, a configuration without a number of steps.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        settings: Sequence[Setting],
        configs: Mapping[str, ConfigDict],
    ) -> None:
        self.settings, self.out = tuple(settings), Path(options.out)
        self.configs, self._set = configs, runs_lib.pairs(options.set, key="--set")
        chosen = (method for method in options.methods.split(",") if method != LABELLED_ONLY)
        self.methods = tuple(dict.fromkeys(chosen))
        self._factors = runs_lib.numbers(options.rates, float, key="--rates")
        self._steps, self._sizes = options.steps, sizes(options.side, options.crop)
        for method in self.methods:
            methods.defaults(method)  # ValueError for an unknown one

    def rates(self, setting: Setting) -> tuple[float, ...]:
        """Learning rates that labelled-only training tries."""
        lr = self.configs[setting.data].optim.lr
        return tuple(float(f"{factor * lr:.3g}") for factor in self._factors)

    def trials(self) -> list[sweep.Run]:
        """The runs that choose the learning rate of labelled-only training."""
        firsts = {setting.data: setting for setting in reversed(self.settings)}
        return [
            self._run(setting, LABELLED_ONLY, setting.seeds[0], rate)
            for setting in reversed(firsts.values())
            for rate in self.rates(setting)
        ]

    def rate(self, data: str) -> float | None:
        """The learning rate with the best score; None until every trial is finished."""
        first = next(setting for setting in self.settings if setting.data == data)
        scores = {}
        for rate in self.rates(first):
            result = self._run(first, LABELLED_ONLY, first.seeds[0], rate).result()
            if result is None:
                return None
            scores[rate] = result.best
        return max(scores, key=scores.__getitem__)

    def rows(self) -> list[Row]:
        """The rows of the table; those of labelled-only training when its learning rate is known."""
        rows = []
        for setting in self.settings:
            rate = self.rate(setting.data)
            if rate is not None:
                rows.append(self._row(setting, LABELLED_ONLY, rate))
            if setting.split != "all":
                rows += [self._row(setting, method, None) for method in self.methods]
        return rows

    def _row(self, setting: Setting, method: str, rate: float | None) -> Row:
        runs = (self._run(setting, method, seed, rate) for seed in setting.seeds)
        return Row(setting, method, tuple(runs), rate)

    def _run(self, setting: Setting, method: str, seed: int, rate: float | None) -> sweep.Run:
        config = self.configs[setting.data]
        steps = self._steps
        tag = "" if rate is None else f"-lr{rate:g}"
        fields: dict[str, object] = {
            "method.name": method,
            "data.split": _split(Path(config.data.folder), setting.split),
            "seed": seed,
            "steps": steps,
            "evaluation.every_steps": -(-steps // EVALUATIONS),
            "evaluation.pictures": 0,
            "evaluation.pseudo_label_eval_images": 0,
            **self._sizes,
            **({} if rate is None else {"optim.lr": rate}),
        }
        of_semi = method != LABELLED_ONLY
        fields |= {k: v for k, v in self._set.items() if of_semi or not k.startswith("method.")}
        return sweep.Run(
            name=f"{setting.data} {setting.split} {method}{tag}, seed {seed}",
            config=setting.config,
            workdir=self.out / f"{setting.data}-{setting.split}-{method}{tag}-seed{seed}",
            fields=fields,
        )


def sizes(side: int, crop: int) -> dict[str, object]:
    """Fields for photos of this shorter side: crops, and whole photos in evaluation.

    Both are enlarged to 16·k + 1 pixels, so that pixels of the encoder's maps lie on the corners.
    """
    return {
        "data.crop": _on_grid(crop),
        "data.ratio_short": side,
        "data.workers": 0,
        "evaluation.mode": "original",
        "evaluation.short_side": _on_grid(side),
    }


def _on_grid(length: int) -> int:
    return -(-(length - 1) // 16) * 16 + 1


def entries(plan: Plan) -> list[dict[str, Any]]:
    """What `real_photos.json` holds: one entry per row, with the scores of every finished seed."""
    found = []
    for row in plan.rows():
        finished = row.finished()
        done = finished.values()
        found.append(
            {
                "data": row.setting.data,
                "split": row.setting.split,
                "labelled": row.setting.share,
                "method": row.method,
                "learning_rate": row.rate,
                "seeds": list(finished),
                "best": [one.result().best for one in done],
                "last": [one.result().last for one in done],
                "best_student": [_best_student(one.workdir) for one in done],
                "test": [trained_models.read_score(one.workdir) for one in done],
            }
        )
    return found


def write(plan: Plan) -> None:
    """Prints the tables and writes them."""
    found = entries(plan)
    text = f"{table(found)}\n\n{summary(found)}\n"
    print(f"\n{text}", flush=True)
    utils.write_text(plan.out / "real_photos.md", text)
    utils.write_text(plan.out / "real_photos.json", json.dumps(found, indent=1) + "\n")


def _best_student(workdir: Path) -> float | None:
    """Best score of the weights that are trained, where the score is that of their EMA."""
    if not (workdir / "config.json").exists():
        return None
    _, values = read.load(workdir).curves.get("eval/miou", (None, ()))
    return float(max(values)) if len(values) else None


def _split(folder: Path, split: str) -> str:
    """The list of the folder, else what `data.split` draws."""
    path = folder / "splits" / f"{split}_labeled.txt"
    return str(path) if path.is_file() else split


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("benchmarks.real_photos", __doc__)
    runs_lib.add_options(
        command, out="runs/real_photos", config="configs/folder.py:FOLDER,model=light"
    )
    command.set_defaults(steps=2000)
    add = command.add_argument
    add("--data", required=True, help="NAME=FOLDER,…: FOLDER takes its place in --config")
    add("--splits", default="1_16,1_8", help="labelled shares; default: %(default)s")
    add("--methods", default="supervised,fixmatch,unimatch", help="default: %(default)s")
    add("--side", type=int, default=240, help="shorter side of the photos; default: %(default)s")
    add("--crop", type=int, default=129, help="side of the crops; default: %(default)s")
    add("--rates", default="0.3,1,3", help="factors of the learning rate that labelled only tries")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of every run; method.* "
        "not of labelled only")  # fmt: skip
    add("--test", default="", help="NAME=FOLDER,…: photos that were never used for choosing")
    add(
        "--picture",
        default="",
        metavar="FILE",
        help="PNG or JPG: picture of the first folder and split",
    )
    return command


def main(argv: Sequence[str]) -> int:
    """Trains, prints and writes the tables; returns the exit code."""
    options = parser().parse_args(argv)
    # The runs share a GPU with this process and with each other.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return utils.run_command(lambda: _main(options), stopped="stopped; the same command resumes")


def _main(options: argparse.Namespace) -> int:
    folders = runs_lib.pairs(options.data.split(","), key="--data")
    tests = runs_lib.pairs(filter(None, options.test.split(",")), key="--test")
    for name in tests.keys() - folders.keys():
        raise ValueError(
            f"--test names {name!r}, which --data does not; it has {', '.join(folders)}"
        )
    if options.picture and Path(options.picture).suffix not in trained_models.PICTURE_FORMATS:
        known = " or ".join(trained_models.PICTURE_FORMATS)
        raise ValueError(f"--picture={options.picture} must end with {known}")
    plan = make_plan(options, folders)
    _claim(
        plan.out, {key: getattr(options, key) for key in ("config", "steps", "side", "crop", "set")}
    )
    failed = 0
    for stage in (plan.trials, lambda: [one for row in plan.rows() for one in row.runs]):
        runs = sorted(stage(), key=lambda one: one.fields["seed"])
        failed += len(
            sweep.run_all(runs, jobs=options.jobs, finished=functools.partial(write, plan))
        )
    rows = plan.rows()
    for name, folder in tests.items():
        of_folder = (row for row in rows if row.setting.data == name)
        done = [one.workdir for row in of_folder for one in row.finished().values()]
        trained_models.score(
            done, Path(folder).expanduser(), label_map=plan.configs[name].data.label_map
        )
    write(plan)
    if options.picture:
        draw(plan, Path(options.picture))
    return 1 if failed else 0


def make_plan(options: argparse.Namespace, folders: Mapping[str, str]) -> Plan:
    """The plan of a command; prepares the data sets, so that runs side by side need not.

    Raises:
      ValueError: what is wrong with an option, the configuration or a folder, in a sentence.
    """
    for name, least in (("jobs", 1), ("steps", 1), ("side", 48), ("crop", 33)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} {getattr(options, name)} must be {least} or more")
    seeds = runs_lib.numbers(options.seeds, int, key="--seeds")
    settings, configs = [], {}
    for name, folder in folders.items():
        source = options.config.replace("FOLDER", str(Path(folder).expanduser()))
        config = configs[name] = workload.load_config(source)
        for number, split in enumerate([*options.splits.split(","), "all"]):
            opened = workload.load_config(source, _changes(config, split, options.set))
            drop_other_fields(opened)
            labelled = len(data_lib.open_data(opened).split.labelled)
            own = seeds if number == 0 else seeds[:1]
            settings.append(Setting(name, source, split, labelled, own))
    return Plan(options, settings, configs)


def _changes(config: ConfigDict, split: str, given: Sequence[str]) -> list[str]:
    """Fields that decide which photos labelled-only training reads."""
    of_data = (one for one in given if one.startswith("data."))
    chosen = {
        "method.name": LABELLED_ONLY,
        "data.split": _split(Path(config.data.folder), split),
    }
    return [*of_data, *(f"{key}={value!r}" for key, value in chosen.items())]


def _claim(out: Path, settings: Mapping[str, object]) -> None:
    """Remembers what all runs of a folder have in common; ValueError if it was something else before."""
    path = out / "settings.json"
    if path.exists() and (before := json.loads(path.read_text(encoding="utf8"))) != settings:
        key = next(key for key in settings if settings[key] != before.get(key))
        raise ValueError(
            f"the runs in {out} have --{key}={before.get(key)}, now it is {settings[key]}; choose another "
            "--out or set the same value"
        )
    utils.write_text(path, json.dumps(settings, indent=1) + "\n")


def draw(plan: Plan, path: Path) -> None:
    """Writes the picture: the first setting's first seed, labelled only and the best method.

    Raises:
      ValueError: one of them is not finished.
    """
    first = plan.settings[0]
    runs = {
        row.method: one
        for row in plan.rows()
        if row.setting == first and (one := row.finished().get(first.seeds[0]))
    }
    others = [method for method in runs if method != LABELLED_ONLY]
    if LABELLED_ONLY not in runs or not others:
        raise ValueError(f"--picture={path} needs a finished run of labelled only and of a method")
    best = max(others, key=lambda method: runs[method].result().best)
    titles = {LABELLED_ONLY: "labelled only", best: best}
    models = {
        f"{title}, mIoU {runs[method].result().best:.1f}": runs[method].workdir
        for method, title in titles.items()
    }
    trained_models.draw(models, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
