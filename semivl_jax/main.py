"""Entry point: train, evaluate or check one configuration, or measure its guidance.

    python -m semivl_jax.main --config=configs/demo.py
    python -m semivl_jax.main --config=configs/folder.py:/data/photos --workdir=runs/photos
    python -m semivl_jax.main --config=configs/demo.py --mode=check --config.batch=16

On several machines the same command runs on each of them (docs/scaling.md).

The same command resumes a run. Exit codes: 0 done, 2 an error in configuration or data, 3 a fault of the
system such as a full disk (one sentence each), 130 or 143 stopped by Ctrl-C or SIGTERM with the state saved.
"""

from __future__ import annotations

import gc
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from semivl_jax import buckets, utils

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration FILE[:ARGUMENT]; fields change with --config.a.b=VALUE."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run keeps everything, a folder or gs://BUCKET/FOLDER; default: runs/ and the name of the "
    "configuration.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "check", "guidance"],
    "train (goes on where it stopped), evaluate (the newest checkpoint), check (shapes, parameters, cost; "
    "nothing is computed), or guidance (how right the frozen CLIP is on the labelled images).",
)
_COMPILE = flags.DEFINE_bool(
    "compile", False, "With --mode=check: compile the step for these devices and print its memory."
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Whether to look for other processes of this run: auto does on a Cloud TPU and in a SLURM step with "
    "several tasks, on does wherever JAX can.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0, the same for all processes; with --num_processes and --process_id.",
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the other processes.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; libraries are quiet unless --verbosity or --debug says otherwise."""
    _check_configuration(argv)
    argv[1:] = _configuration_first(argv[1:])  # in place: config_flags reads sys.argv
    parser = flags.FLAGS["config"].parser
    parser.parse = _with_fields_of_method(parser.parse, argv)
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, ValueError, OSError) as error:
        # An unknown key is an AttributeError with its last part only.
        unknown = (
            re.match(r"\W*(\w+)", str(error))[1] if isinstance(error, AttributeError) else None
        )
        named = (a for a in argv if unknown and re.match(rf"--config\..*\b{unknown}\b", a))
        key = next(named, None)
        print(f"error: {key + ': no such key; ' if key else ''}{_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    if flags.FLAGS["verbosity"].using_default_value and not _DEBUG.value:
        flags.FLAGS.verbosity = logging.FATAL
    return rest


def _check_configuration(argv: Sequence[str]) -> None:
    """Ends with a sentence where no configuration is named, or one that is no Python file."""
    if any(re.fullmatch(r"--?help\w*", argument) for argument in argv):
        return
    joined = "\n".join(argv)  # --config=FILE and --config FILE are the same
    named = re.search(r"^--?config(?:=|\n)(.*)$", joined, re.MULTILINE)
    problem = (
        "--config is missing; begin with --config=configs/demo.py (--help explains all options)"
    )
    if named:
        path = Path(named[1].partition(":")[0])
        if path.is_file() and path.suffix == ".py":
            return
        problem = (
            f"--config={path}: there is no such Python file; those of the project are in configs/"
        )
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def _configuration_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with --config=FILE, or --config FILE, before the fields that change it."""
    for index, argument in enumerate(arguments):
        if re.match(r"--?config(=|$)", argument):
            end = index + 1 if "=" in argument else index + 2
            return [*arguments[index:end], *arguments[:index], *arguments[end:]]
    return list(arguments)


def _with_fields_of_method(
    parse: Callable[[str], ConfigDict], argv: Sequence[str]
) -> Callable[[str], ConfigDict]:
    """`parse` with the fields of the method that the command line names, so that it can set them."""
    named = re.findall(r"^--?config\.method\.name(?:=|\n)(.*)$", "\n".join(argv), re.MULTILINE)

    def parse_configuration(path: str) -> ConfigDict:
        config = parse(path)
        if named:
            from semivl_jax.train import methods

            with config.unlocked():
                config.method = ConfigDict(methods.defaults(named[-1]) | config.method.to_dict())
        return config

    return parse_configuration


def _sentence(error: Exception | str) -> str:
    """The message on one line, without the traceback that ml_collections quotes in it."""
    text = " ".join(str(error).replace("\\n", " ").split())
    text = re.sub(r"Traceback .* \w+Error: ", "", text)
    quoted = re.fullmatch(r"'(.*)'|\"(.*)\"", text)  # as KeyError writes its message
    return (quoted[1] or quoted[2]).replace("\\'", "'") if quoted else text


def main(argv: Sequence[str]) -> int:
    """Runs `--mode` and returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every option starts with --")
    sys.unraisablehook = _without_late_writes
    # Imported late so that --help and errors of flags are fast.
    from semivl_jax.train import distributed

    try:
        distributed.start(
            _DISTRIBUTED.value,
            coordinator_address=_COORDINATOR.value,
            num_processes=_PROCESSES.value,
            process_id=_PROCESS.value,
            timeout=_TIMEOUT.value,
        )
        return _run(_MODE.value, _CONFIG.value)
    except KeyboardInterrupt:
        print(
            "interrupted at once; the same command goes on from the last checkpoint, if there is one"
        )
        return 128 + signal.SIGINT
    except Exception as error:
        fault = None if isinstance(error, ValueError) else utils.fault_in(error)
        if (fault or isinstance(error, (ValueError, OSError))) and not _DEBUG.value:
            # One sentence, or a list of files with a line for each.
            lines = str(fault or error).splitlines()
            print("error: " + "\n".join(map(_sentence, lines)), file=sys.stderr)
            code = fault.exit_code if fault else 2
            distributed.abort(code)
            return code
        if distributed.has_peers():
            traceback.print_exc()
            distributed.abort(1)
        raise


def _without_late_writes(unraisable: sys.UnraisableHookArgs) -> None:
    """Prints an exception of a thread, but not those of writes that end after the failure of another one.

    TensorStore, which writes checkpoints, has one for each of them.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _run(mode: str, config: ConfigDict) -> int:
    """The mode, to its end or until the run is stopped."""
    from semivl_jax.config import drop_other_fields
    from semivl_jax.experiment import run
    from semivl_jax.train import distributed
    from semivl_jax.train.loop import Stopped

    # Tracing makes millions of objects that stay; collecting garbage among them is slow.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    drop_other_fields(config, chosen=config_flags.get_override_values(flags.FLAGS["config"]))
    if mode == "check":
        run.check(config, compiled=_COMPILE.value)
        return 0
    if _COMPILE.value:
        raise ValueError("--compile only prints memory; give it with --mode=check")
    workdir = _WORKDIR.value or str(utils.default_workdir(flags.FLAGS["config"].config_filename))
    buckets.check_scheme(workdir, "--workdir", bucket=True)
    try:
        modes = {
            "train": run.train,
            "evaluate": run.evaluate,
            "guidance": run.guidance,
        }
        modes[mode](config, workdir)
    except Stopped as stopped:
        distributed.log_main(
            f"stopped by {stopped}; the state is saved, the same command resumes it"
        )
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    utils.use_huge_pages()
    app.run(main, flags_parser=parse_flags)
