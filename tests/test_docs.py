"""README, docs and notebook: links resolve; modules, options, configuration files and keys exist."""

import importlib
import json
import re
import shlex
from functools import cache

import pytest

from semivl_jax.config import default_config
from semivl_jax.data.foreign import command
from semivl_jax.experiment import workdir
from semivl_jax.inference import label_folder
from semivl_jax.train import methods
from tests.command import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOTEBOOK = ROOT / "notebooks" / "semivl_demo.ipynb"


def text_of(page):
    """A page, or the text cells of a notebook."""
    text = page.read_text(encoding="utf8")
    if page.suffix == ".md":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def commands():
    """(page, module, arguments) of every `python -m …` with a module of this repository."""
    for page in [*PAGES, NOTEBOOK]:
        text = re.sub(r"\\\n\s*", " ", text_of(page))
        for name, value in re.findall(r"^ *([A-Z])=\"(.*)\"$", text, re.MULTILINE):
            text = text.replace(f"${name} ", f"{value} ")
        found = re.findall(r"python3? -m ([\w.]+)((?: +(?:\"[^\"\n]*\"|[^\s`&|>;#]+))*)", text)
        for module, arguments in found:
            if module.split(".")[0] in ("semivl_jax", "benchmarks", "docs", "tests"):
                yield pytest.param(page.name, module.rstrip("."), shlex.split(arguments))


def is_placeholder(argument):
    """`--config=FILE[:ARGUMENT]`, `…`"""
    return bool(re.search(r"[\[\]…]|FILE|KEY|VALUE", argument))


@cache
def anchors(page):
    """Anchors of the headings, as code hosts make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf8"), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"(https|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_numbers_of_the_method_page_exist():
    """Docstrings cite sections ("docs/semivl.md 2") and their items ("docs/semivl.md 4.3, 4.6 and 4.7")."""
    section, known = "", set()
    page = (ROOT / "docs" / "semivl.md").read_text(encoding="utf8")
    for heading, number in re.findall(r"^(## )?(\d+)\. ", page, re.M):
        section = number if heading else section
        known.add(number if heading else f"{section}.{number}")
    folders = ("semivl_jax", "configs", "tfds_builders", "tests", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    texts = ((path, path.read_text(encoding="utf8")) for path in files)
    cited = {
        (path.name, number)
        for path, text in texts
        for listed in re.findall(r"docs/semivl\.md ([\d.]+(?:(?:, | and | to )[\d.]+)*)", text)
        for number in re.findall(r"\d+(?:\.\d+)?", listed)
    }
    assert len(cited) > 50
    assert not {(name, number) for name, number in cited if number not in known}


@pytest.mark.parametrize(("page", "module", "arguments"), list(commands()))
def test_commands_exist(page, module, arguments, capsys):
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{page}: there is no {module}"
    if module == "semivl_jax.main":
        check_configuration(page, arguments)
    elif arguments and hasattr(importlib.import_module(module), "parser"):
        # Options that may be left out are checked too; placeholders get a value.
        values = {"…": "x", "DATASET": "voc"}
        bare = [argument.strip("[]") for argument in arguments]
        parser = importlib.import_module(module).parser
        if bare[0] in ("folder", "ood"):
            own = {"folder": command.folder_parser, "ood": label_folder.ood_parser}
            parser, bare = own[bare[0]], bare[1:]
        try:
            parser().parse_args([values.get(a, a) for a in bare])
        except SystemExit:
            pytest.fail(f"{page}: {module} {shlex.join(arguments)}: {capsys.readouterr().err}")


def check_configuration(page, arguments):
    """The configuration file loads with its argument and has every key that is set."""
    flag = next((a for a in arguments if a.startswith("--config=")), "--config=")
    spec = flag.removeprefix("--config=").strip("'\"")
    if not spec or is_placeholder(spec):
        return
    path, _, argument = spec.partition(":")
    assert (ROOT / path).is_file(), f"{page}: there is no {path}"
    file = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir, "read", lambda _: default_config())  # of runs that the reader has
        config = file.get_config(argument) if argument else file.get_config()
    for setting in (a for a in arguments if a.startswith("--config.") and not is_placeholder(a)):
        key = setting.removeprefix("--config.").partition("=")[0]
        assert has_key(config, key), f"{page}: {spec} has no {setting}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configuration_files_and_keys_exist(page):
    """Also outside of commands: `configs/voc.py`, `--config.optim.lr`, `method.teacher = …`."""
    text, config = page.read_text(encoding="utf8"), default_config()
    for path in re.findall(r"`(configs/\w+\.py)", text):
        assert (ROOT / path).is_file(), path
    sections = "|".join(name for name, value in config.items() if hasattr(value, "keys"))
    not_files = r"(?!(?:py|json|safetensors|npz)\b)"
    for key in re.findall(rf"`(?:--)?(?:config\.)?((?:{sections})\.{not_files}\w+)", text):
        assert has_key(config, key), key


def has_key(config, key):
    """Fields of any method count: which of them a configuration has depends on `method.name`."""
    name, _, rest = key.partition(".")
    if name == "method":
        return any(rest in methods.defaults(method) for method in methods.METHODS)
    return name in config and (not rest or has_key(config[name], rest))
