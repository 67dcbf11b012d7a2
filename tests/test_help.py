"""What a newcomer reads in the terminal: every command explains itself, every mistake gets one sentence."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARSERS = [
    *(f"semivl_jax.{path.stem}" for path in sorted((ROOT / "semivl_jax").glob("*.py"))
      if "\ndef parser()" in path.read_text(encoding="utf8")),
    *(f"benchmarks.{path.stem}" for path in sorted((ROOT / "benchmarks").glob("*.py"))
      if "\ndef parser()" in path.read_text(encoding="utf8")),
]  # fmt: skip


def examples(module, doc):
    """Arguments of the commands in a docstring; optional parts are taken as if they were written."""
    text = re.sub(r"\\\n\s*", " ", doc)
    lines = re.findall(rf"^ {{4}}python -m {re.escape(module)}(.*)$", text, re.MULTILINE)
    return [shlex.split(re.sub(r"[\[\]…]", " ", line)) for line in lines]


def test_all_commands_with_options_are_here():
    assert {
        "semivl_jax.prepare", "semivl_jax.convert", "semivl_jax.predict", "semivl_jax.embed",
        "semivl_jax.export", "semivl_jax.report", "semivl_jax.sweep", "benchmarks.train_step",
    } <= set(PARSERS)  # fmt: skip
    for path in (*(ROOT / "semivl_jax").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf8")
        assert "argparse.ArgumentParser(" not in text or path.stem == "command", (
            f"{path}: utils.Parser has the common look of help and errors"
        )


@pytest.mark.parametrize("module", PARSERS)
def test_help_has_examples_that_work_and_explains_every_option(module):
    command = importlib.import_module(module)
    made = command.parser()
    shown = made.format_help()
    written = examples(module, command.__doc__)
    assert written, f"{module}: its docstring has no example"
    for arguments in written:
        made.parse_args(arguments)
        assert f"python -m {module} {arguments[0]}" in shown or "[" in shown
    for action in made._actions:
        assert action.help and len(action.help) > 3, f"{module}: {action.dest} has no help"
    assert all(len(line) <= 120 for line in shown.splitlines())


@pytest.mark.parametrize("module", PARSERS)
def test_a_mistake_gets_one_sentence(module, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).parser().parse_args(["--no_such_option", "x", "y", "z"])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and not said.out
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert "--help" in said.err


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "semivl_jax.main", *arguments],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


def test_help_of_main_has_examples_and_its_own_flags_only():
    done = run("--help")
    assert "python -m semivl_jax.main --config=configs/demo.py" in done.stdout
    assert set(re.findall(r"^  --(?:\[no\])?(\w+)", done.stdout, re.MULTILINE)) == {
        "config", "debug", "mode", "workdir", "distributed", "coordinator_address", "num_processes",
        "process_id", "start_timeout",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=nope.py"], "--config=nope.py: there is no such Python file"),
        (["--config", "README.md"], "--config=README.md: there is no such Python file"),
        (["--config"], "--config is missing"),
        (["--config=configs/voc.py:93"], "choose one of 92, 183"),
        (["--config=configs/demo.py", "--mode=trains"], "<train|evaluate|check>"),
        (["--config=configs/demo.py", "--config.optim.lrr=1"], '"lr" instead of "lrr"'),
        (
            ["--config=configs/demo.py", "--config.batch=many"],
            "--config.batch=many: invalid literal",
        ),
        (["--config=configs/demo.py", "--mod=check"], "Unknown command line flag 'mod'"),
    ],
)
def test_mistakes_in_the_command_of_main_get_one_sentence(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr and "\\" not in done.stderr


def test_main_without_a_configuration_says_how_to_begin():
    done = run()
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert "--config=configs/demo.py" in done.stderr
