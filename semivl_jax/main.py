"""Entry point: train, evaluate or check one configuration.

    python -m semivl_jax.main --config=configs/demo.py
    python -m semivl_jax.main --config=configs/folder.py:/data/photos --workdir=runs/photos
    python -m semivl_jax.main --config=configs/demo.py --mode=check --config.batch=16

The same command again goes on where the run stopped. Exit codes: 0 done, 2 something in the configuration
or data is wrong (one sentence says what), 130 or 143 stopped by Ctrl-C or SIGTERM with the state saved.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from semivl_jax import host_memory

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration FILE[:ARGUMENT]; fields change with --config.a.b=VALUE."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run keeps everything; default: runs/ and the name of the configuration.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "check"],
    "train (goes on where it stopped), evaluate (the newest checkpoint), or check (shapes, parameters, "
    "cost; nothing is computed).",
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def default_workdir(config_flag: str) -> Path:
    """runs/<file>[-<argument>] for a --config flag; characters unfit for a folder become dashes."""
    path, _, argument = config_flag.partition(":")
    name = Path(path).stem + (f"-{argument}" if argument else "")
    return Path("runs") / re.sub(r"[^\w.=+]+", "-", name).strip("-")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; libraries are quiet unless --verbosity says otherwise."""
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, ValueError, OSError) as error:
        # A key that is not there is an AttributeError that names its last part only.
        unknown = (
            re.match(r"\W*(\w+)", str(error))[1] if isinstance(error, AttributeError) else None
        )
        named = (a for a in argv if unknown and re.match(rf"--config\..*\b{unknown}\b", a))
        key = next(named, None)
        print(f"error: {key + ': no such key; ' if key else ''}{_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    if flags.FLAGS["config"].value is None:
        print(
            "error: --config is missing; begin with --config=configs/demo.py (--help explains all options)",
            file=sys.stderr,
        )
        sys.exit(2)
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.ERROR
    return rest


def _sentence(error: Exception | str) -> str:
    """The message on one line, without the traceback that ml_collections quotes in it."""
    text = " ".join(str(error).replace("\\n", " ").split())
    return re.sub(r"Traceback .* \w+Error: ", "", text).strip("'")


def main(argv: Sequence[str]) -> int:
    """Runs the mode asked for and returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every option starts with --")
    # Imported late so that --help and a misspelt flag answer at once.
    from semivl_jax import run
    from semivl_jax.train.loop import Stopped

    workdir = Path(_WORKDIR.value or default_workdir(flags.FLAGS["config"].config_filename))
    host_memory.give_back_after_compiling()
    modes = {
        "train": run.train, "evaluate": run.evaluate, "check": run.check
    }  # fmt: skip
    try:
        modes[_MODE.value](_CONFIG.value, workdir)
    except Stopped as stopped:
        print(f"stopped by {stopped}; everything is saved, the same command goes on from here")
        return stopped.exit_code
    except KeyboardInterrupt:
        print(
            "interrupted at once; the same command goes on from the last checkpoint, if there is one"
        )
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        if _DEBUG.value:
            raise
        # One sentence, or a list of files with a line for each.
        print("error: " + "\n".join(map(_sentence, str(error).splitlines())), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    host_memory.restart_with_huge_pages()
    app.run(main, flags_parser=parse_flags)
