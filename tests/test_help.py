"""Help and errors of the commands: each has examples and explains its options; errors are one sentence."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.command import ROOT

FILES = [path for folder in ("semivl_jax", "benchmarks") for path in (ROOT / folder).glob("*.py")]
MODULES = sorted(
    f"{path.parent.name}.{path.stem}"
    for path in FILES
    if "\ndef parser()" in path.read_text(encoding="utf8")
)


def examples(module, doc):
    """Arguments of the commands in a docstring; optional parts are taken as if they were written."""
    text = re.sub(r"\\\n\s*", " ", doc)
    lines = re.findall(rf"^ {{4}}python -m {re.escape(module)}(.*)$", text, re.MULTILINE)
    return [shlex.split(re.sub(r"[\[\]…]", " ", line)) for line in lines]


def test_all_commands_share_one_parser():
    assert {"semivl_jax.prepare", "semivl_jax.predict", "benchmarks.train_step"} <= set(MODULES)
    for path in FILES:
        text = path.read_text(encoding="utf8")
        assert "argparse.ArgumentParser(" not in text or path.stem == "utils", path


@pytest.mark.parametrize("module", MODULES)
def test_help_has_examples_that_work_and_errors_are_one_sentence(module, capsys):
    command = importlib.import_module(module)
    made, shown = command.parser(), command.parser().format_help()
    assert examples(module, command.__doc__), f"{module}: its docstring has no example"
    for arguments in examples(module, command.__doc__):
        made.parse_args(arguments)
    assert f"python -m {module} " in shown
    for action in made._actions:
        assert action.help and len(action.help) > 3, f"{module}: {action.dest} has no help"
    assert all(len(line) <= 120 for line in shown.splitlines())
    with pytest.raises(SystemExit) as stopped:
        made.parse_args(["--no_such_option", "x", "y", "z"])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and not said.out
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "--help" in said.err


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "semivl_jax.main", *arguments],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


def test_help_of_main_has_examples_and_its_own_flags_only():
    done = run("--help")
    assert "python -m semivl_jax.main --config=configs/demo.py" in done.stdout
    assert set(re.findall(r"^  --(?:\[no\])?(\w+)", done.stdout, re.MULTILINE)) == {
        "compile", "config", "debug", "mode", "workdir", "distributed", "coordinator_address",
        "num_processes", "process_id", "start_timeout",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--config=configs/demo.py"),
        (["--config", "README.md"], "--config=README.md: there is no such Python file"),
        (["--config"], "--config is missing"),
        (["--config=configs/voc.py:93"], "choose one of 92, 183"),
        (["--config=configs/demo.py", "--mode=trains"], "<train|evaluate|check|guidance>"),
        (["--config=configs/demo.py", "--config.optim.lrr=1"], '"lr" instead of "lrr"'),
        (
            ["--config=configs/demo.py", "--config.batch=many"],
            "--config.batch=many: invalid literal",
        ),
        (["--config=configs/demo.py", "--mod=check"], "Unknown command line flag 'mod'"),
    ],
)
def test_errors_in_the_command_of_main_are_one_sentence(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert said in done.stderr and "\\" not in done.stderr
    assert done.stderr.count("\n") == 1 and (not arguments or done.stderr.startswith("error: "))
