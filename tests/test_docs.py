"""README and docs keep to what is there: links, anchors, options, configuration keys, commands.

Every command of the texts must be classified in `COMMANDS`: by the test that runs it, or by the reason why no
test does. A new command fails `test_every_command_is_run_by_a_test_or_says_why_not` until it stands there.
"""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
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
    "semivl_jax.main configs/ade.py": "tests/test_configs.py",
    "semivl_jax.main configs/voc.py": f"not run: {NO_NETWORK}; test_configs traces its step",
    "semivl_jax.main configs/coco.py": f"not run: {NO_NETWORK}; test_configs traces its step",
    "semivl_jax.main configs/cityscapes.py": f"not run: {NO_NETWORK}; test_configs traces its step",
    "semivl_jax.prepare": "tests/test_prepare.py",
    "semivl_jax.convert": "tests/weights/test_convert.py",
    "semivl_jax.predict": "tests/test_predict.py",
    "semivl_jax.embed": "tests/test_embed.py",
    "semivl_jax.export": "tests/test_export.py",
    "semivl_jax.sweep": "tests/test_sweep.py",
    "semivl_jax.report": "tests/test_report.py",
    "benchmarks.demo_ablation": "not run: trains for hours",
    "benchmarks.pseudo_labels": "not run: needs a finished run; tests/test_report.py checks its counts",
    "benchmarks.train_step": "not run: measures time",
    "benchmarks.tpu_compile": "not run: needs the TPU compiler and many minutes",
    "benchmarks.input_pipeline": "tests/test_input_benchmark.py",
    "benchmarks.report": "not run: measures time; tests/test_report.py makes its workdir",
    "benchmarks.browser": "not run: takes the pictures of these pages",
}


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every `python -m …` in a page, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf8"))
    found = re.findall(r"python3? -m ([\w.]+)((?: +[^\s`&|>;#]+)*)", text)
    return [(module.rstrip("."), arguments.split()) for module, arguments in found]


ALL = [(page.name, module, arguments) for page in PAGES for module, arguments in commands(page)]


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


@cache
def options(module: str) -> set[str]:
    """Names of the options that a module defines, read from its syntax tree and without running it."""
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.is_file(), f"there is no {module}"
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if not isinstance(node, ast.Call):
            continue
        words = [a.value for a in node.args if isinstance(a, ast.Constant)]
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called.startswith("DEFINE_"):
            names.add(words[0])
        else:  # add_argument, by whatever short name a module calls it
            names |= {w[2:] for w in words if isinstance(w, str) and re.fullmatch(r"--\w+", w)}
    return names


@pytest.mark.parametrize(
    ("page", "module", "arguments"),
    [case for case in ALL if case[1].split(".")[0] in ("semivl_jax", "benchmarks")],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_options_of_commands_exist(page, module, arguments):
    for argument in arguments:
        name = argument.partition("=")[0].strip("[]'\"")
        if not name.startswith("--") or is_pattern(name):
            continue
        if not name.startswith("--config."):
            assert name[2:] in options(module), f"{page}: {module} has no {name}"


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
