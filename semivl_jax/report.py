"""One HTML page about one or several runs, that opens without network.

    python -m semivl_jax.report runs/demo
    python -m semivl_jax.report runs/a runs/b --out=comparison.html

Training writes the page of its own run by itself at the end. It can be made at any time, also while a run is
going on or after it crashed, and shows what is there. Exit codes: 0 written, 2 something is wrong (one
sentence says what).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from semivl_jax import utils
from semivl_jax.experiment import workdir as workdir_lib
from semivl_jax.reporting import page, read

NAME = "report.html"


def main(argv: Sequence[str]) -> int:
    """Writes the report that the arguments ask for and returns the exit code."""
    options = parser().parse_args(argv)
    workdirs = [Path(folder) for folder in options.workdir]
    default = workdirs[0] / NAME if len(workdirs) == 1 else Path(NAME)
    try:
        path = write(workdirs, Path(options.out) if options.out else default)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def write(workdirs: Sequence[Path], path: Path) -> Path:
    """Writes the page about these runs.

    Raises:
      ValueError: one of the folders is no workdir.
      OSError: the page cannot be written there.
    """
    runs = [read.load(folder, name=name) for folder, name in _names(workdirs)]
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir_lib.write(path, page.render(runs))
    return path


def draw_after_training(workdir: Path) -> Path | None:
    """The page of a run that just ended; what goes wrong here must not cost the run, so it is only said."""
    try:
        return write([workdir], workdir / NAME)
    except Exception as error:
        print(
            f"the report could not be drawn ({type(error).__name__}: {error}); the run is not affected, "
            f"try python -m semivl_jax.report {workdir}",
            file=sys.stderr,
        )
        return None


def _names(workdirs: Sequence[Path]) -> list[tuple[Path, str]]:
    """Folders with short names; those that share a last part get their parent's before it."""
    resolved = [folder.resolve() for folder in workdirs]
    short = [folder.name for folder in resolved]
    names = [
        name if short.count(name) == 1 else f"{folder.parent.name}/{name}"
        for name, folder in zip(short, resolved, strict=True)
    ]
    return list(zip(workdirs, names, strict=True))


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    made = utils.Parser("semivl_jax.report", __doc__)
    made.add_argument("workdir", nargs="+", help="folder of a run, such as runs/demo")
    made.add_argument(
        "--out", default="", help="the file to write; default: report.html in the workdir, with "
        "several workdirs in the current folder"
    )  # fmt: skip
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
