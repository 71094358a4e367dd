"""What the documentation shows, names and points to is there."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from deployment import promotion
from deployment.settings import Settings
from speech_assets.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
SUFFIXES = ("py", "toml", "yaml", "md", "lock", "tsv", "png", "j2")
# A changelog names what is no more, and a command that is no more is not called `soundstage`.
OF_NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]


def _code(page: Path) -> Iterator[str]:
    """What a page writes as code, in a line or in a block; pictures are none."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = page.read_text()
    for kind, block in fenced.findall(text):
        if kind != "mermaid":
            yield from block.splitlines()
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", fenced.sub("", text)))


def _commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_and_file_that_a_page_links_is_there(page: Path) -> None:
    linked = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", page.read_text())
    missing = [link for link in linked if not (page.parent / link).exists()]
    assert linked
    assert not missing


@pytest.mark.parametrize("page", OF_NOW, ids=lambda page: page.name)
def test_every_file_and_folder_of_the_code_that_a_page_names_is_there(page: Path) -> None:
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    named = {word for code in _code(page) for word in re.findall(r"(?<![\w/<>.:-])[\w.-]+(?:/[\w.-]*)+", code)}
    paths = {name for name in named if name.split("/")[0] in rooms}
    files = {code for code in _code(page) if re.fullmatch(rf"\w[\w.-]*\.({'|'.join(SUFFIXES)})", code)}
    tree = {path.name for room in rooms for path in (ROOT / room).rglob("*")} | {p.name for p in ROOT.iterdir()}
    assert not [name for name in paths if not (ROOT / name).exists()]
    assert not files - tree


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_is_one_with_these_options(page: Path) -> None:
    wrong = []
    for code in _code(page):
        for said in re.findall(r"(?:^|[\s/])soundstage ([a-z][^|#]*)", code):
            name, *words = shlex.split(said)
            command = _commands().get(name)
            options = {option for parameter in command.params for option in parameter.opts} if command else set()
            asked = {word.split("=")[0] for word in words if word.startswith("--")} - {"--help"}
            if command is None or asked - options:
                wrong.append(code)
    assert not wrong


@pytest.mark.parametrize("page", OF_NOW, ids=lambda page: page.name)
def test_every_target_of_make_that_a_page_names_is_one(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {name for code in _code(page) for name in re.findall(r"^make ([a-z]+)", code)} <= targets


def test_make_bench_runs_every_benchmark() -> None:
    """One that nobody runs goes wrong unseen."""
    recipe = (ROOT / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"bars", "stub_trainer"}
    assert scripts <= set(re.findall(r"\w+", recipe))


@pytest.mark.parametrize("page", OF_NOW, ids=lambda page: page.name)
def test_every_setting_that_a_page_names_is_one(page: Path) -> None:
    tables = {name: getattr(field.annotation, "model_fields", {}) for name, field in Settings.model_fields.items()}
    wrong = []
    for code in _code(page):
        dotted = re.fullmatch(r"([a-z_]+)\.([a-z_]+)", code)
        variables = [name.lower().split("__") for name in re.findall(r"SOUNDSTAGE_(\w+__\w+)", code)]
        for table, field in [*([dotted.groups()] if dotted else []), *variables]:
            if tables.get(table) and field not in tables[table]:
                wrong.append(code)
        if re.fullmatch(r"\[[a-z_]+\]", code) and code[1:-1] not in {*tables, "noise"}:
            wrong.append(code)
    assert not wrong


def test_every_command_is_named_on_a_page() -> None:
    told = "\n".join(code for page in OF_NOW for code in _code(page))
    unsaid = {name for name in _commands() if f"soundstage {name}" not in told}
    assert not {name for name in unsaid if not re.search(rf"make {name}\b", told)}


def test_the_threat_model_is_quoted_as_the_code_states_it() -> None:
    stated = ast.get_docstring(ast.parse(Path(str(promotion.__file__)).read_text()))
    assert stated is not None
    model = stated[stated.index("The threat model") :].split()
    quoted = [
        line.removeprefix(">") for line in (ROOT / "docs/architecture.md").read_text().splitlines() if line[:1] == ">"
    ]
    assert "\n".join(quoted).split() == model


def test_every_picture_is_drawn_by_the_script() -> None:
    """A picture that no script draws shows a UI of long ago."""
    drawn = set(re.findall(r'Picture\(\s*"(\w+)"', (ROOT / "docs" / "screenshots.py").read_text()))
    assert {path.stem for path in (ROOT / "docs" / "images").glob("*.png")} <= drawn
