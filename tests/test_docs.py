"""README and docs keep to what is there: links, anchors, options, configuration keys, commands.

Every command of the texts must be classified in `COMMANDS`: by the test that runs it, or by the reason why no
test does. A new command fails `test_every_command_is_run_by_a_test_or_says_why_not` until it stands there.
"""

import importlib
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOTEBOOK = ROOT / "notebooks" / "semivl_demo.ipynb"
NO_NETWORK = "needs archives or weights from the network"

# What a command runs (module, and the configuration or first word it is given) -> a test file that runs it,
# or "not run: why".
COMMANDS = {
    "venv": "not run: .ci/run makes the environment of the tests with it",
    "pytest": "not run: this is the command that runs the tests",
    "semivl_jax.main": "tests/test_resume.py",
    "semivl_jax.main configs/demo.py": "not run: minutes; test_configs traces its step, and "
    "test_resume runs the same command with configs/tiny.py",
    "semivl_jax.main configs/tiny.py": "tests/test_resume.py",
    "semivl_jax.main configs/folder.py": "not run: minutes; test_configs traces its step, and "
    "test_resume trains on a folder with configs/tiny.py",
    "semivl_jax.main configs/ade.py": "tests/test_recipes.py",
    "semivl_jax.main configs/voc.py": f"not run: {NO_NETWORK}; test_recipes traces its step",
    "semivl_jax.main configs/coco.py": f"not run: {NO_NETWORK}; test_recipes traces its step",
    "semivl_jax.main configs/cityscapes.py": f"not run: {NO_NETWORK}; test_recipes traces its step",
    "semivl_jax.prepare": "tests/test_prepare.py",
    "semivl_jax.convert": "tests/weights/test_convert.py",
    "semivl_jax.predict": "tests/test_predict.py",
    "semivl_jax.embed": "tests/test_embed.py",
    "semivl_jax.export": "tests/test_export.py",
    "semivl_jax.sweep": "tests/test_sweep.py",
    "semivl_jax.report": "tests/test_report.py",
    "docs.draw_architecture": "tests/test_architecture.py",
    "benchmarks.demo_ablation": "not run: trains for hours",
    "benchmarks.pseudo_labels": "not run: needs a finished run; tests/test_report.py checks its counts",
    "benchmarks.precision": "not run: trains for hours; tests/test_step_benchmarks.py checks its sums",
    "benchmarks.train_step": "not run: measures time",
    "benchmarks.restart": "not run: measures time; tests/test_step_benchmarks.py runs its parts",
    "benchmarks.tpu_compile": "not run: needs the TPU compiler and many minutes",
    "benchmarks.input_pipeline": "tests/test_input_benchmark.py",
    "benchmarks.report": "not run: measures time; tests/test_report.py makes its workdir",
    "benchmarks.browser": "not run: takes the pictures of these pages",
}


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every `python -m …` in a page, split as a shell does it."""
    text = re.sub(r"\\\n\s*", " ", text_of(page))
    for name, value in re.findall(r"^ *([A-Z])=\"(.*)\"$", text, re.MULTILINE):
        text = text.replace(f"${name} ", f"{value} ")
    found = re.findall(r"python3? -m ([\w.]+)((?: +(?:\"[^\"\n]*\"|[^\s`&|>;#]+))*)", text)
    return [(module.rstrip("."), shlex.split(arguments)) for module, arguments in found]


def text_of(page: Path) -> str:
    """A page, or the text cells of a notebook."""
    text = page.read_text(encoding="utf8")
    if page.suffix == ".md":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


ALL = [
    (page.name, module, arguments)
    for page in [*PAGES, NOTEBOOK]
    for module, arguments in commands(page)
]


def is_pattern(argument: str) -> bool:
    """`--config=FILE[:ARGUMENT]`, `…`: how to write a command, not one."""
    return bool(re.search(r"[\[\]…]|FILE|KEY|VALUE", argument))


def configuration(arguments: list[str]) -> str:
    flag = next((a for a in arguments if a.startswith("--config=")), "--config=")
    return flag.removeprefix("--config=").strip("'\"")


def key_of(module: str, arguments: list[str]) -> str:
    if module != "semivl_jax.main":
        return module
    path = configuration(arguments).partition(":")[0]
    return f"{module} {path}" if path and not is_pattern(path) else module


@cache
def slugs(page: Path) -> set[str]:
    """Anchors of the headings, as code hosts make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf8"), flags=re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    plain = (re.sub(r"[^\w\- ]", "", head.strip().lower()) for head in heads)
    return {head.replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"(https|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in slugs(file), f"{page.name}: {target}, but only {sorted(slugs(file))}"


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf8")
    for page in PAGES:
        if page.name != "README.md":
            assert f"]({page.name})" in index, page.name


def test_every_command_is_run_by_a_test_or_says_why_not():
    assert ALL
    for page, module, arguments in ALL:
        key = key_of(module, arguments)
        assert key in COMMANDS, f"{page}: say in COMMANDS which test runs {key!r}, or why none does"
        verdict = COMMANDS[key]
        if not verdict.startswith("not run: "):
            file = ROOT / verdict
            assert file.is_file(), f"{key}: {verdict}"
            # Its module, or for `main` the helper that runs it or the file that it is given.
            names = [module.rpartition(".")[2]]
            if module == "semivl_jax.main":
                names += [
                    "tests.command",
                    Path(configuration(arguments).partition(":")[0]).stem or "main",
                ]
            words = set(re.findall(r"[\w.]+", file.read_text(encoding="utf8")))
            assert words & set(names) or words & {f"semivl_jax.{name}" for name in names}, (
                f"{verdict} runs no {key}"
            )


def by_argparse(module: str) -> bool:
    """Whether a command's module has `parser()`, which is what its `main` uses."""
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.is_file(), f"there is no {module}"
    return "\ndef parser()" in path.read_text(encoding="utf8")


OURS = [case for case in ALL if case[1].split(".")[0] in ("semivl_jax", "benchmarks")]


@pytest.mark.parametrize(
    ("page", "module", "arguments"),
    [case for case in OURS if by_argparse(case[1])],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_commands_are_taken_by_their_parsers(page, module, arguments, capsys):
    """Every option, choice, number and missing argument, by the parser that the command itself uses."""
    if not arguments:  # the command is named, not written out
        return
    # What may be left out has to be right, too, and three words stand for what a reader puts there.
    words = {"…": "x", "DATASET": "voc", "WORKDIR": "runs/demo"}
    arguments = [words.get(bare, bare) for bare in (argument.strip("[]") for argument in arguments)]
    try:
        importlib.import_module(module).parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{page}: {module} {shlex.join(arguments)}: {capsys.readouterr().err}")


FLAGS = """
import importlib, json, sys
from absl import flags
module, commands = sys.argv[1], json.load(sys.stdin)
command = importlib.import_module(module)
known = set(flags.FLAGS)
for arguments in commands:
    for argument in arguments:
        name = argument.partition("=")[0][2:]
        if argument.startswith("--") and not name.startswith("config.") and name not in known:
            sys.exit(f"{arguments}: there is no {argument}")
if module == "semivl_jax.main":
    import os
    for arguments in commands:
        if any(mark in " ".join(arguments) for mark in ("…", "[", "FILE", "KEY")) or not arguments:
            continue
        child = os.fork()  # flags of absl belong to the process
        if not child:
            sys.argv = ["main", *arguments]  # where ml_collections looks for the fields
            command.parse_flags(["main", *arguments])
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{arguments} is refused")
"""


@pytest.mark.parametrize("module", sorted({case[1] for case in OURS if not by_argparse(case[1])}))
def test_commands_are_taken_by_their_flags(module):
    """`main` parses each of its commands with the configuration that it names, keys and types included."""
    written = [
        [argument.strip("[]") for argument in arguments]
        for _, name, arguments in OURS
        if name == module
    ]
    done = subprocess.run(
        [sys.executable, "-c", FLAGS, module],
        input=json.dumps(written), capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_configurations_and_their_keys_exist():
    """Every file loads with the argument it is given, and has every key that a command sets."""
    seen = 0
    for page, module, arguments in ALL:
        flag = configuration(arguments)
        if module != "semivl_jax.main" or not flag or is_pattern(flag):
            continue
        path, _, argument = flag.partition(":")
        assert (ROOT / path).is_file(), f"{page}: {path}"
        file = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        config = file.get_config(argument) if argument else file.get_config()
        for text in (a for a in arguments if a.startswith("--config.") and not is_pattern(a)):
            assert has_key(config, text), f"{page}: {flag} has no {text}"
        seen += 1
    assert seen


def test_keys_in_running_text_exist():
    """`--config.optim.lr`, `config.data.split`, `method.teacher = …` outside of commands."""
    from configs import base

    config = base.get_config()
    sections = "|".join(name for name, value in config.items() if hasattr(value, "keys"))
    for page in PAGES:
        text = page.read_text(encoding="utf8")
        for key in re.findall(
            rf"`(?:--)?(?:config\.)?((?:{sections})\.(?!(?:py|json|safetensors|npz)\b)\w+)", text
        ):
            assert has_key(config, key), f"{page.name}: {key}"


def has_key(config, text: str) -> bool:
    path = text.partition("=")[0].removeprefix("--config.")
    return _has(config, path.split("."))


def _has(config, names: list[str]) -> bool:
    return names[0] in config and (len(names) == 1 or _has(config[names[0]], names[1:]))
