"""Writes one HTML page about one or several runs; it opens without network.

    python -m semivl_jax.report runs/demo
    python -m semivl_jax.report runs/a runs/b --out=comparison.html

Training writes the page of its run when it ends. This command can also be used while a run is training or
after it crashed; the page shows what there is. Exit codes: 0 written, 2 an error, described in one sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from semivl_jax import buckets, utils
from semivl_jax.reporting import page


def main(argv: Sequence[str]) -> int:
    """Writes the report and returns the exit code."""
    options = parser().parse_args(argv)
    return utils.run_command(lambda: _write(options))


def _write(options: argparse.Namespace) -> int:
    workdirs = [_on_this_machine(folder) for folder in options.workdir]
    there = len(workdirs) == 1 and not buckets.is_bucket(options.workdir[0])
    default = workdirs[0] / page.NAME if there else Path(page.NAME)
    path = page.write(workdirs, utils.user_path(options.out) if options.out else default)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _on_this_machine(workdir: str) -> Path:
    """The folder, or a copy of what the page shows of one in a bucket."""
    buckets.check_scheme(workdir, "workdir", bucket=True)
    if not buckets.is_bucket(workdir):
        return utils.user_path(workdir)
    return buckets.fetch(workdir, lambda name: not name.startswith(("checkpoints/", "serving/")))


def parser() -> argparse.ArgumentParser:
    """Options and help of the command."""
    command = utils.Parser("semivl_jax.report", __doc__)
    command.add_argument(
        "workdir", nargs="+", help="folder of a run, such as runs/demo or gs://BUCKET/demo"
    )
    command.add_argument(
        "--out", default="", help="the file to write; default: report.html in the workdir, or with "
        "several workdirs and with buckets in the current folder"
    )  # fmt: skip
    return command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
